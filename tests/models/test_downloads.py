"""Weights that cannot be downloaded are refused before anything is decoded."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import pytest
from helpers.commands import train
from helpers.runs import refused

from vidcls.errors import UserError
from vidcls.models import downloads
from vidcls.models.downloads import check_downloadable

NAMES = ["timm/tf_efficientnet_lite0", "torchvision/resnet18", "r3d_18"]


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # to be restored
    for name in ("HF_HUB_CACHE", "HF_HOME", "TORCH_HOME", "HF_HUB_OFFLINE", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Sockets fail; gives the names that were looked up."""
    asked = []

    def fail(host: str, *_: Any, **__: Any) -> NoReturn:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_it_says_how_to_name_a_file(no_network: list[Any], name: str) -> None:
    with pytest.raises(UserError, match=r"model\.encoder\.weights=FILE.*torch\.save") as error:
        check_downloadable(name, "model.encoder.weights")
    assert error.value.code == "weights-download" and name.rpartition("/")[2] in str(error.value)
    assert no_network == ["huggingface.co" if name.startswith("timm") else "download.pytorch.org"]  # once


def test_a_run_ends_before_it_has_a_folder(no_network: list[Any], demo_folder: Path, tmp_path: Path) -> None:
    folders = [f"data.source={demo_folder}", f"cache_dir={tmp_path / 'frames'}", f"run_dir={tmp_path / 'run'}"]
    result = train("experiment=strong", "data=folder", *folders)
    refused(result, "weights-download", "model.encoder.weights=FILE")
    assert not (tmp_path / "frames").exists() and not (tmp_path / "run").exists()
    assert result.stdout == "" and no_network == ["huggingface.co"]


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.05)
        with pytest.raises(UserError) as error:
            check_downloadable(NAMES[0], "model.encoder.weights")
    assert error.value.code == "weights-download"


@pytest.fixture
def server() -> Iterator[str]:
    class NotFound(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as found:
        Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_any_answer_will_do(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server)
    check_downloadable(NAMES[0], "model.encoder.weights")
    assert "HF_HUB_OFFLINE" not in os.environ


CACHED = {
    NAMES[0]: "huggingface/hub/models--timm--tf_efficientnet_lite0.in1k/snapshots/1/model.safetensors",
    NAMES[1]: "torch/hub/checkpoints/resnet18-f37072fd.pth",
    NAMES[2]: "torch/hub/checkpoints/r3d_18-b3b3357e.pth",
}


@pytest.mark.parametrize("name", NAMES)
def test_cached_weights_need_no_network(name: str, no_network: list[Any], tmp_path: Path) -> None:
    for other, path in CACHED.items():  # of other networks first
        if other == name:
            with pytest.raises(UserError):
                check_downloadable(name, "model.encoder.weights")
        (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache" / path).touch()
    check_downloadable(name, "model.encoder.weights")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
