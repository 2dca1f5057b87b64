"""What the tests share: the real clips, one small demo set, and one thread per worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

# Several workers run side by side; more threads than cores would only slow each other down.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips (fights/, hard/, weights/) that VIDCLS_REAL_DATA names."""
    value = os.environ.get("VIDCLS_REAL_DATA", "")
    if not value:
        pytest.skip("VIDCLS_REAL_DATA is not set: it names the folder of real clips")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"VIDCLS_REAL_DATA names no folder: {folder}")
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo set, drawn once and read by all workers: copy it before changing anything in it."""
    # Imported here, not above: the jaxtyping hook must be in place before vidcls is imported.
    from vidcls.data.demo import draw_demo

    # Under xdist each worker has its own base folder; their parent is common to all of them.
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, drawn = root / "demo", root / "demo.drawn"
    with FileLock(root / "demo.lock"):
        if not drawn.exists():
            draw_demo(folder, seed=0, creators=4, videos_per_creator=3)
            drawn.touch()
    return folder
