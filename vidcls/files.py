"""Files that appear whole or not at all, and what identifies their content."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from vidcls.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, and survives a power cut once it has appeared.

    Raises:
        UserError: the disk is full; the part written is removed.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:  # with the rights that other new files have, unlike those of tempfile
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"room for {len(content) / 1e6:.1f} MB in {path.parent}",
                f"a full disk ({error.strerror})",
                "Free some space or point cache_dir elsewhere, then run again: what is stored is kept.",
            ) from error
        raise


def hash_file(file: Path, alive: Callable[[], object] = lambda: None) -> str:
    """The SHA-256 of a file's content, in hexadecimal; ``alive`` is called each MiB."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
            alive()
    return digest.hexdigest()
