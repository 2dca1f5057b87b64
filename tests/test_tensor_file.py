"""Safetensors files, read without memory maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from vidcls.tensor_file import TENSOR_FILE_ERRORS, TensorFile


def read(path: Path) -> tuple[np.ndarray, str]:
    with path.open("rb") as file:
        opened = TensorFile(file)
        return opened.get_tensor("values"), opened.metadata()["name"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [(5,), (4, 3, 2), (0, 3), ()])
def test_what_safetensors_has_written(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"before": np.ones(3, np.uint8), "values": values}, {"name": "é"}))
    found, name = read(path)
    np.testing.assert_array_equal(found, values)
    assert (found.dtype, found.shape, name) == (dtype, shape, "é")
    if shape and shape[0]:
        with path.open("rb") as file:
            np.testing.assert_array_equal(TensorFile(file).get_rows("values", np.array([3, 0, 0])), values[[3, 0, 0]])
            for row in (-1, shape[0]):
                with pytest.raises(IndexError):
                    TensorFile(path.open("rb")).get_rows("values", np.array([row]))


def test_a_file_that_shrinks_while_it_is_open_raises(tmp_path: Path) -> None:
    """With a memory map, this and any error of the disk would kill the process (SIGBUS)."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"values": np.ones(100_000, np.uint8)}))
    with path.open("rb") as file:
        opened = TensorFile(file)
        path.write_bytes(path.read_bytes()[:50_000])
        with pytest.raises(TENSOR_FILE_ERRORS):
            opened.get_tensor("values")


HEADERS = [
    b"",
    b"3",
    b"[]",
    b"null",
    b"{",
    b"\xff",
    b"[" * 100_000,
    b'{"__metadata__": 1, "values": {}}',
    b'{"values": []}',
    b'{"values": {"dtype": 3, "shape": [4], "data_offsets": [0, 4]}}',
    b'{"values": {"dtype": "", "shape": [4], "data_offsets": [0, 4]}}',
    b'{"values": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}',
    b'{"values": {"dtype": "U8", "shape": [-4], "data_offsets": [4, 0]}}',
    b'{"values": {"dtype": "U8", "shape": [4], "data_offsets": [-99, -95]}}',
    b'{"values": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}',
    b'{"values": {"dtype": "U8", "shape": [1000000000000000], "data_offsets": [0, 1000000000000000]}}',
    b'{"values": {"dtype": "U8", "shape": ["4"], "data_offsets": [0, 4]}}',
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_damaged_headers(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    for size in (len(header), 2**62):
        path.write_bytes(size.to_bytes(8, "little") + header + b"1234")
        with pytest.raises(TENSOR_FILE_ERRORS):
            read(path)
