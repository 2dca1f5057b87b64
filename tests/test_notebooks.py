"""The notebooks run from the first cell to the last, show what their text says, and their kept outputs are clean."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from helpers.commands import ROOT
from helpers.warm_python import warm_python
from nbformat import NotebookNode

sys.path.insert(0, str(ROOT / "notebooks"))
from execute import execute

# What must be in the text that a notebook prints, as regular expressions, and how many pictures it draws. The longest
# comes first, so that no worker is left alone with it.
SHOWN = {
    "3_read_a_sweep": ([r"8 jobs, 8 done, 0 failed", r"#1 leads #4", r"best of 8 equally good jobs"], 3),
    "1_look_at_a_dataset": ([r"same bytes", r"undecodable", r"by creator: 0 leaks"], 2),
    "2_from_the_keras_notebook": ([r"2,207,235 trainable", r"test +accuracy \d\.\d\d, 95 % interval"], 2),
    "5_review": ([r"60 decisions of 2 reviewers", r"train +decisions +ok", r"difference [+-]\d\.\d\d, 95 %"], 0),
    "4_error_analysis": ([r"at least 59 val videos", r"harmful allowed", r"95 % by creators"], 3),
}
# What makes them shorter here: one epoch and fewer videos show as well that all of it runs.
SHORTER = {
    r"trainer\.max_epochs=\d\"": 'trainer.max_epochs=1", "figures=false"',
    r"creators=10, videos_per_creator=6": "creators=6, videos_per_creator=3",
    r"creators=16, videos_per_creator=6": "creators=6, videos_per_creator=3",
    r"creators=24, videos_per_creator=6": "creators=30, videos_per_creator=3",
    r"creators=28, videos_per_creator=3": "creators=16, videos_per_creator=3",
    r"creators=28, videos_per_creator=9": "creators=28, videos_per_creator=3",
    r"\(0\.4, 0\.5, 0\.6, 0\.7, 0\.77\)": "(0.3, 0.4)",  # fewer videos support no more
}


def printed(notebook: NotebookNode) -> str:
    """All text of the outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    return "\n".join(output.get("text") or output.data.get("text/plain", "") for output in outputs)


def check_shown(notebook: NotebookNode, name: str) -> None:
    patterns, pictures = SHOWN[name]
    text = printed(notebook)
    for pattern in patterns:
        assert re.search(pattern, text), f"{pattern} not in:\n{text}"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_runs_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", warm_python())  # of the kernel
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for pattern, shorter in SHORTER.items():
            cell.source = re.sub(pattern, shorter, cell.source)
    check_shown(execute(notebook, tmp_path), name)
    assert list((tmp_path / "here").iterdir()) == []  # it writes into a temporary folder only


@pytest.mark.parametrize("name", SHOWN)
def test_kept_outputs_are_complete_and_clean(name: str) -> None:
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_shown(notebook, name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.metadata == {} for cell in notebook.cells)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and ("code", "code") not in pairwise(kinds)  # each is introduced
    text = path.read_text()
    for noise in ("/tmp", "/home", "/root", "/work", "/Users", "site-packages", "stderr", "\\u001b"):
        assert noise not in text, noise
    assert path.stat().st_size < 500_000
