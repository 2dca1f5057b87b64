"""Checks what each ``_target_`` names, before anything is decoded: by its source, as importing torch takes seconds."""

import difflib
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from vidcls.errors import UserError

DYNAMIC = re.compile(r"import \*|__getattr__|globals\(\)[^.]|\bexec\(")  # what may define any name


def check_targets(plain: dict[str, Any]) -> None:
    """Raises `UserError` for a ``_target_`` of a configuration that does not exist; its code is the option."""
    for option, value in leaves(plain):
        if option.rpartition(".")[2] == "_target_":
            _check_target(str(value), option)


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a dict or list, with its dotted key; for targets any value."""
    if isinstance(value, dict | list) and key.rpartition(".")[2] != "_target_":
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _check_target(target: str, option: str) -> None:
    package, *parts = target.split(".")
    spec = find_spec(package) if package.isidentifier() else None
    while spec and parts:
        inner = PathFinder.find_spec(f"{spec.name}.{parts[0]}", spec.submodule_search_locations or [])
        if inner is None:
            break
        spec, parts = inner, parts[1:]
    remedy = "Check the name; the package must be installed, or its folder on PYTHONPATH."
    if spec:
        file = Path(spec.origin or "namespace.py")  # a namespace package has no file, and no names of its own
        source = file.read_text(encoding="utf-8") if spec.origin and file.suffix == ".py" else ""
        names = set(re.findall(r"\w+", source))
        if not parts or file.suffix != ".py" or parts[0] in names:
            return
        if DYNAMIC.search(source):
            with suppress(ImportError, AttributeError):
                resolve_name(target)
                return
        if alike := difflib.get_close_matches(parts[0], names, 1):
            remedy = f"Did you mean {spec.name}.{alike[0]}?"
    raise UserError(f"what can be imported in {option}", target, remedy, option)
