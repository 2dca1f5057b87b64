"""What jaxtyping checks annotations with: beartype, for each function at its first call, as most are never called."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import beartype


def typechecked(function: Callable[..., Any]) -> Callable[..., Any]:
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        checked = checked or beartype(function)
        return checked(*args, **kwargs)

    return call
