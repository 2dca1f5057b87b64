"""Many small store entries in a few large files, for disks that open small files slowly or allow few of them.

A pack is a folder of memory-mapped .npy files with a row for each entry, sorted by the SHA-256 of their videos.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from rich.progress import track

from vidcls.errors import one_line
from vidcls.files import locked
from vidcls.tensor_file import TENSOR_FILE_ERRORS, TensorFile

Arrays = dict[str, np.ndarray]  # of a pack, by the names of its files

NAMES, METADATA, ENDS = "sha256", "metadata", "metadata_ends"  # the other files are the entries' tensors


class PackedEntry(NamedTuple):
    """One entry, with the methods of `vidcls.tensor_file.TensorFile`."""

    arrays: Arrays
    row: int

    def get_tensor(self, name: str) -> np.ndarray:
        return np.array(self.arrays[name][self.row])

    def get_rows(self, name: str, rows: Int[np.ndarray, " N"]) -> np.ndarray:
        found: np.ndarray = self.arrays[name][self.row][rows]
        return np.asarray(found)

    def metadata(self) -> dict[str, str]:
        start = int(self.arrays[ENDS][self.row - 1]) if self.row else 0
        text = self.arrays[METADATA][start : int(self.arrays[ENDS][self.row])].tobytes()
        return dict(json.loads(text))


class Packs:
    """The packs in a store's folder; another process may add some at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[str, Arrays] = {}
        self._changed = -1  # when the folder had last changed

    def __reduce__(self) -> tuple[type[Packs], tuple[Path]]:
        return Packs, (self.folder,)  # another process maps the files itself

    def find(self, sha256: str) -> Iterator[PackedEntry]:
        """Each pack's entry of this video."""
        name = sha256.encode()
        for arrays in self._opened.values():
            names = arrays.get(NAMES, np.empty(0, "S64"))
            row = int(np.searchsorted(names, name))
            if row < len(names) and names[row] == name:
                yield PackedEntry(arrays, row)

    def __len__(self) -> int:
        """The number of packs, of which the first call opens those that there are."""
        return len(self._opened) if self._changed >= 0 else self.refresh()

    def refresh(self) -> int:
        """Opens the packs that have come since; returns how many there are now. Threads may call it at once."""
        changed = self.folder.stat().st_mtime_ns if self.folder.exists() else 0
        if changed != self._changed:
            new = [path for path in sorted(self.folder.glob("pack-*")) if path.name not in self._opened]
            self._opened = self._opened | {path.name: _open(path) for path in new}
            self._changed = changed
        return len(self._opened)


def _open(folder: Path) -> Arrays:
    try:
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        if {len(array) for name, array in arrays.items() if name != METADATA} != {len(arrays[NAMES])}:
            raise ValueError("its files differ in length")
    except (OSError, ValueError, KeyError) as error:
        if getattr(error, "errno", None) == errno.ENODEV:
            warnings.warn(f"{folder} is not used, as its file system has no memory maps", stacklevel=2)
            return {}
        warnings.warn(f"{folder} is damaged and not used ({one_line(error)}). Delete it.", stacklevel=2)
        return {}
    return arrays


def find_stores(cache: Path) -> list[Path]:
    """The stores of frames, features and hashes in a cache."""
    return sorted({path.parents[1] for path in cache.glob("*/*/??/*.safetensors")})


def pack_store(folder: Path) -> int:
    """Moves a store's entries that are files of their own into a new pack; returns how many.

    Others may read the store and add to it meanwhile. What cannot be read, or has other tensors than the first entry,
    stays. The disk must hold the entries twice until the end.
    """
    with locked(folder / ".pack.lock", f"another process that packs {folder}"):
        for left in folder.glob(".pack-*.part"):  # by a process that was killed
            shutil.rmtree(left)
        name = f"pack-{secrets.token_hex(4)}"
        part = folder / f".{name}.part"
        try:
            part.mkdir()
            packed = _write(part, sorted(folder.glob("??/*.safetensors"), key=lambda path: path.stem))
            if packed:
                os.rename(part, folder / name)
                _sync(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for path in packed:
            path.unlink(missing_ok=True)
        return len(packed)


def _write(part: Path, paths: Sequence[Path]) -> list[Path]:
    packed, kind, columns, end = list[Path](), None, dict[str, _Column](), 0
    with ExitStack() as stack:
        for path in track(paths, f"Packing {part.parent.name}", transient=True):
            try:
                with path.open("rb") as file:
                    entry = TensorFile(file)
                    tensors = {name: entry.get_tensor(name) for name in entry.names}
                    metadata = np.frombuffer(json.dumps(entry.metadata()).encode(), np.uint8)
            except TENSOR_FILE_ERRORS:
                continue
            found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
            kind = kind or found
            if found != kind:
                continue
            packed.append(path)
            end += len(metadata)
            rows = {name: tensor[None] for name, tensor in tensors.items()} | {METADATA: metadata}
            rows |= {ENDS: np.array([end]), NAMES: np.array([path.stem.encode()])}
            for name, values in rows.items():
                if name not in columns:
                    columns[name] = stack.enter_context(_Column(part / f"{name}.npy", values.dtype, values.shape[1:]))
                columns[name].append(values)
    return packed


class _Column:
    """A .npy file that is written in parts, and synced to disk at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.length = dtype, shape, 0
        self.file = path.open("wb")
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows).data)
        self.length += len(rows)

    def _write_header(self) -> None:
        # NumPy leaves room for any length, so that the header can be written again.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        with self.file:
            self.file.seek(0)
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
