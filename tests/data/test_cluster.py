from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vidcls.data.options import DecodeLimits, EngineOptions
from vidcls.errors import UserError

cluster = pytest.importorskip("vidcls.data.cluster")
pytestmark = pytest.mark.usefixtures("cluster")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
def test_a_cluster_that_does_not_answer_is_one_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: Ray itself tries for a quarter of an hour."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError) as error:
        cluster.start_ray(EngineOptions("ray", address), DecodeLimits())
    assert error.value.code == "engine.address"


def test_two_readers_that_fail_at_once_are_one_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a disk that is full for both: asyncio would print a traceback for the second."""

    class FailingDriver(cluster.Driver):  # type: ignore[misc, name-defined]
        reader, doing = cluster.BaseReader, "Failing"
        waiting, both = 0, asyncio.Event()

        def num_done(self) -> int:
            return 0

        def give_up(self, item: Any) -> None:
            raise AssertionError

        async def read(self, reader: Any, shard: Any) -> None:
            self.waiting += 1
            if self.waiting == 2:
                self.both.set()
            await self.both.wait()
            raise UserError("room", "a full disk", "Free some.", "disk-full")

    driver = FailingDriver(lambda _: (), num_readers=1, num_videos=2, folder=tmp_path)
    for number in range(2):
        driver.put(cluster.Shard([number]))
    with pytest.raises(UserError):
        asyncio.run(driver.run(Console(quiet=True)))
    gc.collect()
    assert not caplog.records
