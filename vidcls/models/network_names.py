"""Checks the names of networks by the source of timm and torchvision, as to import them takes seconds."""

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vidcls.errors import UserError

REGISTERED = re.compile(r"^@register_model.*\n(?:@.*\n|.*\)\n)*?def (\w+)\(", re.MULTILINE)


@cache
def check_network(name: str) -> None:
    """Raises `UserError` if there is no image network timm/NAME, timm/NAME.TAG or torchvision/NAME."""
    library, _, model = name.partition("/")
    model, _, tag = model.partition(".")
    known: list[str] = []
    for package in ("timm", "torchvision"):
        (folder,) = find_spec(package).submodule_search_locations  # type: ignore[union-attr, misc]
        source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path(folder, "models").glob("*.py")))
        names = REGISTERED.findall(source)
        if package == library and model in names and (not tag or re.search(rf"\b{re.escape(tag)}\b", source)):
            return
        tagged = re.findall(rf"['\"]({re.escape(model)}\.\w+)['\"]", source) if model in names else []
        known += [f"{package}/{found}" for found in (*names, *tagged)]
    raise UserError(
        "model.encoder.name to be cnn, timm/NAME or torchvision/NAME",
        repr(name),
        f"The nearest are {', '.join(difflib.get_close_matches(name, known, cutoff=0))}.",
        "model.encoder.name",
    )
