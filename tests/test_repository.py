"""How the package is laid out: which file may import what, codes of errors, names and sizes of files."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.commands import ROOT

PACKAGE = sorted((ROOT / "vidcls").rglob("*.py"))
OURS = [*PACKAGE, *sorted((ROOT / "hydra_plugins").rglob("*.py")), *sorted(ROOT.glob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*OURS, *TESTS]}
FLOORS = [
    {"errors", "memory"},
    {"cli", "files", "pages", "tensor_file"},
    {"metrics"},
    {"plots"},
    {"data", "models"},
    {"training", "moderation"},
    {"prediction"},
    {"evaluation", "exporters", "inspection"},
    {"sweeps"},
]
"""Files and folders of vidcls; each imports from itself and from those above it in this list."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HOMES = {
    "matplotlib": ("vidcls/plots/",),
    "decord": ("vidcls/data/decoding/",),
    "av": ("vidcls/data/decoding/", "vidcls/data/demo.py"),
    "hydra": ("vidcls/cli.py", "vidcls/training/", "vidcls/sweeps/", "hydra_plugins/"),
}
MAX_FILE_LINES = 350


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules that a file imports, and what it takes from them."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


def test_every_error_has_a_code() -> None:
    calls = [
        (name(path), node)
        for path in OURS
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError"
    ]
    without = [
        f"{file}:{call.lineno}"
        for file, call in calls
        if len(call.args) < 4 and not {"code", None} & {keyword.arg for keyword in call.keywords}
    ]
    assert len(calls) > 50 and not without


def test_imports_point_one_way() -> None:
    wrong = []
    for path in PACKAGE:
        parts = path.relative_to(ROOT / "vidcls").with_suffix("").parts
        for module, taken in imports(path):
            if module.partition(".")[0] != "vidcls" or parts == ("__init__",):
                continue
            for room in [module.split(".")[1]] if "." in module else taken:
                if room != parts[0] and FLOOR_OF[room] >= FLOOR_OF[parts[0]]:
                    wrong.append(f"{name(path)} imports {module}")
    assert not wrong


def test_no_file_imports_itself_by_way_of_others() -> None:
    files = {name(path).removesuffix(".py").replace("/", "."): path for path in PACKAGE}
    graph = {
        file: {one for module, taken in imports(path) for one in (module, *(f"{module}.{each}" for each in taken))}
        & files.keys()
        for file, path in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_where_they_belong(library: str) -> None:
    users = {name(path) for path in OURS for module, _ in imports(path) if module.partition(".")[0] == library}
    entry_points = {name(path) for path in ROOT.glob("*.py")} if library == "hydra" else set()
    assert users and not [user for user in users - entry_points if not user.startswith(HOMES[library])]


def test_what_is_private_stays_in_its_file() -> None:
    private = [
        f"{name(path)} imports {taken} of {module}"
        for path in OURS
        for module, names in imports(path)
        for taken in names
        if module.partition(".")[0] == "vidcls" and taken.startswith("_") and not taken.startswith("__")
    ]
    assert not private


def test_no_test_imports_another() -> None:
    assert not [
        f"{name(path)} imports {module}"
        for path in TESTS
        for module, _ in imports(path)
        if module.rpartition(".")[2].startswith("test_")
    ]


def test_no_two_files_share_a_name() -> None:
    shared = {"__init__.py", "options.py"}  # each room's own options
    counts = Counter(path.name for path in PACKAGE if path.name not in shared)
    assert not [file for file, count in counts.items() if count > 1]


def test_files_stay_small() -> None:
    lines = {name(path): len(path.read_text().splitlines()) for path in OURS}
    assert not {file: count for file, count in lines.items() if count > MAX_FILE_LINES}
