from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from helpers.commands import call
from helpers.runs import refused
from hydra.core.override_parser.overrides_parser import OverridesParser

from vidcls.cli import allow_new_keys, compose_config, key_name, quote_overrides, shell_command

NAMES = ["my clips (1)", "runs/num_frames=8,hidden_size=32", "it's, [new] {x}: $5.zip", "50% off", "ünï cødé"]


def overrides(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[object]:
    """The values that Hydra reads from these arguments."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    quote_overrides()
    parsed = OverridesParser.create().parse_overrides([text for text in sys.argv[1:] if text != "-m"])
    return [list(one.sweep_iterator()) if one.is_sweep_override() else one.value() for one in parsed]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["data.source", "resume", "output", "paths.runs_dir"])
def test_paths_may_hold_any_characters(monkeypatch: pytest.MonkeyPatch, option: str, name: str) -> None:
    assert overrides(monkeypatch, f"{option}={name}") == [name]


def test_in_a_sweep_too_where_a_comma_separates_values(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["-m", "data.source=my clips (1)", "seed=0,1"]
    assert overrides(monkeypatch, *given) == ["my clips (1)", [0, 1]]
    assert overrides(monkeypatch, "-m", "sweep.resume=sweeps, (1)") == ["sweeps, (1)"]
    assert overrides(monkeypatch, "-m", "data.source=a,b") == [["a", "b"]]
    assert overrides(monkeypatch, "-m", "data.source=choice(a,b)") == [["a", "b"]]


@pytest.mark.parametrize("name", ["harmful", "0", "001", "1e3", "true", "a.b", "schädlich & Co.", "utf8_hex_30"])
def test_an_option_may_name_any_class(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "run=DIR", f"policy.target.{name}.recall=0.5"])
    allow_new_keys("policy.target")
    (key,) = compose_config("evaluate", *sys.argv[1:]).policy.target
    assert key_name(key) == name


def test_a_command_to_repeat_quotes_only_what_needs_it() -> None:
    words = ["python", "train.py", "data.source='/data/clips'", "run='a b/c'", "seed='1'"]
    command = shell_command(*words)
    assert command.split()[2] == "data.source=/data/clips"
    assert [*shlex.split(command)[:2], *shlex.split(command)[3:]] == [*words[:2], *words[3:]]


NO_SOURCE = ["data=folder", "data.source=nowhere"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("+sed=1", "seed"),
        ("++sed=1", "seed"),
        ("+loss.label_smoothin=0.1", "loss.label_smoothing"),
        ("+loss={label_smoothin:0.1}", "loss.label_smoothing"),
        ("++data.num_frame=8", "data.num_frames"),
    ],
)
def test_a_misspelt_option_is_not_added(text: str, meant: str) -> None:
    """Hydra proposes + for a name that it does not know, and nothing would read it."""
    refused(call("train.py", *NO_SOURCE, text), "[unknown-option]", f"Did you mean {meant}?")


def test_nor_by_the_jobs_of_a_sweep(tmp_path: Path) -> None:
    refused(call("train.py", "-m", *NO_SOURCE, "+sed=0,1", f"hydra.sweep.dir={tmp_path}"), "[unknown-option]")


def test_what_a_target_takes_may_be_added(tmp_path: Path) -> None:
    """Also where a folder of one's own holds a file of a group."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptim: {lr: 0.5}\n")
    given = ["+trainer.val_check_interval=0.5", "+optim.foreach=true", "++data.num_frames=8", "+optim.betas=[0.8,0.9]"]
    given += ["+callbacks.mine={_target_:vidcls.training.callbacks.StayStopped}", "++run_dir=run", "experiment=mine"]
    given.append(f"hydra.searchpath=[file://{tmp_path}]")
    refused(call("train.py", *NO_SOURCE, *given), "[missing-source]")


def test_an_option_of_one_number_or_several() -> None:
    refused(call("train.py", *NO_SOURCE, "optim=logistic", "optim.C=0.1"), "[model.encoder.trainable_from]")
