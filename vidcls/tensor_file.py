"""Reads safetensors files without memory maps."""

from __future__ import annotations

import json
import math
import os
from io import BufferedReader
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

# What a missing or damaged file raises.
TENSOR_FILE_ERRORS = (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


class TensorFile:
    """The content of an open safetensors file, in part with the methods of ``safetensors.safe_open``.

    Read, not memory-mapped: where a disk fails, or another machine has replaced the file, a read raises but a memory
    map kills the process.
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if size > self._size:
            raise ValueError("its end is missing")
        self._arrays = json.loads(file.read(size))
        self._metadata: dict[str, str] = self._arrays.pop("__metadata__", {})
        self._start = 8 + size

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def metadata(self) -> dict[str, str]:
        return self._metadata

    def get_tensor(self, name: str) -> Shaped[np.ndarray, "*shape"]:
        return self._read(*self._find(name))

    def get_rows(self, name: str, rows: Int[np.ndarray, " N"]) -> Shaped[np.ndarray, "N *shape"]:
        """Some rows of a tensor, of which only those are read."""
        start, dtype, (count, *shape) = self._find(name)
        size = dtype.itemsize * math.prod(shape)
        if len(rows) and not 0 <= rows.min() <= rows.max() < count:
            raise IndexError(f"{name} has {count} rows")
        return np.stack([self._read(start + int(row) * size, dtype, shape) for row in rows])

    def _find(self, name: str) -> tuple[int, np.dtype[Any], list[int]]:
        kind, shape, (begin, end) = (self._arrays[name][key] for key in ("dtype", "shape", "data_offsets"))
        dtype = np.dtype(f"<{kind[0].lower()}{int(kind[1:]) // 8}")  # of F32
        if end - begin != math.prod(shape) * dtype.itemsize or self._start + end > self._size:
            raise ValueError("its end is missing")
        return self._start + begin, dtype, list(shape)

    def _read(self, start: int, dtype: np.dtype[Any], shape: list[int]) -> Shaped[np.ndarray, "*shape"]:
        read = np.empty(shape, dtype)
        self._file.seek(start)
        if self._file.readinto(read.data) != read.nbytes:
            raise ValueError("its end is missing")
        return read
