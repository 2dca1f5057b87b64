from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from vidcls.errors import UserError
from vidcls.files import Owner, csv_bytes, lock_problem, locked, write_atomically


@pytest.mark.parametrize("name", ["a.mp4", "a\rb.mp4", "a\r\nb.mp4", "a\nb.mp4", 'a"b,c.mp4', " =1+1.mp4", "\r"])
def test_a_table_with_any_names_is_read_back_as_it_was(name: str) -> None:
    table = pd.DataFrame({"path": [name, "b.mp4"], "label": ["a", "b"]})
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(csv_bytes(table)), keep_default_na=False), table)


# ---- file systems that are not as a local disk


def failing(code: int, times: int = 10**9) -> Callable[..., None]:
    left = [times]

    def fail(*_: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As with NFS without lockd, or Lustre without -o flock. No marker is left that outlives a killed process."""
    monkeypatch.setattr("fcntl.flock", failing(code))
    monkeypatch.setattr("fcntl.lockf", failing(code))
    for _ in range(2):
        with pytest.warns(UserWarning, match="has no locks") as caught, locked(tmp_path / ".lock", "nobody"):
            content = (tmp_path / ".lock").read_bytes()
        assert len(caught) == 1 and content == b""
    assert os.strerror(code) in lock_problem(tmp_path)


def test_locks_that_work(tmp_path: Path) -> None:
    assert lock_problem(tmp_path) == "" == lock_problem(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [2, 10])
def test_a_file_that_is_open_elsewhere_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """SMB refuses to replace it until it is closed."""
    path, replace, busy = tmp_path / "file", os.replace, failing(errno.EBUSY, times)
    path.write_bytes(b"old")
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("os.replace", lambda *paths: busy() or replace(*paths))
    if times == 2:
        write_atomically(path, b"new")
    else:
        with pytest.raises(OSError, match="busy"):
            write_atomically(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"new" if times == 2 else b"old"]


def test_the_last_to_open_a_folder_owns_it(tmp_path: Path) -> None:
    first = Owner(tmp_path / ".owner")
    first.check()
    second = Owner(tmp_path / ".owner")
    assert os.uname().nodename in second.before and not first.before
    with pytest.raises(UserError) as error:
        first.check()
    assert error.value.code == "other-process" and f"process {os.getpid()} of" in str(error.value)
    second.check()
    second.release()
    assert list(tmp_path.iterdir()) == []
