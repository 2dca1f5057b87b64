from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidcls.data import demo
from vidcls.data.demo import CLASSES, SPLIT_FRACTIONS, draw_demo
from vidcls.errors import UserError

ARGUMENTS = {"seed": 3, "creators": 6, "videos_per_creator": 6}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_demo(tmp_path_factory.mktemp("drawn") / "demo", **ARGUMENTS)


def videos(folder: Path) -> list[Path]:
    return sorted(folder.glob("rtp/*/*/*.mp4"))


def digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in videos(folder)}


def creator_of(path: Path) -> str:
    return path.stem.rpartition("_")[0]


# ---- what lies in the folder


def test_layout_and_balance(drawn: Path) -> None:
    assert sorted(p.name for p in drawn.iterdir()) == ["README.txt", "demo.json", "rtp"]
    assert len(videos(drawn)) == 6 * 6
    per_creator = Counter((creator_of(p), p.parent.name) for p in videos(drawn))
    assert set(per_creator.values()) == {2}  # each creator draws every class, equally often
    assert {label for _, label in per_creator} == set(CLASSES)
    per_split = Counter(p.parts[-3] for p in videos(drawn))
    assert per_split == {"train": 4 * 6, "val": 6, "test": 6}


def test_a_creator_is_in_one_split_only(drawn: Path) -> None:
    splits = {(creator_of(p), p.parts[-3]) for p in videos(drawn)}
    assert len(splits) == len({creator for creator, _ in splits}) == 6


@given(st.integers(3, 200), st.integers(0, 5))
def test_split_sizes(creators: int, seed: int) -> None:
    counts = Counter(demo.split_of_creators(creators, np.random.default_rng(seed)))
    assert sum(counts.values()) == creators
    for split, fraction in SPLIT_FRACTIONS.items():
        assert counts[split] >= 1
        assert abs(counts[split] - fraction * creators) <= 1.1  # val and test round by at most a half; train by both


def test_says_that_it_is_drawn(drawn: Path) -> None:
    text = (drawn / "README.txt").read_text()
    assert "drawn by a program" in text and "Nothing in them is real" in text and "placeholders" in text
    assert "24 videos in train, 6 videos in val, 6 videos in test" in text
    with av.open(str(videos(drawn)[0])) as container:
        assert container.metadata["title"] == "Drawn stand-in, nothing real"
        assert "placeholder" in container.metadata["comment"]


def test_videos_are_h264_and_vary(drawn: Path) -> None:
    shapes, rates, seconds = set(), set(), []
    for path in videos(drawn):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            shapes.add(int(np.sign(stream.width - stream.height)))
            rates.add(round(float(stream.guessed_rate or 0)))
            assert stream.duration is not None and stream.time_base is not None
            seconds.append(float(stream.duration * stream.time_base))
    assert shapes == {-1, 0, 1}  # portrait, square, landscape
    assert len(rates) >= 3
    assert 1.3 < min(seconds) < 2.2 and 2.8 < max(seconds) < 3.7


def test_shown_for_as_long_as_drawn() -> None:
    for uneven in (False, True):
        take = demo.Take(2.0, 10, uneven, 0.0, (0.0, 1.0, 0.0), seed=1)
        numbers = demo.frame_numbers(take)
        assert numbers[0] == 0 and numbers[-1] == 19
        assert np.all(np.diff(numbers) > 0)
        assert (len(numbers) < 20) == uneven


# ---- only the order tells the class


@given(start=st.floats(-1, 1), half=st.integers(1, 60), label=st.sampled_from(CLASSES))
def test_classes_pass_the_same_positions(start: float, half: int, label: str) -> None:
    progress = (np.arange(2 * half) + 0.5) / (2 * half)

    def as_points(name: str) -> np.ndarray:  # on a circle, where just below one turn is next to zero
        angle = 2 * np.pi * demo.loop_position(name, start, progress)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    left = list(as_points(label))
    for point in as_points("safe"):  # each position has its own counterpart, whatever the order
        nearest = int(np.argmin([np.abs(point - other).max() for other in left]))
        assert np.abs(point - left.pop(nearest)).max() < 1e-9


def test_hand_computed_positions() -> None:
    progress = np.array([0.0, 0.125, 0.25, 0.5, 0.625, 0.75])
    assert demo.loop_position("safe", 0.1, progress) == pytest.approx([0.1, 0.35, 0.6, 0.1, 0.35, 0.6])
    assert demo.loop_position("harmful", 0.1, progress) == pytest.approx([0.1, 0.85, 0.6, 0.1, 0.85, 0.6])
    assert demo.loop_position("adult", 0.1, progress) == pytest.approx([0.1, 0.35, 0.6, 0.1, 0.85, 0.6])


def brightest(pixels: np.ndarray) -> np.ndarray:
    """The middle of the shape, (x, y) from the middle of the frame, y upwards."""
    value = pixels.astype(float).max(axis=-1)
    y, x = np.nonzero(value > 0.8 * value.max())
    return np.array([x.mean() + 0.5 - value.shape[1] / 2, value.shape[0] / 2 - y.mean() - 0.5])


@pytest.mark.parametrize(("label", "side", "later"), [("safe", 1, 1), ("harmful", -1, -1), ("adult", 1, -1)])
def test_drawn_motion_is_the_one_named(label: str, side: int, later: int) -> None:
    look = demo.draw_look(np.random.default_rng(0), (128, 96))
    take = demo.Take(2.0, 20, False, 0.0, (0.0, 1.0, 0.0), seed=0)
    frames = list(demo.draw_frames(label, look, take))
    assert len(frames) == 40
    x_first, x_second = brightest(frames[5])[0], brightest(frames[25])[0]  # a quarter turn into each turn
    assert np.sign(x_first) == side and np.sign(x_second) == later
    assert brightest(frames[0])[1] > 0 and brightest(frames[39])[1] > 0  # all of them start and end at the top


@pytest.mark.parametrize("creator", range(6))
def test_takes_look_alike_in_all_classes(creator: int) -> None:
    rng = np.random.default_rng(creator)
    look = demo.draw_look(rng, demo.SIZES[creator])
    take = demo.Take(2.0, 20, False, float(rng.random()), (0.0, 1.0, 0.0), seed=0)
    averages = [np.mean(list(demo.draw_frames(label, look, take)), axis=0) for label in CLASSES]
    spread = np.ptp(averages, axis=0).max()
    assert spread <= 1  # the order-blind average is one picture, but for rounding to whole pixel values
    height, width = averages[0].shape[:2]
    assert (width, height) == demo.SIZES[creator]


def test_the_shape_stays_inside_the_frame() -> None:
    for creator in range(40):
        look = demo.draw_look(np.random.default_rng([0, creator]), demo.SIZES[creator % len(demo.SIZES)])
        for axis in (0, 1):
            reach = look.radii[axis] + look.radius * min(look.size) / look.size[axis]
            assert look.centre[axis] - reach >= 0 and look.centre[axis] + reach <= 1


# ---- drawing again


def test_same_seed_same_bytes_other_seed_others(drawn: Path, tmp_path: Path) -> None:
    again = draw_demo(tmp_path / "again", **ARGUMENTS)
    assert digests(again) == digests(drawn)
    assert len(set(digests(drawn).values())) == len(videos(drawn))  # no two videos are the same
    other = draw_demo(tmp_path / "other", **{**ARGUMENTS, "seed": 4})
    assert not set(digests(other).values()) & set(digests(drawn).values())


def test_a_second_call_draws_nothing(drawn: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in drawn.rglob("*")}
    assert draw_demo(drawn, **ARGUMENTS) == drawn
    assert {p: p.stat().st_mtime_ns for p in drawn.rglob("*")} == before


def test_other_arguments_replace_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "demo"
    draw_demo(folder, seed=0, creators=3, videos_per_creator=6)
    draw_demo(folder, seed=0, creators=3, videos_per_creator=3)
    assert len(videos(folder)) == 9
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FRAME_RATES", (0,))  # no encoder accepts it
    with pytest.raises(Exception, match=r".+"):
        draw_demo(tmp_path / "demo", **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_another_machine_has_drawn_it_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may say for a minute that the other one's folder does not exist."""
    draw, exists, folder = demo._draw_all, Path.exists, tmp_path / "demo"
    arguments = {"seed": 0, "creators": 3, "videos_per_creator": 3}

    def draw_beside_another(fresh: Path, *numbers: int) -> None:
        monkeypatch.setattr(demo, "_draw_all", draw)
        draw_demo(folder, **arguments)
        holds = demo._holds_demo
        answers = iter([False, True])
        monkeypatch.setattr(demo, "_holds_demo", lambda *given: next(answers) and holds(*given))
        monkeypatch.setattr(Path, "exists", lambda path: path != folder and exists(path))
        draw(fresh, *numbers)

    monkeypatch.setattr(demo, "_draw_all", draw_beside_another)
    assert draw_demo(folder, **arguments) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert len(videos(draw_demo(tmp_path / "demo", seed=0, creators=3, videos_per_creator=3))) == 9


@pytest.mark.parametrize("name", ["mine.mp4", "rtp/train/safe/mine.mp4", "rtp/notes.txt"])
@pytest.mark.parametrize("mark", [True, False])
def test_the_demo_is_never_drawn_over_the_files_of_others(tmp_path: Path, name: str, mark: bool) -> None:
    """Even if a demo.json lies there."""
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"precious")
    if mark:
        (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(UserError) as error:
        draw_demo(tmp_path, seed=0, creators=3, videos_per_creator=3)
    assert error.value.code == "demo-folder" and str(mine) in str(error.value)
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"videos_per_creator": 4}, "data.demo.videos_per_creator"),
        ({"videos_per_creator": 0}, "data.demo.videos_per_creator"),
        ({"creators": 2}, "data.demo.creators"),
        ({"seed": -1}, "data.demo.seed"),
    ],
)
def test_refuses_numbers_that_cannot_be_had(change: dict[str, int], code: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        draw_demo(tmp_path / "demo", **{**ARGUMENTS, **change})
    assert error.value.code == code
    assert not (tmp_path / "demo").exists()
