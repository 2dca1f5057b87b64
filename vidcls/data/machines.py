"""What machines of a Ray cluster must have in common, how errors name them, and whether the head answers."""

import asyncio
import atexit
import math
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError

from vidcls.data.file_hashes import FileState, HashResult, hash_video
from vidcls.data.options import DecodeLimits, FetchLimits
from vidcls.data.package_versions import package_versions
from vidcls.errors import UserError, find_user_error

READS_AT_ONCE = 2  # shards per reader: while it waits for the last batch of one, it decodes the next
ASK_SECONDS = 1.0  # between two questions to the head of the cluster
SILENT_SECONDS = 40.0  # of the head, after which it is lost; after 60 s Ray ends the process, without a word


class SickMachineError(Exception):
    """A reader cannot go on, by no fault of the videos that it reads: another one has to."""


class UnreachableError(RayError):
    """A reader does not answer, though it may be alive."""


def check_address(address: str | None) -> None:
    """Raises `UserError` where nothing answers at an address: Ray would try for a quarter of an hour."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS")
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        remedy = "Check engine.address, RAY_ADDRESS, and whether the head of the cluster runs."
        raise UserError("a Ray cluster", f"{address}: {error}", remedy, "engine.address") from None


def num_machines() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())


def count_readers(limits: DecodeLimits, num_videos: int) -> int:
    """One per CPU of the cluster, but at most ``limits.workers`` and one per video."""
    num_cpus = max(ray.cluster_resources().get("CPU", 1), 1)
    return int(min(limits.workers or math.inf, num_cpus, max(num_videos, 1)))


def fetch_share(limits: FetchLimits, num_readers: int) -> FetchLimits:
    """A shard's share of a machine's limits; its disk space always suffices for the largest video."""
    per_machine = math.ceil(num_readers / num_machines())
    space = max(limits.max_gigabytes, limits.space_gigabytes / (per_machine * READS_AT_ONCE))
    return replace(limits, workers=max(1, limits.workers // per_machine), space_gigabytes=space)


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises `UserError` if this machine has other packages than the one with these `package_versions`."""
    found = package_versions()
    if others := [name for name in wanted if found.get(name) != wanted[name]]:
        expected = "the machines of the cluster to have the packages of this one, as results depend on them"
        remedy = "Install the same versions (of vidcls: the same files), and start Ray there again."
        got = ", ".join(f"{name} {found.get(name, 'not installed')} instead of {wanted[name]}" for name in others)
        raise UserError(expected, got, remedy, "cluster-packages")


def not_shared(file: Path, hashed: HashResult, machine: str) -> UserError:
    """The error of a machine that does not find in a file what this one does."""
    expected = "the machines of the cluster to find the same videos as this one at the same paths"
    got = f"{file} on machine {machine}: {hashed.error or 'another content'}"
    remedy = "Put them on a shared file system; if it is one, which may show old files for a while, repeat the command."
    return UserError(expected, got, remedy, "shared-paths")


@contextmanager
def naming_machine() -> Iterator[None]:
    """Names this machine in errors that its user can fix, also those of its disk."""
    try:
        yield
    except RayError:
        raise
    except Exception as error:
        if (known := find_user_error(error)) is None:
            raise
        expected, got, remedy, code = known.args
        raise UserError(expected, f"on machine {platform.node()}: {got}", remedy, code) from None


def seen_here(file: Path, hashed: HashResult) -> HashResult:
    """A hash from another machine with the file's state on this one, or what this one finds if the content differs."""
    if FileState.of(file) == hashed.state:
        return hashed
    here = hash_video(file)
    return replace(hashed, state=here.state) if here.sha256 == hashed.sha256 else here


class Head:
    """The head of the cluster, which is asked for its machines again and again, in a thread: it may never answer."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._ask()
        threading.Thread(target=self._ask_again, daemon=True).start()

    def _ask_again(self) -> None:
        while not self._ended.wait(ASK_SECONDS):
            with suppress(Exception):  # the type that Ray raises
                self._ask()

    def _ask(self) -> None:
        nodes = ray.nodes()
        # Those that may have readers, by Ray's names.
        self.machines = [one["NodeID"] for one in nodes if one["Alive"] and one["Resources"].get("CPU")]
        self._answered = time.monotonic()

    async def ask(self) -> list[str]:
        """``machines`` of now."""
        asked = time.monotonic()
        while self._answered < asked:
            await asyncio.sleep(ASK_SECONDS / 10)
        return self.machines

    def check(self) -> None:
        """Raises `UserError` if it has not answered for `SILENT_SECONDS`."""
        if (silent := time.monotonic() - self._answered) > SILENT_SECONDS:
            atexit.register(_exit_at_once)
            remedy = "Check it, and the network; then repeat the command: what is done is kept."
            got = f"no answer for {silent:.0f} s"
            raise UserError("the head of the Ray cluster to answer", got, remedy, "cluster-lost")

    def close(self) -> None:
        self._ended.set()


def _exit_at_once() -> None:
    """Ends this process without what Ray does at its end, which waits for the head."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)
