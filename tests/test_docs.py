"""The documents: links lead somewhere, and every command names scripts, targets and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.conf_files import CONF
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import vidcls.cli  # noqa: F401 (registers the resolvers of the configuration)

DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/**/*.md"), *ROOT.glob("notebooks/*.md")]
)
CONFIGS = {
    "train": (CONF, "train"),
    "cross_validate": (CONF, "cross_validate"),
    "evaluate": (CONF, "evaluate"),
    "predict": (CONF, "predict"),
    "select_videos": (CONF, "select_videos"),
    "export": (CONF, "export"),
    "report": (CONF / "report", "report"),
    "inspect_data": (CONF, "inspect_data"),
    "pack_cache": (CONF, "pack_cache"),
}
FIRST_WORDS = ("python", "make", "export", "source", "pip", "tensorboard")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(path: Path) -> list[str]:
    """The lines of the ``sh`` blocks of a document, without comments; a backslash continues a line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(map(shlex.quote, words)) for line in lines if (words := shlex.split(line, comments=True))]


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("https?://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"{name(document)} links to {target}"
        assert not anchor or anchor in anchors(path), f"{name(document)} links to {target}"


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if commands(path)], ids=name)
def test_every_command_exists(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(document):
        words = [word for word in shlex.split(command)]
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # environment variables
            words.pop(0)
        assert words[0] in FIRST_WORDS, f"{name(document)}: {command}"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), f"{name(document)}: {command}"
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{name(document)}: {command}"
            script = Path(words[1]).stem
            if script in CONFIGS and len(Path(words[1]).parts) == 1:
                check_overrides(script, words[2:])


def check_overrides(script: str, words: list[str]) -> None:
    """Composes the configuration as Hydra does, with one value of each swept option; raises for an unknown option."""
    folder, config = CONFIGS[script]
    overrides = []
    multirun = "-m" in words or any(word.startswith("sweep=") for word in words)
    for word in words:
        if word.startswith("-"):
            continue
        option, equals, value = word.partition("=")
        swept = multirun and "," in value and not value.startswith(("[", "{"))
        overrides.append(f"{option}{equals}{value.split(',')[0] if swept else value}")
    if script == "evaluate":
        overrides = [f"++{text}" if text.startswith("policy.target.") else text for text in overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        compose(config, overrides)


def test_every_promise_has_a_test() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 80
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert missing == []
