"""UserError: a mistake that the user can fix. It ends a command with exit code 2 and one clear line, no traceback."""

import errno
import math
from typing import Any

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_ERRORS = {*FULL_DISK, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTDIR}
# Of network file systems: what a server does not support, has open elsewhere, or when it cannot be reached.
DISK_ERRORS |= {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EXDEV, errno.EBUSY, errno.ETXTBSY, errno.ENOTEMPTY}
DISK_ERRORS |= {errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}


class UserError(Exception):
    """A configuration or an input that cannot be used.

    ``code`` is a short, stable name in kebab-case for scripts and tests, such as ``empty-source``; for a single option
    with a bad value it is the option's name, such as ``data.num_frames``.

    Example:
        >>> str(UserError("a folder of videos", "an empty folder: clips/", "Check data.source.", "empty-source"))
        'expected a folder of videos; got an empty folder: clips/. Check data.source. [empty-source]'
    """

    def __init__(self, expected: str, got: str, remedy: str, code: str = "") -> None:
        super().__init__(expected, got, remedy, code)  # separately, so that it can be pickled

    @property
    def code(self) -> str:
        return str(self.args[3])

    def __str__(self) -> str:
        expected, got, remedy, code = self.args
        return printable(f"expected {expected}; got {got}. {remedy}" + (f" [{code}]" if code else ""))


def find_user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` in a chain of causes, as Hydra wraps exceptions; None for bugs.

    Errors of the disk (full, read-only, damaged, not permitted) become one, whichever library raised them.
    """
    while error is not None:
        if isinstance(error, UserError):
            return error
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            place = f" {error.filename}" if error.filename else ""
            return UserError(
                f"to read or write{place or ' a file'}",
                f"{error.strerror}",
                "Check the disk and its permissions, then repeat the command; a run continues with resume=DIR.",
                "disk",
            )
        resolving = type(error).__name__ == "InterpolationResolutionError"  # OmegaConf's, which hides the cause
        error = error.__context__ if resolving else error.__cause__
    return None


def printable(text: str) -> str:
    r"""A text for a terminal: control characters, with which a file's name could write over it, appear as \x1b.

    >>> printable("red \x1b[31m.mp4")
    'red \\x1b[31m.mp4'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_line(error: object, limit: int = 200) -> str:
    """The message of an error on one line of at most ``limit`` characters."""
    return " ".join(str(error).split())[:limit]


def check_flag(option: str, value: Any) -> None:
    """Raises `UserError` unless ``value`` is a bool: on the command line ``no`` and ``off`` are texts, and so true."""
    if not isinstance(value, bool):
        raise UserError(f"{option} to be true or false", repr(value), f"Change {option}.", option)


def check_integer(option: str, value: Any, minimum: int = 1, maximum: float | int = math.inf) -> int:
    """``value`` if it is an integer from ``minimum`` to ``maximum``; otherwise raises `UserError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        limits = f">= {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise UserError(f"{option} to be an integer {limits}", repr(value), f"Change {option}.", option)
    return value


def check_seed(option: str, value: Any) -> int:
    """``value`` if it is a seed that NumPy and Lightning take; otherwise raises a `UserError`."""
    return check_integer(option, value, 0, 2**32 - 1)


def check_number(
    option: str, value: Any, minimum: float = 0.0, maximum: float = math.inf, *, open_ends: bool = False
) -> float:
    """``value`` if it is in [``minimum``, ``maximum``], or for ``open_ends`` between them; else raises `UserError`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not minimum <= value <= maximum or (open_ends and value in (minimum, maximum)):
        limits = f"{'>' if open_ends else '>='} {minimum:g}"
        if maximum < math.inf:
            limits = f"between {minimum:g} and {maximum:g}, both {'excluded' if open_ends else 'included'}"
        expected = f"{option} to be a finite number {limits}"
        raise UserError(expected, repr(value), f"Change {option}.", option)
    return float(value)


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``; otherwise raises `UserError`."""
    if value not in choices:
        raise UserError(f"{option} to be one of {', '.join(choices)}", repr(value), f"Change {option}.", option)
    return str(value)
