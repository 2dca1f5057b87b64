"""Store entries that are packed into a few large files read as before."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import call

from vidcls.data.decoding.result import DecodeResult
from vidcls.data.packs import find_stores, pack_store
from vidcls.data.sampling import StoreSpec
from vidcls.data.store import FeatureStore, FrameStore, StoreEntryError

COUNT = 40
NAMES = [f"{number * 2654435761 % 2**32:064x}"[::-1] for number in range(COUNT)]  # in no order
RESULTS = [DecodeResult("ok", "é" * (number % 3), "decord", 1.0 + number, 1.0) for number in range(COUNT)]
FRAMES = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 8, 8, 3), dtype=np.uint8)
ALL = np.arange(6)


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    """A store of `COUNT` videos."""
    store = FrameStore(tmp_path / "cache" / "store", StoreSpec(6, 8))
    for name, frames, result in zip(NAMES, FRAMES, RESULTS, strict=True):
        store.write(name, frames, result)
    return store


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def assert_whole(store: FrameStore) -> None:
    for number, name in enumerate(NAMES):
        assert store.find(name) == RESULTS[number]
        frames = store.read(name, ALL)
        np.testing.assert_array_equal(frames, FRAMES[number])
        assert frames.flags.writeable
        np.testing.assert_array_equal(store.read(name, np.array([5, 0, 0])), FRAMES[number, [5, 0, 0]])


def test_packed_entries_read_as_before(store: FrameStore) -> None:
    assert_whole(store)  # it has looked for packs, and found none
    assert find_stores(store.folder.parents[1]) == [store.folder]
    assert pack_store(store.folder) == COUNT
    assert len(files(store.folder)) == 5
    for again in (store, FrameStore(store.folder.parent, store.spec), pickle.loads(pickle.dumps(store))):
        assert_whole(again)
    assert len(pickle.dumps(store)) < 2000  # not the mapped files
    missing = "f" * 64
    assert store.find(missing) is None
    with pytest.raises(StoreEntryError):
        store.read(missing, ALL)


def test_what_is_added_later_is_packed_by_the_next_call(store: FrameStore) -> None:
    pack_store(store.folder)
    assert pack_store(store.folder) == 0 and len(files(store.folder)) == 5
    more = ["0" * 63 + "1", "f" * 63 + "e"]
    for name in more:
        store.write(name, FRAMES[0], RESULTS[0])
    assert find_stores(store.folder.parents[1]) == [store.folder]
    assert pack_store(store.folder) == 2
    assert_whole(store)
    assert [store.find(name) for name in more] == [RESULTS[0]] * 2


def test_a_damaged_packed_entry_is_not_used_and_may_be_written_again(store: FrameStore) -> None:
    pack_store(store.folder)
    (path,) = store.folder.glob("pack-*/frames.npy")
    names = sorted(NAMES)
    content = bytearray(path.read_bytes())
    content[128 + 3 * FRAMES[0].nbytes + 7] ^= 1  # of the fourth entry
    path.write_bytes(content)
    again, lost = FrameStore(store.folder.parent, store.spec), NAMES.index(names[3])
    assert [name for name in NAMES if again.find(name) is None] == [names[3]]
    with pytest.raises(StoreEntryError):
        again.read(names[3], ALL)
    again.write(names[3], FRAMES[lost], RESULTS[lost])
    assert_whole(again)


@pytest.mark.parametrize("damage", ["cut", "missing", "other"])
def test_a_damaged_pack_is_not_used(store: FrameStore, damage: str) -> None:
    pack_store(store.folder)
    (path,) = store.folder.glob("pack-*/checksums.npy")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.with_name("sha256.npy").unlink()
    else:
        np.save(path, np.zeros((COUNT - 1, 7), np.uint32))
    again = FrameStore(store.folder.parent, store.spec)
    with pytest.warns(UserWarning, match="damaged and not used"):
        assert [again.find(name) for name in NAMES] == [None] * COUNT
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        again.write(NAMES[0], FRAMES[0], RESULTS[0])
        assert again.find(NAMES[0]) == RESULTS[0] and again.find(NAMES[1]) is None


def test_an_interrupted_pack_changes_nothing(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(files(store.folder))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("vidcls.data.packs.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            pack_store(store.folder)
    assert sorted(files(store.folder)) == before
    left = store.folder / ".pack-0123.part"  # by a process that was killed
    left.mkdir()
    assert_whole(store)
    assert pack_store(store.folder) == COUNT and not left.exists()


def test_entries_that_cannot_be_packed_stay(store: FrameStore) -> None:
    damaged, other = sorted(NAMES)[5], sorted(NAMES)[9]
    store.path(damaged).write_bytes(b"damaged")
    FeatureStore(store.folder).write(other, np.zeros(3, np.float32))
    assert pack_store(store.folder) == COUNT - 2
    assert store.path(damaged).exists() and store.path(other).exists()


def test_features(tmp_path: Path) -> None:
    store, features = FeatureStore(tmp_path), np.random.default_rng(0).normal(size=(COUNT, 2, 5)).astype(np.float32)
    for name, values in zip(NAMES, features, strict=True):
        store.write(name, values)
    assert pack_store(tmp_path) == COUNT
    np.testing.assert_array_equal([store.read(name) for name in NAMES], features)
    assert store.holds(NAMES[0]) and not store.holds("f" * 64)


def test_the_command_packs_what_training_has_cached(store: FrameStore, tmp_path: Path) -> None:
    """That training reads packs as it reads files is what the tests above say of the store."""
    FeatureStore(tmp_path / "cache" / "features" / "0123").write(NAMES[0], np.zeros(3, np.float32))
    done = call("pack_cache.py", f"cache_dir={tmp_path / 'cache'}")
    assert done.code == 0, done.stderr
    assert done.stdout.count("entries packed") == 2 and f"{store.folder}: {COUNT} entries packed" in done.stdout
    assert_whole(store)
