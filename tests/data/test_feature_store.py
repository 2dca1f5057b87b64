"""The store of features: kept whole or not at all, and read as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import altered, truncated
from safetensors.numpy import save_file

from vidcls.data.store import FeatureStore, StoreEntryError

SHA256 = "ab" * 32
Harm = Callable[[Path], None]


@pytest.mark.parametrize("shape", [(7,), (4, 5), (1, 1)])
def test_what_is_written_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store, features = FeatureStore(tmp_path), np.random.default_rng(0).random(shape, np.float32)
    assert not store.holds(SHA256)
    store.write(SHA256, features)
    read = store.read(SHA256)
    assert bool((read == features).all()) and read.shape == shape and read.dtype == np.float32
    assert store.holds(SHA256) and not store.holds("cd" * 32)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [store.path(SHA256)]


def test_features_of_any_layout(tmp_path: Path) -> None:
    store, features = FeatureStore(tmp_path), np.arange(12.0, dtype=np.float32).reshape(3, 4).T[::2]
    store.write(SHA256, features)
    np.testing.assert_array_equal(store.read(SHA256), features)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    save_file({"features": np.ones(4, np.float32)}, path)  # without a checksum


def nameless(path: Path) -> None:
    save_file({"others": np.ones(4, np.float32)}, path, {"checksum": "0"})


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [truncated, altered, emptied, foreign, nameless, gone])
def test_what_is_not_whole_is_found_out(tmp_path: Path, harm: Harm) -> None:
    store = FeatureStore(tmp_path)
    store.write(SHA256, np.ones((2, 4), np.float32))
    harm(store.path(SHA256))
    assert not store.holds(SHA256)
    with pytest.raises(StoreEntryError, match=SHA256):
        store.read(SHA256)
    store.write(SHA256, np.ones((2, 4), np.float32))
    assert store.holds(SHA256)
