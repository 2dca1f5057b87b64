"""Which exceptions end a command with one line."""

from __future__ import annotations

import errno

import pytest

from vidcls.errors import UserError, check_integer, check_number, find_user_error


def test_a_user_error_is_found_behind_what_hydra_raises() -> None:
    cause = UserError("one", "two", "Three.", "four")
    outer = RuntimeError("Error in call to target")
    outer.__cause__ = cause
    assert find_user_error(outer) is cause
    assert find_user_error(RuntimeError("a bug")) is None


LOCAL = ["ENOSPC", "EIO", "EACCES", "EROFS", "ENOTDIR"]
OF_A_SERVER = ["EXDEV", "EBUSY", "ENOLCK", "ENOTCONN", "EOPNOTSUPP"]


@pytest.mark.parametrize("code", [getattr(errno, name) for name in [*LOCAL, *OF_A_SERVER]])
def test_what_a_disk_refuses_is_no_bug(code: int) -> None:
    error = find_user_error(OSError(code, "reason", "file.bin"))
    assert error is not None and error.code == "disk" and "file.bin; got reason" in str(error)


def test_a_file_that_is_missing_is_a_bug() -> None:
    assert find_user_error(FileNotFoundError(errno.ENOENT, "No such file", "file.bin")) is None


def test_a_name_in_an_error_does_not_move_the_cursor() -> None:
    text = str(UserError("a video", "red \x1b[31m\n.mp4", "Rename it.", "code"))
    assert text == r"expected a video; got red \x1b[31m\n.mp4. Rename it. [code]"


def test_numbers_out_of_range_are_refused_by_the_name_of_their_option() -> None:
    with pytest.raises(UserError) as error:
        check_integer("seed", -1, 0)
    assert error.value.code == "seed" and "an integer >= 0" in str(error.value)
    with pytest.raises(UserError) as error:
        check_number("optim.lr", float("nan"))
    assert error.value.code == "optim.lr" and "inf" not in str(error.value).replace("finite", "")
