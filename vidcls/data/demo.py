"""Draws the demo videos: stand-ins for real data, in its layout. Only the order of the frames tells the class.

A bright shape goes round an ellipse, two turns per video. What it does on those two turns is the class::

    safe      clockwise, clockwise
    harmful   anticlockwise, anticlockwise
    adult     clockwise, anticlockwise

Each *take* (a creator's look, a starting point, a length, a frame rate) is drawn once per class. As each class passes
every point of the ellipse twice, at one speed, the three videos of a take hold the same positions in different orders:
neither a frame nor any average over the frames can tell them apart. Videos start within START_SPREAD of the top, so
that a frame *and its time* hint at the class, which is where a network finds its way in.

A horizontal flip turns safe into harmful: leave that augmentation off on these videos.
"""

import colorsys
import json
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, UInt8
from rich.progress import track

from vidcls.errors import UserError, check_integer
from vidcls.memory import num_cpus

CLASSES = ("safe", "harmful", "adult")
SPLIT_FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
SIZES = ((128, 96), (96, 128), (112, 112), (160, 96), (96, 160), (128, 128), (180, 102), (102, 180))  # width, height
FRAME_RATES = (10, 12, 15, 24, 25, 30)
START_SPREAD = 0.25  # turns to either side of the top: starts cover the upper half of the ellipse
SHAPES = {1.0: 1.25, 2.0: 1.0, 8.0: 0.9}  # diamond, disc and square: the factors of their radii for equal areas
RECIPE = 1  # raised when the same arguments draw other videos, so that old folders are replaced
ARGUMENTS_FILE = "demo.json"
DEMO_FILES = re.compile(r"demo\.json|README\.txt|rtp/(train|val|test)/(safe|harmful|adult)/drawn\.creator_\d+_\d+\.mp4")

README = """\
These videos are drawn by a program (vidcls.data.demo). Nothing in them is real.

They stand in for a real data set, in its layout, so that everything can be tried before there is one. The folder names
safe, harmful and adult are placeholders for three kinds of motion of a bright shape that goes round twice:

  safe      clockwise both times
  harmful   anticlockwise both times
  adult     clockwise, then anticlockwise

{counts}. Drawn with {arguments}.
"""


@dataclass(frozen=True)
class Look:
    """How one creator's videos look, whatever the class. Lengths are fractions of the frame's width and height."""

    size: tuple[int, int]  # width and height, in pixels
    colour: tuple[float, float, float]  # of the shape, RGB in 0..1
    roundness: float  # the exponent of the shape's norm: 1 is a diamond, 2 a disc, large a square
    radius: float  # of the shape, as a fraction of the frame's shorter side
    centre: tuple[float, float]  # of the ellipse, (x, y), as are the radii
    radii: tuple[float, float]
    texture: Float[np.ndarray, "H W 3"]  # what is behind, in 0..1


@dataclass(frozen=True)
class Take:
    """What the three videos of a take share besides the look."""

    seconds: float
    frame_rate: int  # frames are shown at multiples of 1 / frame_rate seconds
    uneven: bool  # whether frames are missing here and there, so that the frame rate varies
    start: float  # where on the ellipse the shape starts, in turns clockwise from the top
    flicker: tuple[float, float, float]  # amount, cycles and phase (in turns) of the slow change in brightness
    seed: int  # of the missing frames


def loop_position(label: str, start: float, progress: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
    """Where on the ellipse the shape is at a ``progress`` of 0..1, in turns clockwise from its top.

    A quarter turn per step; the same four positions, twice each, in three orders:
        >>> steps = np.arange(8) / 8
        >>> for label in CLASSES:
        ...     print(f"{label:8}", loop_position(label, 0.0, steps))
        safe     [0.   0.25 0.5  0.75 0.   0.25 0.5  0.75]
        harmful  [0.   0.75 0.5  0.25 0.   0.75 0.5  0.25]
        adult    [0.   0.25 0.5  0.75 0.   0.75 0.5  0.25]
    """
    turns = 2 * progress
    travelled = {"safe": turns, "harmful": -turns, "adult": np.minimum(turns, 2 - turns)}[label]
    return (start + travelled) % 1.0


def draw_demo(folder: Path, *, seed: int, creators: int, videos_per_creator: int) -> Path:
    """Draws H.264 videos into ``folder``/rtp/{train,val,test}/{safe,harmful,adult}/<creator>_<video id>.mp4.

    Creators are disjoint between the splits (about 70, 15 and 15 %); each creator has as many videos of each class.
    The videos appear all at once or not at all; where the same arguments have drawn them before, nothing is done.

    Args:
        folder: new, empty, or a demo drawn with other arguments, which is replaced if nothing else lies in it.
        seed: the same seed draws the same bytes (on one machine, with one version of the encoder).
        creators: at least 3, one per split.
        videos_per_creator: a multiple of 3, as many for each class.

    Raises:
        UserError: a number is out of range, or ``folder`` holds something that is not the demo's.
    """
    check_integer("data.demo.seed", seed, minimum=0)
    check_integer("data.demo.creators", creators, minimum=len(SPLIT_FRACTIONS))
    if check_integer("data.demo.videos_per_creator", videos_per_creator) % len(CLASSES):
        raise UserError(
            f"data.demo.videos_per_creator to be a multiple of {len(CLASSES)}, as many for each class",
            str(videos_per_creator),
            f"Set data.demo.videos_per_creator={-(-videos_per_creator // len(CLASSES)) * len(CLASSES)}.",
            "data.demo.videos_per_creator",
        )
    arguments = {"recipe": RECIPE, "seed": seed, "creators": creators, "videos_per_creator": videos_per_creator}
    if _holds_demo(folder, arguments):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        _draw_all(fresh, seed, creators, videos_per_creator)
        counts = ", ".join(f"{len(list(fresh.glob(f'rtp/{s}/*/*.mp4')))} videos in {s}" for s in SPLIT_FRACTIONS)
        (fresh / "README.txt").write_text(README.format(counts=counts, arguments=arguments))
        (fresh / ARGUMENTS_FILE).write_text(json.dumps(arguments))
        if not _holds_demo(folder, arguments):  # another run may have been quicker
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            try:
                fresh.rename(folder)
            except OSError:
                if not _holds_demo(folder, arguments):  # as another machine has drawn it, which NFS shows only now
                    raise
    return folder


def _holds_demo(folder: Path, arguments: dict[str, int]) -> bool:
    """Whether ``folder`` was drawn with these arguments; raises `UserError` if it holds anything but a demo."""
    try:
        if json.loads((folder / ARGUMENTS_FILE).read_text()) == arguments:
            return True
    except (OSError, ValueError):
        pass
    for path in folder.rglob("*") if folder.is_dir() else [folder] * folder.exists():
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and not DEMO_FILES.fullmatch(name)):
            remedy = "Choose another folder, or train on what is there with data=folder data.source=PATH."
            got = f"a folder that holds {path}"
            raise UserError("a new folder, or one of demo videos alone, to draw them in", got, remedy, "demo-folder")
    return False


def split_of_creators(creators: int, rng: np.random.Generator) -> list[str]:
    """The split of each creator: about 70 % train, 15 % val, 15 % test, at least one in each.

    >>> sorted(split_of_creators(4, np.random.default_rng(0)))
    ['test', 'train', 'train', 'val']
    """
    val, test = (max(1, round(SPLIT_FRACTIONS[split] * creators)) for split in ("val", "test"))
    names = ["train"] * (creators - val - test) + ["val"] * val + ["test"] * test
    return [names[i] for i in rng.permutation(creators)]


def _draw_all(folder: Path, seed: int, creators: int, videos_per_creator: int) -> None:
    jobs = []
    for creator, split in enumerate(split_of_creators(creators, np.random.default_rng(seed))):
        rng = np.random.default_rng([seed, creator])  # a creator's videos do not depend on how many creators there are
        look = draw_look(rng, SIZES[creator % len(SIZES)])
        ids = iter(rng.permutation(videos_per_creator))  # so that the id says nothing about the class
        for _ in range(videos_per_creator // len(CLASSES)):
            take = draw_take(rng)
            for label in CLASSES:
                name = f"drawn.creator_{creator:03d}_{next(ids):04d}.mp4"
                jobs.append((folder / "rtp" / split / label / name, label, look, take))
    for path in {path.parent for path, *_ in jobs}:
        path.mkdir(parents=True)
    # Threads suffice, as the encoder and NumPy release the GIL.
    with ThreadPoolExecutor(num_cpus()) as pool:
        futures = [pool.submit(_encode, *job) for job in jobs]
        try:
            for future in track(as_completed(futures), "Drawing the demo videos", total=len(futures), transient=True):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def draw_look(rng: np.random.Generator, size: tuple[int, int]) -> Look:
    """A random look of a creator, for frames of ``size``."""
    width, height = size
    hue, tint = rng.random(2)
    # Inside the frame, for 0.32 + 0.04 + 1.25 * 0.11 < 0.5.
    radii = rng.uniform(0.24, 0.32, size=2)
    centre = rng.uniform(0.46, 0.54, size=2)
    roundness = float(rng.choice(list(SHAPES)))
    colour = colorsys.hsv_to_rgb(hue, rng.uniform(0.0, 0.5), 1.0)
    blobs = rng.uniform(-1, 1, size=(rng.integers(3, 7), rng.integers(3, 7), 1))
    coarse = 0.25 + 0.1 * blobs + 0.1 * (np.array(colorsys.hsv_to_rgb(tint, 1.0, 1.0)) - 0.5)
    return Look(
        size=size,
        colour=colour,
        roundness=roundness,
        radius=SHAPES[roundness] * rng.uniform(0.085, 0.11),
        centre=(centre[0], centre[1]),
        radii=(radii[0], radii[1]),
        texture=_enlarge(coarse, height, width),
    )


def draw_take(rng: np.random.Generator) -> Take:
    return Take(
        seconds=rng.uniform(1.5, 3.5),
        frame_rate=int(rng.choice(FRAME_RATES)),
        uneven=bool(rng.random() < 0.1),
        start=rng.uniform(-START_SPREAD, START_SPREAD),
        flicker=(rng.uniform(0, 0.1), rng.uniform(0.3, 1.0), rng.random()),
        seed=int(rng.integers(2**31)),
    )


def _enlarge(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, float [h, w, 3] to [H, W, 3]."""
    for axis, length in enumerate((height, width)):
        at = np.linspace(0, coarse.shape[axis] - 1, length)
        low = np.minimum(at.astype(int), coarse.shape[axis] - 2)
        weight = np.expand_dims(at - low, [a for a in range(3) if a != axis])
        coarse = coarse.take(low, axis) * (1 - weight) + coarse.take(low + 1, axis) * weight
    return coarse


def frame_numbers(take: Take) -> np.ndarray:
    """When the frames are shown, in multiples of 1 / frame_rate, int [F], ascending from 0."""
    # An even count, before frames are dropped, so that each class passes exactly the same positions.
    count = 2 * round(take.seconds * take.frame_rate / 2)
    kept = np.random.default_rng(take.seed).random(count) < (0.75 if take.uneven else 1.0)
    kept[0] = kept[-1] = True  # the video starts and ends as it would
    return np.flatnonzero(kept)


def draw_frames(label: str, look: Look, take: Take) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    width, height = look.size
    numbers = frame_numbers(take)
    progress = (numbers + 0.5) / (numbers[-1] + 1)
    angle = 2 * np.pi * loop_position(label, take.start, progress)
    amount, cycles, phase = take.flicker
    brightness = 1 - amount + amount * np.sin(2 * np.pi * (cycles * progress + phase))
    xs = width * (look.centre[0] + look.radii[0] * np.sin(angle))
    ys = height * (look.centre[1] - look.radii[1] * np.cos(angle))
    radius = look.radius * min(width, height)
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    colour = 255 * np.array(look.colour)
    texture = 255 * look.texture
    for x, y, light in zip(xs, ys, brightness, strict=True):
        dx, dy = np.abs(columns - x), np.abs(rows - y)[:, None]
        distance = (dx**look.roundness + dy**look.roundness) ** (1 / look.roundness)
        cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]  # one pixel of soft edge
        yield (light * (texture + cover * (colour - texture))).astype(np.uint8)


def _encode(path: Path, label: str, look: Look, take: Take) -> None:
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Drawn stand-in, nothing real"
        container.metadata["comment"] = f"vidcls demo: '{label}' is a placeholder for a kind of motion"
        # For the same bytes every time: one thread, and a preset without macroblock-tree rate control, with which x264
        # (core 165) was seen to give other bytes now and then for frames as small as these, even on one thread.
        options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
        stream = container.add_stream("libx264", rate=take.frame_rate, options=options)
        stream.width, stream.height = look.size
        stream.pix_fmt = "yuv420p"
        for number, pixels in zip(frame_numbers(take), draw_frames(label, look, take), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(number), Fraction(1, take.frame_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
