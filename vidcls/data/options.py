"""The options ``data.*``, checked before anything is listed or decoded. Imports neither torch nor a decoder."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vidcls.data.sampling import SAMPLINGS, ClipSpec, StoreSpec, stored_frames
from vidcls.data.urls import refuse_credentials
from vidcls.errors import UserError, check_choice, check_flag, check_integer, check_number, check_seed

SPLITS = ("train", "val", "test")
ENGINES = ("local", "ray")
CHOICES = {
    "sampling": SAMPLINGS,
    "sampler": ("shuffle", "balanced"),
    "leakage": ("warn", "error", "drop"),
    "on_bad": ("skip", "error"),
    "disagreement": ("majority", "latest", "drop"),
    "near_duplicates": ("ignore", "report", "group"),
}
# The other columns of the tables that predictions are written to.
RESERVED_CLASS_NAMES = {"path", "label", "predicted", "sha256", "decision", "score", "coverage", "status", "reason"}
RESERVED_CLASS_NAMES |= {"decoder", "seconds", "windows", "model", "policy"}
RESERVED_CLASS_NAMES |= {"class", "start_seconds", "end_seconds", "peak", "peak_seconds"}
RESERVED_CLASS_NAMES |= {"repeat", "seed", "fold", "creator"}


@dataclass(frozen=True)
class DecodeLimits:
    """The number of decoding processes, each video's time limit per decoder, and each process's address space."""

    workers: int | None = None  # one per core
    timeout_seconds: float | int = 60.0
    memory_gigabytes: float | int = 8.0

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_integer("data.decode.workers", self.workers)
        check_number("data.decode.timeout_seconds", self.timeout_seconds, minimum=0.1)
        check_number("data.decode.memory_gigabytes", self.memory_gigabytes, minimum=1.0)


@dataclass(frozen=True)
class SplitOptions:
    """How videos are split where the source does not say."""

    val_fraction: float | int = 0.15
    test_fraction: float | int = 0.15
    grouped: Any = True  # checked to be a bool, as below

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            check_number(f"data.split.{name}", getattr(self, name), 0.0, 0.9)
        check_flag("data.split.grouped", self.grouped)
        if (total := self.val_fraction + self.test_fraction) >= 1:
            expected, got = "data.split.val_fraction + data.split.test_fraction to be less than 1", f"{total:g}"
            raise UserError(expected, got, "Lower one of them.", "data.split")


@dataclass(frozen=True)
class ZipOptions:
    """Limits on the extracted size and on the compression ratio; archives beyond them are refused."""

    max_gigabytes: float | int = 100.0
    max_ratio: float | int = 100.0

    def __post_init__(self) -> None:
        check_number("data.zip.max_gigabytes", self.max_gigabytes)
        check_number("data.zip.max_ratio", self.max_ratio)


@dataclass(frozen=True)
class FetchLimits:
    """Limits on fetching remote videos: connections, attempts, time, and space on the local disk."""

    workers: int = 16
    attempts: int = 4
    timeout_seconds: float | int = 300.0
    max_gigabytes: float | int = 4.0
    space_gigabytes: float | int = 16.0

    def __post_init__(self) -> None:
        check_integer("data.fetch.workers", self.workers)
        check_integer("data.fetch.attempts", self.attempts)
        check_number("data.fetch.timeout_seconds", self.timeout_seconds, minimum=0.1)
        check_number("data.fetch.max_gigabytes", self.max_gigabytes)
        check_number("data.fetch.space_gigabytes", self.space_gigabytes, minimum=self.max_gigabytes)


@dataclass(frozen=True)
class EngineOptions:
    """The options ``engine.*``: where videos are decoded and predicted; see conf/engine/.

    Raises:
        UserError: one is out of range, or Ray is not installed.
    """

    name: str = "local"
    address: str | None = None
    networks: int | None = None

    def __post_init__(self) -> None:
        check_choice("engine", self.name, ENGINES)
        if self.networks is not None:
            check_integer("engine.networks", self.networks)
        if self.name == "ray" and find_spec("ray") is None:
            raise UserError("ray, for engine=ray", "none installed", "Run pip install 'vidcls[ray]'.", "no-ray")


@dataclass(frozen=True)
class DataOptions:
    """All options ``data.*``; each is described beside its default in ``conf/data/base.yaml``.

    Raises:
        UserError: an option is out of range; the code is its name.

    Example:
        >>> options = DataOptions("clips", "cache", num_frames=8, store={"num_frames": 32})
        >>> options.clip.num_frames, options.store.stored_frames, options.decode.timeout_seconds
        (8, 32, 60.0)
    """

    source: str
    cache_dir: str
    seed: int = 0
    num_frames: int = 20
    resolution: int = 64
    batch_size: int = 4
    sampling: str = "uniform"
    clip_seconds: float | int | None = None
    num_clips: int = 1
    temporal_jitter: Any = False
    sampler: str = "shuffle"
    classes: Any = None  # a list of names or None; becomes list[str]
    creator_pattern: Any = r"(?P<creator>.+)_[^_]+"
    leakage: str = "warn"
    near_duplicates: str = "report"
    on_bad: str = "skip"
    decisions: Any = ()  # a path or several; becomes tuple[str, ...]
    disagreement: str = "majority"
    split: Any = None  # a mapping, as in YAML; becomes SplitOptions
    store: Any = None  # becomes StoreSpec
    decode: Any = None  # becomes DecodeLimits
    zip: Any = None  # becomes ZipOptions
    fetch: Any = None  # becomes FetchLimits
    engine: Any = None  # becomes EngineOptions
    num_workers: int = 0
    pin_memory: Any = False
    device_cache: float | int = 4.0
    demo: Mapping[str, int] | None = None
    notes: tuple[str, ...] = field(default=(), init=False)  # for the user: which options had to be raised

    def __post_init__(self) -> None:
        refuse_credentials("data.source", self.source)
        check_seed("seed", self.seed)
        for name in ("num_frames", "resolution", "batch_size", "num_clips"):
            check_integer(f"data.{name}", getattr(self, name))
        check_integer("data.num_workers", self.num_workers, minimum=0)
        check_number("data.device_cache", self.device_cache)
        for name in ("temporal_jitter", "pin_memory"):
            check_flag(f"data.{name}", getattr(self, name))
        for name, values in CHOICES.items():
            check_choice(f"data.{name}", getattr(self, name), values)
        self._check_clip_seconds()
        object.__setattr__(self, "decisions", list_paths("data.decisions", self.decisions))
        if isinstance(self.classes, Sequence) and not isinstance(self.classes, str):  # YAML may read names as numbers
            object.__setattr__(self, "classes", [str(name) for name in self.classes])
        _check_classes(self.classes)
        _check_creator_pattern(self.creator_pattern)
        groups: dict[str, Any] = {"split": SplitOptions, "decode": DecodeLimits, "zip": ZipOptions}
        groups |= {"fetch": FetchLimits, "engine": EngineOptions}
        for name, group in groups.items():
            object.__setattr__(self, name, group(**(getattr(self, name) or {})))
        object.__setattr__(self, "store", self._choose_store(**(self.store or {})))
        if self.temporal_jitter and self.sampling == "first":
            remedy = "Change one of them: the first frames have no others around them to choose from."
            raise UserError("data.sampling=uniform, for data.temporal_jitter", "first", remedy, "data.temporal_jitter")
        if self.temporal_jitter and self.store.stored_frames == self.num_frames:
            expected = "data.store.num_frames > data.num_frames, for data.temporal_jitter"
            remedy = f"Give data.store.num_frames={2 * self.num_frames} or another multiple."
            raise UserError(expected, f"{self.num_frames} for both", remedy, "data.temporal_jitter")

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> DataOptions:
        """The options of a resolved configuration, which also holds a ``_target_``."""
        return cls(**{name: value for name, value in data.items() if not name.startswith("_")})

    @property
    def clip(self) -> ClipSpec:
        return ClipSpec(self.num_frames, self.resolution, self.sampling, self.clip_seconds, self.num_clips)

    def _check_clip_seconds(self) -> None:
        if self.clip_seconds is not None:
            check_number("data.clip_seconds", self.clip_seconds, open_ends=True)
        elif self.num_clips > 1:
            expected = f"data.clip_seconds, for data.num_clips={self.num_clips} clips of a video"
            remedy = "Set the length of a clip, as in data.clip_seconds=2, or data.num_clips=1."
            raise UserError(expected, "null: the whole video", remedy, "data.num_clips")

    def _choose_store(self, num_frames: int | None = None, resolution: int | None = None) -> StoreSpec:
        frames = stored_frames(self.num_frames, num_frames, self.sampling)
        pixels = self.resolution if resolution is None else check_integer("data.store.resolution", resolution)
        raised = {"num_frames": (num_frames, frames), "resolution": (resolution, max(pixels, self.resolution))}
        notes = [
            f"data.store.{name}={given} is less than this run asks for: storing {used} instead"
            for name, (given, used) in raised.items()
            if given is not None and given < used
        ]
        object.__setattr__(self, "notes", tuple(notes))
        return StoreSpec(frames, max(pixels, self.resolution), self.sampling, self.clip_seconds, self.num_clips)


def list_paths(option: str, value: Any) -> tuple[str, ...]:
    """The paths that an option names: none, one, or a list of them."""
    paths = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(path, str) for path in paths):
        raise UserError(f"{option} to be a list of files", repr(value), f"Write {option}=[FILE,FILE].", option)
    return tuple(paths)


def _check_classes(classes: Any) -> None:
    if classes is None:
        return
    expected = "two or more different class names in data.classes"
    if not isinstance(classes, list) or len(classes) < 2:
        raise UserError(expected, repr(classes), "Write data.classes=[safe,harmful], or leave it out.", "data.classes")
    if repeated := [name for name, count in Counter(classes).items() if count > 1]:
        raise UserError(expected, f"{', '.join(repeated)} more than once", "Name each class once.", "data.classes")


def check_class_names(classes: Iterable[str]) -> None:
    """Refuses names that other columns already have, such as ``path``."""
    if taken := RESERVED_CLASS_NAMES & set(classes):
        raise UserError(
            "classes that are not named as a column of the tables of predictions",
            ", ".join(sorted(taken)),
            "Rename that class: its folder, or its label in the .csv.",
            "reserved-class-name",
        )


def _check_creator_pattern(pattern: Any) -> None:
    try:
        fault = "" if "creator" in re.compile(pattern).groupindex else "which has no such group"
    except (re.error, TypeError) as error:
        fault = f"({error})"
    if fault:
        expected = "a regular expression with a group (?P<creator>...) in data.creator_pattern"
        raise UserError(expected, f"{pattern!r} {fault}", "Correct data.creator_pattern.", "data.creator_pattern")


def canonical_name(name: str) -> str:
    """The same text for names that differ only in case, spaces or Unicode composition.

    >>> canonical_name("Ann") == canonical_name("ann"), canonical_name("jos\u00e9") == canonical_name("jose\u0301")
    (True, True)
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", " ".join(name.split())).casefold())


def class_order(labels: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """The classes of a run, in the order of its probabilities: as the user gave them, else sorted by name.

    >>> class_order(["safe", "adult", "safe"], None), class_order(["safe", "adult"], ["safe", "adult"])
    (['adult', 'safe'], ['safe', 'adult'])
    """
    return list(classes) if classes is not None else sorted(set(labels))
