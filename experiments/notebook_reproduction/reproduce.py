"""The notebook's settings on the real clips: five seeds from the folder, one from a zip of it. See README.md.

VIDCLS_REAL_DATA=... python experiments/notebook_reproduction/reproduce.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.seeds import run_seeds, write_tables
from experiments.tools import ROOT, real_clips

SEEDS = range(5)


def sixty_clips(clips: Path, folder: Path) -> Path:
    """As many training clips as the notebook had: the first 30 of each class by name, with the whole val split."""
    if not folder.exists():
        for label in ("fight", "nofight"):
            shutil.copytree(clips / "val" / label, folder / "val" / label)
            (folder / "train" / label).mkdir(parents=True)
            for file in sorted((clips / "train" / label).glob("*.mp4"))[:30]:
                shutil.copy(file, folder / "train" / label)
    return folder


def main() -> None:
    """Runs all and writes results.csv and summary.csv."""
    clips = real_clips()
    if clips is None:
        sys.exit("expected VIDCLS_REAL_DATA to name the folder of real clips; got nothing there. Set it.")
    scratch = ROOT / "runs" / "notebook_reproduction"
    wrapper = scratch / "wrapped.zip"
    if not wrapper.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        shutil.make_archive(str(wrapper.with_suffix("")), "zip", clips.parent, clips.name)
    sixty = sixty_clips(clips, scratch / "sixty")
    settings = ["experiment=notebook", "data=folder"]
    tables = [
        run_seeds("folder", scratch, SEEDS, *settings, f"data.source={clips}"),
        run_seeds("zip", scratch, range(1), *settings, f"data.source={wrapper}"),
        run_seeds("sixty", scratch, SEEDS, *settings, f"data.source={sixty}"),
    ]
    write_tables(Path(__file__).parent, tables)


if __name__ == "__main__":
    main()
