from __future__ import annotations

import io

import pandas as pd
import pytest

from vidcls.files import csv_bytes


@pytest.mark.parametrize("name", ["a.mp4", "a\rb.mp4", "a\r\nb.mp4", "a\nb.mp4", 'a"b,c.mp4', " =1+1.mp4", "\r"])
def test_a_table_with_any_names_is_read_back_as_it_was(name: str) -> None:
    table = pd.DataFrame({"path": [name, "b.mp4"], "label": ["a", "b"]})
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(csv_bytes(table)), keep_default_na=False), table)
