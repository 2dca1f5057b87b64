"""Writes checkpoints atomically, and keeps the last but one."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vidcls.files import write_atomically
from vidcls.training.run_folder import PREVIOUS_CHECKPOINT, check_held


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically, unlike Lightning; last.ckpt is kept as previous.ckpt when it is replaced."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        check_held()
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)
        if path.name == "last.ckpt" and path.exists():
            previous = path.with_name(PREVIOUS_CHECKPOINT)
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, previous)
        write_atomically(path, content.getvalue())
