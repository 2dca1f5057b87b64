"""What the tests share: the real clips, one small demo set, and one thread per worker."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch
from helpers.browser import BROWSER
from helpers.commands import TINY, once, train_once
from helpers.conf_files import parse_once
from helpers.decode_workers import start_at_once
from helpers.warm_python import start_server, warm_python
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

# Nothing is freed while modules are imported, and what they hold need not be looked at again.
gc.disable()
# Several workers run side by side; more threads than cores would only slow each other down.
torch.set_num_threads(1)
# For the same reason a single example may take long; each run draws other examples, so that few are enough.
settings.register_profile("shared machine", deadline=None, max_examples=20)
settings.load_profile("shared machine")
parse_once()
# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Left out by `make test-fast`: tests that use one of these, directly or through another fixture, and what decodes,
# starts processes or trains for itself.
SLOW_FIXTURES = {"chromium", "cluster", "demo_folder"}
SLOW_FOLDERS = {"decoding", "models", "plots", "sweeps"}
SLOW_FILES = {
    "cluster.py",
    "machines.py",
    "ray_engine.py",
    "ray_ingest.py",
    "ray_workers.py",
    "test_archive.py",
    "test_configs.py",
    "test_datamodule.py",
    "test_ddp.py",
    "test_demo.py",
    "test_docs.py",
    "test_exported_networks.py",
    "test_exporters.py",
    "test_hashing.py",
    "test_html_report.py",
    "test_ingest.py",
    "test_ingest_remote.py",
    "test_inspect_data.py",
    "test_leaks_and_damage.py",
    "test_near_duplicates.py",
    "test_notebooks.py",
    "test_old_runs.py",
    "test_own_model.py",
    "test_predict_remote.py",
    "test_ray_engine.py",
    "test_ray_machines.py",
    "test_recipe.py",
    "test_remote.py",
    "test_resumed_data.py",
    "test_review_decisions.py",
    "test_review_loop.py",
    "test_review_page.py",
    "test_startup.py",
    "test_store.py",
}
# Of one training, which `make test-fast` runs too.
ONE_RUN = {"test_a_run_folder_holds_what_the_contract_says", "test_metrics_have_every_figure"}


DOT = Image.new("L", (1, 1))


def pytest_configure() -> None:
    """Before the workers start, so that they share one."""
    start_server()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries report what is left


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make test-fast` does not even import what it leaves out: Ray, timm, torchvision take seconds."""
    return True if config.option.markexpr == "not slow" and _is_slow(collection_path) else None


def _is_slow(path: Path) -> bool:
    return path.parent.name in SLOW_FOLDERS or path.name in SLOW_FILES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, and puts it first in each half of the list: of two workers each begins with one of them."""
    slow, fast = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        uses = isinstance(item, pytest.Function) and not SLOW_FIXTURES.isdisjoint(item.fixturenames)
        uses = uses and item.name not in ONE_RUN
        if uses or _is_slow(item.path):
            item.add_marker(pytest.mark.slow)
            slow.append(item)
        else:
            fast.append(item)
    # Together, so that one worker alone starts Ray; and first, as they wait for it.
    slow.sort(key=lambda item: "cluster" not in getattr(item, "fixturenames", ()))
    half = len(slow) // 2
    rest = max(0, len(items) // 2 - half)
    items[:] = slow[:half] + fast[:rest] + slow[half:] + fast[rest:]


@pytest.fixture(scope="session", autouse=True)
def decode_workers() -> None:
    """As each command starts one or two."""
    start_at_once()


# Where a run makes its figures.
FIGURES = {
    "vidcls.evaluation.results": ("confusion", "precision_recall", "reliability", "roc"),
    "vidcls.training.artifacts": ("confusion", "learning_curves"),
    "vidcls.training.callbacks": ("confusion",),
    "vidcls.training.records": ("strips",),
}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take half the time of a small run: only tests of pictures and the shared runs make and draw them."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(Figure, "draw", lambda *_: None)
        monkeypatch.setattr(Figure, "savefig", lambda _, file, **__: DOT.save(file, "PNG"))
        for name, figures in FIGURES.items():
            if name in sys.modules:
                for figure in figures:
                    monkeypatch.setattr(sys.modules[name], f"{figure}_figure", lambda *_: Figure())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips (fights/, hard/, weights/) that VIDCLS_REAL_DATA names."""
    value = os.environ.get("VIDCLS_REAL_DATA", "")
    if not value:
        pytest.skip("VIDCLS_REAL_DATA is not set: it names the folder of real clips")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"VIDCLS_REAL_DATA names no folder: {folder}")
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers share: under xdist each has its own base folder, in one that is common to all."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray, started once for all tests of a worker, its processes at once; RAY_ADDRESS names another one to be used."""
    from vidcls.data.cluster import ray, start_ray
    from vidcls.data.options import DecodeLimits, EngineOptions

    with patch.object(sys, "executable", warm_python()):
        start_ray(EngineOptions("ray", os.environ.get("RAY_ADDRESS")), DecodeLimits(workers=2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def demo_folder(shared: Path) -> Path:
    """A small demo set, drawn once and read by all workers: copy it before changing anything in it."""
    # Imported here, not above: the jaxtyping hook must be in place before vidcls is imported.
    from vidcls.data.demo import draw_demo

    return once(shared, "demo", lambda folder: draw_demo(folder, seed=0, creators=4, videos_per_creator=3))


@pytest.fixture(scope="session")
def tiny(shared: Path, demo_folder: Path) -> list[str]:
    """The overrides of a short run on the small demo set, decoded once for all."""
    data = [f"data.source={demo_folder}", f"cache_dir={shared / 'cache'}"]
    return [*TINY, *data, "trainer.max_epochs=3", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="session")
def finished(shared: Path, tiny: list[str]) -> Path:
    """The folder of a finished run, to be read only; what it printed lies in printed.txt beside its files."""
    return train_once(shared, "finished", *tiny)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # here, as most tests do without

    if BROWSER is None:
        pytest.skip("no chromium or chrome on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser of its own, with nothing kept."""
    context = chromium.new_context()
    yield context
    context.close()
