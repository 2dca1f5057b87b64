"""A policy's file: what is written is read back, and what is wrong in it is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.policies import CLASSES, MODEL, policy
from hypothesis import given, settings
from hypothesis import strategies as st

from vidcls.errors import UserError
from vidcls.moderation.policy import (
    decide,
    load_policy,
    save_policy,
)

# Save and load


def test_identity_is_of_the_content() -> None:
    assert policy().identity == policy().identity
    assert len(policy().identity) == 12
    assert policy().identity != policy(temperature=1.0000000000000002).identity


def as_json() -> dict[str, Any]:
    return json.loads(json.dumps(asdict(policy())))


def write(path: Path, content: dict[str, Any]) -> None:
    """With the identity that belongs to this content."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    identity = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    path.write_text(json.dumps({**content, "identity": identity}))


def refused(path: Path, classes: Sequence[str] = CLASSES, model: str = MODEL) -> None:
    with pytest.raises(UserError) as error:
        load_policy(path, classes, model)
    assert error.value.code == "policy-file" and str(error.value).count("\n") == 0


def test_load_refuses_what_is_no_policy_for_this_network(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    refused(path)
    for content in (b"\xff\xfe", b"{", b"[]", b"[" * 100_000, b'{"identity": "0"}'):
        path.write_bytes(content)
        refused(path)
    save_policy(policy(), path)
    refused(path, classes=["a", "b"])
    refused(path, classes=["harmful", "safe", "adult"])  # the order is that of the columns
    refused(path, model="ffff")
    path.write_text(path.read_text().replace("0.75", "0.95"))
    refused(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"review": {"harmful": 2.0, "adult": 0.5}, "block": {"harmful": 2.0, "adult": 0.875}},
        {"review": {"harmful": math.nan, "adult": 0.5}},
        {"block": {"harmful": math.inf, "adult": 0.875}},
        {"review": {"harmful": -0.1, "adult": 0.5}},
        {"review": {"harmful": 0.8, "adult": 0.5}},  # above block
        {"review": {"adult": 0.5}},
        {"block": {"harmful": 0.75, "adult": 0.875, "gore": 0.9}},
        {"review": {"harmful": "0.25", "adult": 0.5}},
        {"review": {"harmful": True, "adult": 0.5}, "block": {"harmful": True, "adult": 0.875}},
        {"review": None},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"temperature": 10**400},
        {"temperature": None},
        {"safe_class": "gore"},
        {"safe_class": None},
        {"classes": ["safe", "harmful"]},
        {"classes": "safe"},
        {"classes": None},
        {"classes": [{}]},
        {"support": {"safe": "many"}},
        {"support": 3},
        {"targets": {"harmful": 0.9}},
        {"calibration_error": {}},
        {"more": 1},
    ],
)
def test_a_policy_file_with_a_right_identity_and_wrong_values_is_refused(tmp_path: Path, changes: dict) -> None:
    """Whoever wrote it: thresholds of 2.0 would allow everything."""
    path = tmp_path / "policy.json"
    content = as_json() | changes
    for name in (None, *changes):
        if name is not None:  # and without that key
            del content[name]
        write(path, content)
        if not (name == "more" and len(changes) == 1):
            refused(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.sampled_from([*CLASSES, "recall", "x"]), child),
    max_leaves=6,
)


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(sorted(asdict(policy()))), json_values)
def test_any_value_in_a_policy_file_is_valid_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated_policy.json"
    content = as_json() | {key: value}
    write(path, content)
    try:
        loaded = load_policy(path, CLASSES, MODEL)
    except UserError as error:
        assert error.code == "policy-file" and "\n" not in str(error)
        return
    assert all(0 <= loaded.review[name] <= loaded.block[name] <= 1 for name in ("harmful", "adult"))
    assert decide(loaded, np.array([0.0, 1.0, 0.0]), "ok", "").decision != "allow"


def test_a_policy_of_an_older_run_is_read(tmp_path: Path) -> None:
    """It calls the safe class by another key, and its identity is of that content."""
    content = as_json()
    content["harmless"] = content.pop("safe_class")
    write(tmp_path / "policy.json", content)
    assert load_policy(tmp_path / "policy.json", CLASSES, MODEL) == policy()
