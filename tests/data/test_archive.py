from __future__ import annotations

import os
import resource
import shutil
import stat
import struct
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
from helpers.warm_python import warm_python

from vidcls.data.archive import extract
from vidcls.errors import UserError

LIMITS = {"max_gigabytes": 1.0, "max_ratio": 100.0}


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as zipped:
        warnings.simplefilter("ignore", UserWarning)  # duplicate names, on purpose
        for name, content in members.items():
            zipped.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def test_names_in_utf_8_that_the_zip_does_not_call_so(tmp_path: Path) -> None:
    """As those of zip(1) and macOS; Windows writes cp437."""
    make_zip(tmp_path / "a.zip", {"data/été/a.mp4": b"a", "data/safe/b.mp4": b"b"})
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for record, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):  # the flag in each header of the first member
        content[content.index(record) + offset] &= ~0x08
    (tmp_path / "a.zip").write_bytes(content)
    assert set(tree(extract(tmp_path / "a.zip", tmp_path / "cache", **LIMITS))) == {"data/été/a.mp4", "data/safe/b.mp4"}
    (tmp_path / "b.zip").write_bytes(content.replace("été".encode(), b"t\x82t\x82s"))  # of the same length
    assert set(tree(extract(tmp_path / "b.zip", tmp_path / "cache", **LIMITS))) == {
        "data/tétés/a.mp4",
        "data/safe/b.mp4",
    }


def patch_central(path: Path, offset: int, layout: str, value: int) -> None:
    """Overwrites a field of the first entry of the table of contents (APPNOTE.TXT 4.3.12)."""
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, content.index(b"PK\x01\x02") + offset, value)
    path.write_bytes(content)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refuse(archive: Path, tmp_path: Path, code: str, detail: str = "", **limits: float) -> None:
    """Checks the error, and that nothing was written but the archive itself."""
    before = set(tree(tmp_path))
    with pytest.raises(UserError) as error:
        extract(archive, tmp_path / "cache", **(LIMITS | limits))
    assert error.value.code == code and detail in str(error.value)
    assert set(tree(tmp_path)) == before
    assert not list(tmp_path.glob("cache/extracted/*"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_extracts_everything_under_the_hash(tmp_path: Path, compression: int) -> None:
    members = {"rtp/train/safe/a_1.mp4": os.urandom(1_200_000), "rtp/ü n.txt": b"", "__MACOSX/._a": b"x"}
    archive = make_zip(tmp_path / "a.zip", members, compression)
    folder = extract(archive, tmp_path / "cache", **LIMITS)
    assert tree(folder) == members
    assert folder.parent == tmp_path / "cache" / "extracted"
    sha256 = subprocess.run(["sha256sum", archive], capture_output=True, text=True, check=True).stdout
    assert folder.name == sha256[:16]


def test_second_call_reads_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"first"})
    folder = extract(archive, tmp_path / "cache", **LIMITS)
    (folder / "marker").touch()  # would be gone had the folder been made again
    before = archive.stat().st_atime_ns
    os.utime(archive, ns=(before - 10**12, archive.stat().st_mtime_ns))
    assert extract(archive, tmp_path / "cache", **LIMITS) == folder  # the change time moved: hashed again, same content
    archive.chmod(0o000)
    assert extract(archive, tmp_path / "cache", **LIMITS) == folder
    assert (folder / "marker").exists()


def test_a_copy_elsewhere_shares_the_folder_and_new_content_does_not(tmp_path: Path) -> None:
    first = extract(make_zip(tmp_path / "a.zip", {"a.mp4": b"1"}), tmp_path / "cache", **LIMITS)
    assert extract(make_zip(tmp_path / "b.zip", {"a.mp4": b"1"}), tmp_path / "cache", **LIMITS) == first
    state = (tmp_path / "a.zip").stat()
    make_zip(tmp_path / "a.zip", {"a.mp4": b"2"})
    os.utime(tmp_path / "a.zip", ns=(state.st_atime_ns, state.st_mtime_ns))  # same size, same time: still noticed
    second = extract(tmp_path / "a.zip", tmp_path / "cache", **LIMITS)
    assert second != first and tree(second) == {"a.mp4": b"2"}


def test_what_was_removed_or_cut_since_is_extracted_again(tmp_path: Path) -> None:
    members = {"train/a.mp4": b"1", "train/b.mp4": b"22", "val/c.mp4": b"333", "val/d.mp4": b""}
    archive = make_zip(tmp_path / "a.zip", members)
    folder = extract(archive, tmp_path / "cache", **LIMITS)
    (folder / "marker").touch()
    (folder / "train" / "a.mp4").unlink()
    (folder / "train" / "b.mp4").write_bytes(b"2")
    shutil.rmtree(folder / "val")
    assert tree(extract(archive, tmp_path / "cache", **LIMITS)) == members | {"marker": b""}
    shutil.rmtree(folder)
    assert tree(extract(archive, tmp_path / "cache", **LIMITS)) == members


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../evil.mp4", "leaves the archive"),
        ("rtp/../../evil.mp4", "leaves the archive"),
        ("rtp/..", "leaves the archive"),
        ("/tmp/evil.mp4", "absolute"),
        ("C:/evil.mp4", "absolute"),
        ("c:evil.mp4", "absolute"),
        ("rtp\\..\\evil.mp4", "backslash"),
        ("../evil/", "leaves the archive"),
        (".", "empty name"),
    ],
)
def test_refuses_names_outside_the_folder(tmp_path: Path, name: str, problem: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"fine.mp4": b"x", name: b""})
    refuse(archive, tmp_path, "zip-path", problem)


def test_refuses_a_nul_in_a_name(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"aXb.mp4": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"aXb.mp4", b"a\0b.mp4"))
    refuse(archive, tmp_path, "zip-path", "NUL")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_refuses_links_and_special_files(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("a.mp4")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    refuse(tmp_path / "a.zip", tmp_path, "zip-link", "'a.mp4'")


def test_refuses_encrypted_members(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"x"})
    patch_central(archive, 8, "<H", 0x1)
    refuse(archive, tmp_path, "zip-password", "'a.mp4'")


def test_refuses_unknown_compression(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"x"})
    patch_central(archive, 10, "<H", 93)  # zstandard
    refuse(archive, tmp_path, "zip-compression", "method 93")


@pytest.mark.parametrize("names", [("a.mp4", "a.mp4"), ("b/a.mp4", "b/./a.mp4"), ("b", "b/a.mp4"), ("b/c/a.mp4", "b")])
def test_refuses_colliding_names(tmp_path: Path, names: tuple[str, str]) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        warnings.simplefilter("ignore", UserWarning)
        for name in names:
            zipped.writestr(name, name)
    refuse(tmp_path / "a.zip", tmp_path, "zip-names")


def test_names_that_differ_in_case_are_two_files(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"ann_Qx.mp4": b"1", "ann_qX.mp4": b"2"})
    assert tree(extract(archive, tmp_path / "cache", **LIMITS)) == {"ann_Qx.mp4": b"1", "ann_qX.mp4": b"2"}


def test_refuses_too_many_bytes(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"x" * 600, "b.mp4": b"x" * 600})
    refuse(archive, tmp_path, "data.zip.max_gigabytes", "1.2e-06 GB", max_gigabytes=1e-6)
    assert len(tree(extract(archive, tmp_path / "cache", max_gigabytes=1.2e-6, max_ratio=100.0))) == 2


def test_refuses_a_bomb_by_its_ratio(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    refuse(archive, tmp_path, "data.zip.max_ratio")
    assert extract(archive, tmp_path / "cache", max_gigabytes=1.0, max_ratio=2000.0)


def test_refuses_a_bomb_of_members_that_share_their_bytes(tmp_path: Path) -> None:
    """Each member alone is within the ratio; together they unfold one kernel many times."""
    kernel = os.urandom(1000) + bytes(50_000)
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": kernel}, zipfile.ZIP_DEFLATED)
    content = archive.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entries = b"".join(content[start:end].replace(b"a.mp4", f"{number:05}".encode()) for number in range(99))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 99, 99, len(entries), start, 0)
    archive.write_bytes(content[:start] + entries + tail)
    with zipfile.ZipFile(archive) as zipped:
        assert all(info.file_size / info.compress_size < 60 for info in zipped.infolist())
    refuse(archive, tmp_path, "data.zip.max_ratio", max_ratio=60.0)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("declared", [10, 5_000_000])
def test_refuses_members_that_lie_about_their_size(tmp_path: Path, compression: int, declared: int) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": bytes(1_000_000)}, compression)
    patch_central(archive, 24, "<L", declared)
    refuse(archive, tmp_path, "damaged-zip", "'a.mp4'", max_ratio=1e6)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_refuses_damage_and_leaves_nothing(tmp_path: Path, compression: int) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"fine", "b.mp4": os.urandom(100_000)}, compression)
    content = bytearray(archive.read_bytes())
    content[50_000:50_008] = bytes(8)
    archive.write_bytes(content)
    refuse(archive, tmp_path, "damaged-zip", "a.zip")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + b"\xff" * 18])
def test_refuses_what_is_no_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    refuse(tmp_path / "a.zip", tmp_path, "damaged-zip")


def test_refuses_a_cut_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": os.urandom(1000)})
    archive.write_bytes(archive.read_bytes()[:-30])
    refuse(archive, tmp_path, "damaged-zip")


def test_refuses_names_that_cannot_be_written(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"1", "b" * 300 + ".mp4": b"2"})
    refuse(archive, tmp_path, "zip-names", "File name too long")


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes fails a write in the middle of a member, as a full disk does."""
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"fine", "b.mp4": os.urandom(3_000_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        refuse(archive, tmp_path, "disk-full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(tree(extract(archive, tmp_path / "cache", **LIMITS))) == 2


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"1"})
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError) as error:
        extract(archive, tmp_path / "cache", **LIMITS)
    assert error.value.code == "zip-cache"


def test_processes_that_extract_at_once_all_end_well(tmp_path: Path) -> None:
    members = {f"train/safe/{number}.mp4": os.urandom(20_000) for number in range(200)}
    archive = make_zip(tmp_path / "a.zip", members)
    script = (
        "import sys, pathlib; from vidcls.data.archive import extract; sys.stdin.read();"
        "print(extract(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 1.0, 100.0).name, file=sys.stderr)"
    )
    command = [warm_python(), "-c", script, str(archive), str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    names = set()
    for process in processes:
        assert process.stderr is not None
        names.add(process.stderr.read().strip())
        assert process.wait() == 0
    assert len(names) == 1
    home = tmp_path / "cache" / "extracted"
    assert {entry.name for entry in home.iterdir()} == names | {"seen"}
    assert tree(home / names.pop()) == members


def test_what_another_process_has_extracted_meanwhile_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That process may be decoding it, and takes a file that changes then for a broken one."""
    archive = make_zip(tmp_path / "a.zip", {"a.mp4": b"1", "b.mp4": b"2"})
    rename, seen = os.rename, list[list[tuple[int, int]]]()

    def states() -> list[tuple[int, int]]:
        files = sorted((tmp_path / "cache").rglob("*.mp4"))
        return [(file.stat().st_ino, file.stat().st_ctime_ns) for file in files]

    def rename_second(partial: Path, folder: Path) -> None:
        monkeypatch.setattr("os.rename", rename)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(partial, folder)
        shutil.move(partial, tmp_path / "partial")
        seen.append(states())
        shutil.move(tmp_path / "partial", partial)
        rename(partial, folder)

    monkeypatch.setattr("os.rename", rename_second)
    folder = extract(archive, tmp_path / "cache", **LIMITS)
    assert tree(folder) == {"a.mp4": b"1", "b.mp4": b"2"}
    assert [states()] == seen and len(seen[0]) == 2
