"""The public API: every name is there, and none is imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vidcls


@pytest.mark.parametrize("name", vidcls.__all__)
def test_each_name_is_there(name: str) -> None:
    value = getattr(vidcls, name)
    assert value.__module__.startswith("vidcls.") and value.__doc__


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        vidcls.no_such_thing  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, vidcls; print({'torch', 'lightning', 'pandas', 'numpy', 'matplotlib', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
