"""The processes of engine=ray: readers fetch, hash and decode videos, networks classify their windows.

Both are stateless, so that they can be restarted anywhere. Imports no torch.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import ray
from jaxtyping import Float, UInt8
from ray.exceptions import RayActorError, RayTaskError

from vidcls.data.cluster import BaseReader
from vidcls.data.decoding.plan import Spans, WindowPlan
from vidcls.data.decoding.pool import create_pool, read_windows
from vidcls.data.decoding.receiver import DEFERRED
from vidcls.data.decoding.result import DecodeResult
from vidcls.data.decoding.worker import Source
from vidcls.data.file_hashes import FileState, HashResult, hash_video
from vidcls.data.machines import SickMachineError, check_versions, naming_machine, seen_here
from vidcls.data.options import DecodeLimits, FetchLimits
from vidcls.data.package_versions import package_versions
from vidcls.data.parallel_fetch import CancelledError, FetchSpace, map_unordered
from vidcls.data.remote import FetchedFile, UnfetchableError, try_fetch
from vidcls.data.urls import is_url
from vidcls.errors import UserError, one_line
from vidcls.memory import keep_freed_memory
from vidcls.prediction.catalogue import Content, Result
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.video_stream import VideoFound, classify, collect

LONG = "long"
IN_FLIGHT = 1  # batches of a reader that a network classifies while the reader decodes the next
# The local file or copy of a video; why there is none; or None if its shard has no disk space left for it.
Found = tuple[Path, HashResult] | UnfetchableError | None
Described = tuple[DecodeResult, Result]


@dataclass(frozen=True)
class ReaderConfig:
    """How videos are read and described, the same for all readers."""

    plan: WindowPlan
    limits: DecodeLimits
    fetch_limits: FetchLimits  # for one shard
    batch_size: int
    classes: list[str]
    exit_threshold: float | int
    describe: Callable[..., Result]
    search: CoarseSearch
    make_predictor: list[Any]  # a reference to a pickled function
    threads: int  # of a network that runs on CPUs
    versions: Mapping[str, str] = field(default_factory=package_versions)  # of the machine of the command


class Network:
    """The network on one device; built at a call, so that Ray can restart it without arguments."""

    def __init__(self) -> None:
        self._predictor: Any = None  # a `Predictor`, which imports torch

    @naming_machine()
    def load(self, config: ReaderConfig) -> None:
        check_versions(config.versions)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as predict.py does, before torch is loaded
        import torch

        keep_freed_memory()
        torch.set_num_threads(config.threads)  # Ray sets 1; sums may round differently with another number
        (reference,) = config.make_predictor
        self._predictor = ray.cloudpickle.loads(ray.get(reference))()

    def predict(self, windows: UInt8[np.ndarray, "B F H W 3"], config: ReaderConfig) -> Float[np.ndarray, "B Q"]:
        """See `vidcls.prediction.predictor.Predictor.outputs`."""
        if self._predictor is None:
            self.load(config)
        return self._predictor.outputs(windows)


class Reader(BaseReader):
    """Fetches and hashes videos, and decodes them in a sandboxed process; ``networks`` classify their windows."""

    def __init__(self, networks: Sequence[Any], config: ReaderConfig, prefix: str) -> None:
        super().__init__(prefix)
        self._networks, self._config = cycle(networks), replace(config, limits=replace(config.limits, workers=1))
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(create_pool(self._config.limits, 1))

    @naming_machine()
    def obtain(self, locations: Sequence[str]) -> tuple[list[Found], Path | None]:
        """Fetches or hashes each video; also returns the folder of fetched ones, to be given to `remove`."""
        limits = self._config.fetch_limits
        folder = self.make_folder() if any(map(is_url, locations)) else None
        space = FetchSpace(limits.space_gigabytes, waits=False)

        def get(index: int) -> tuple[int, Found]:
            location = locations[index]
            if folder is None or not is_url(location):
                return index, (Path(location), hash_video(Path(location)))
            with suppress(CancelledError):
                copy = try_fetch(location, folder, limits, space)
                return index, (copy.path, copy.hashed()) if isinstance(copy, FetchedFile) else copy
            return index, None

        found = dict(filter(None, map_unordered(get, range(len(locations)), limits.workers)))
        return [found[index] for index in range(len(locations))], folder

    def read(
        self, contents: Sequence[Content], max_windows: float | int
    ) -> Iterator[tuple[int, Described | HashResult | str]]:
        """Yields the index in ``contents`` and the result of each, as they are finished.

        The result is `LONG` if it has more than ``max_windows``, and what this machine finds in the file if that is
        another content or changes.
        """
        try:
            with naming_machine():
                yield from self._read(contents, max_windows)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            expected, remedy = "networks that stay alive", "See Ray's logs, and the network; finished videos are kept."
            got = f"one that machine {platform.node()} lost again and again ({one_line(error)})"
            raise UserError(expected, got, remedy, "network-lost") from None
        except (BrokenExecutor, RuntimeError) as error:
            raise SickMachineError(f"no decoding process can be started: {error}") from None

    def _read(
        self, contents: Sequence[Content], max_windows: float | int
    ) -> Iterator[tuple[int, Described | HashResult | str]]:
        config, first = self._config, dict[int, VideoFound]()
        again: dict[int, Spans] = {}  # by index, of what needs a second pass
        hashes = [seen_here(one.file, HashResult(one.sha256, "", one.state)) for one in contents]
        sources = [Source(one.file, hashed.state) for one, hashed in zip(contents, hashes, strict=True)]
        pending = []
        for index, one in enumerate(contents):
            if hashes[index].sha256 == one.sha256:
                pending.append(index)
            else:
                yield index, hashes[index]

        def describe(index: int, found: VideoFound) -> Described | HashResult | str:
            if found[0] is DEFERRED:
                return LONG
            both = config.search.join(first[index], found) if index in first else found
            file, decoded = sources[index].file, both[0]
            if decoded.status != "ok" or FileState.of(file) != sources[index].state:  # or it cannot be read any more
                here = hash_video(file)
                if here.sha256 != contents[index].sha256 or here.state != sources[index].state:
                    return here
            return decoded, config.describe(*both)

        for number, found in self._classified([sources[index] for index in pending], max_windows):
            index = pending[number]
            if spans := config.search.spans(found):
                first[index], again[index] = found, spans
            else:
                yield index, describe(index, found)
        for number, found in self._classified(
            [sources[index]._replace(spans=again[index]) for index in again], max_windows
        ):
            index = list(again)[number]
            yield index, describe(index, found)

    def _classified(self, sources: Sequence[Source], max_windows: float | int) -> Iterator[tuple[int, VideoFound]]:
        config = self._config
        arguments = config.plan, config.limits, config.batch_size, self._pool, max_windows
        with closing(read_windows(sources, len(sources), *arguments)) as events:
            classified = classify(events, self._submit, config.batch_size, IN_FLIGHT)
            yield from collect(classified, config.plan, config.classes, config.exit_threshold)

    def _submit(self, windows: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        reference = next(self._networks).predict.remote(np.stack(windows), self._config)
        return lambda: ray.get(reference)
