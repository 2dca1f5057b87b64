"""Checks what each ``_target_`` names, before anything is decoded: by its source, as importing torch takes seconds."""

import difflib
import re
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from vidcls.errors import UserError

DYNAMIC = re.compile(r"import \*|__getattr__|globals\(\)[^.]|\bexec\(")  # what may define any name


def check_targets(value: Any, option: str = "") -> None:
    """Raises `UserError` for a ``_target_`` at any depth of ``value`` that does not exist; its code is the option."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        name = f"{option}.{key}" if option else str(key)
        check_targets(child, name)
        if key == "_target_":
            _check_target(str(child), name)


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
