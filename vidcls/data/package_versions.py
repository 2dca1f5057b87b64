"""The versions of what frames and probabilities depend on, which machines that work together must share."""

import hashlib
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from vidcls.data.decoding.result import decoder_versions


@cache
def package_versions() -> dict[str, str]:
    """What frames and probabilities depend on; of builds of the same version, as ``+cpu`` and ``+cu130``, one."""
    found = {"vidcls": source_digest(), **decoder_versions()}
    for name in ("numpy", "torch", "torchvision", "timm"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name).partition("+")[0]
    return found


def source_digest() -> str:
    """The SHA-256 of this package's own files."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
