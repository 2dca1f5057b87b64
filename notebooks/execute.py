"""Runs the notebooks again and keeps their outputs, without what differs from one machine or minute to the next.

python notebooks/execute.py [NOTEBOOK ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
SECONDS = 300  # for one cell


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Gives the notebook fresh outputs, run by this environment's Python.

    It starts in ``folder``/here, and its temporary files go into ``folder``.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    here = folder / "here"
    here.mkdir()
    limits = {"timeout": SECONDS, "startup_timeout": SECONDS}
    client = NotebookClient(notebook, **limits, resources={"metadata": {"path": str(here)}})
    # One thread: the same figures on any number of cores, and several notebooks side by side in the tests.
    known = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": known, "TMPDIR": str(folder)}  # whatever a kernel leaves is there
    client.execute(env=os.environ | settings)
    return clean(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Leaves out times, versions and what went to stderr."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    """Runs those named, or all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(nbformat.read(path, as_version=4), Path(folder)), path)
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
