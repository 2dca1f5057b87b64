"""What the processes of engine=ray do: readers fetch, hash and decode videos, networks classify their windows.

Both are stateless, so that Ray or the engine may start them anew anywhere. Imports neither torch nor Ray's driver.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
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
from vidcls.data.decoding.receiver import DEFERRED, Source
from vidcls.data.fetching import CancelledError, FetchSpace, map_unordered
from vidcls.data.hashing import HashResult, hash_video
from vidcls.data.options import DecodeLimits, FetchLimits
from vidcls.data.remote import FetchedFile, UnfetchableError, try_fetch
from vidcls.data.urls import is_url
from vidcls.errors import UserError
from vidcls.prediction.catalogue import Content, Result
from vidcls.prediction.coarse_search import CoarseSearch
from vidcls.prediction.video_stream import VideoFound, classify, collect

LONG = "long"
IN_FLIGHT = 1  # batches of a reader that are with a network while it decodes the next
Found = tuple[Path, HashResult] | UnfetchableError | None
"""A video as a reader has it: its file, or a copy of it; why there is none; or None where there is no room for one
beside the others of its shard."""


@dataclass(frozen=True)
class Reading:
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


class Network:
    """The network on one device; made at its first call, so that it may be restarted without arguments."""

    def __init__(self) -> None:
        self._predictor: Any = None  # a `Predictor`, which imports torch

    def predict(self, windows: UInt8[np.ndarray, "B F H W 3"], reading: Reading) -> Float[np.ndarray, "B Q"]:
        """The outputs of a batch of windows, see `vidcls.prediction.predictor.Predictor.outputs`."""
        if self._predictor is None:
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as predict.py does, before torch is loaded
            import torch

            torch.set_num_threads(reading.threads)  # Ray allows one; sums may round otherwise with another number
            (reference,) = reading.make_predictor
            self._predictor = ray.cloudpickle.loads(ray.get(reference))()
        return self._predictor.outputs(windows)


class Reader(BaseReader):
    """Fetches, hashes and decodes, the last in a confined process of its own; ``networks`` classify what it reads."""

    def __init__(self, networks: Sequence[Any], reading: Reading, prefix: str) -> None:
        super().__init__(prefix)
        self._networks, self._reading = cycle(networks), replace(reading, limits=replace(reading.limits, workers=1))
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(create_pool(self._reading.limits, 1))

    def obtain(self, locations: Sequence[str]) -> tuple[list[Found], Path | None]:
        """What is there of each video, and the folder of those that were fetched, which is to be given to `remove`."""
        limits = self._reading.fetch_limits
        folder = self.make_folder() if any(map(is_url, locations)) else None
        space = FetchSpace(limits.space_gigabytes, waits=False)

        def get(place: int) -> tuple[int, Found]:
            location = locations[place]
            if folder is None or not is_url(location):
                return place, (Path(location), hash_video(Path(location)))
            with suppress(CancelledError):
                copy = try_fetch(location, folder, limits, space)
                return place, (copy.path, copy.hashed()) if isinstance(copy, FetchedFile) else copy
            return place, None

        found = dict(filter(None, map_unordered(get, range(len(locations)), limits.workers)))
        return [found[place] for place in range(len(locations))], folder

    def read(self, contents: Sequence[Content], max_windows: float | int) -> Iterator[tuple[int, Result | str | None]]:
        """The place of each of ``contents`` and its result, as they are finished.

        That is None where its file has changed, and `LONG` where it has more than ``max_windows``.
        """
        one, first = self._reading, dict[int, VideoFound]()
        again: dict[int, Spans] = {}  # places of what is to be looked at again

        def describe(place: int, found: VideoFound) -> Result | str | None:
            if found[0] is DEFERRED:
                return LONG
            both = one.search.join(first[place], found) if place in first else found
            return None if contents[place].changed else one.describe(*both)

        try:
            for place, found in self._classified([Source(c.file, c.state) for c in contents], max_windows):
                if spans := one.search.spans(found):
                    first[place], again[place] = found, spans
                else:
                    yield place, describe(place, found)
            sources = [Source(contents[place].file, contents[place].state, spans) for place, spans in again.items()]
            for number, found in self._classified(sources, max_windows):
                place = list(again)[number]
                yield place, describe(place, found)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            expected, remedy = "networks that live", "See the logs of Ray; finished videos are kept."
            raise UserError(expected, f"one that died again and again ({error})", remedy, "network-lost") from None
        except (BrokenExecutor, RuntimeError):  # no process to decode can be started: another reader may have room
            os._exit(1)

    def _classified(self, sources: Sequence[Source], max_windows: float | int) -> Iterator[tuple[int, VideoFound]]:
        one = self._reading
        with closing(
            read_windows(sources, len(sources), one.plan, one.limits, one.batch_size, self._pool, max_windows)
        ) as events:
            classified = classify(events, self._submit, one.batch_size, IN_FLIGHT)
            yield from collect(classified, one.plan, one.classes, one.exit_threshold)

    def _submit(self, windows: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        reference = next(self._networks).predict.remote(np.stack(windows), self._reading)
        return lambda: ray.get(reference)
