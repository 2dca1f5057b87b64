"""The page about a source, made by the command, parsed and looked at in a browser; and what it counts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import value
from helpers.commands import call
from helpers.datasets import module, prepare
from helpers.page import Page
from helpers.videos import ffmpeg, write_video
from playwright.sync_api import BrowserContext

from vidcls.data.decoding.headers import read_headers
from vidcls.data.options import DecodeLimits
from vidcls.inspection.clip_map import creators_and_classes, neighbour_shares
from vidcls.pages import visible

CLASSES = ["<img src=x onerror=alert(1)>", "two\nlines \u202e {{ 7 * 7 }}"]
HOSTILE = ["'><script>alert(2)</script>_1.mp4", "=HYPERLINK(1)_2.mp4", "tab\tand\u2028line\r_3.mp4", "مقطع_4.mp4"]


def moving(seed: int) -> np.ndarray:
    """20 frames of a wall of noise, where something dark falls down."""
    generator = np.random.default_rng(seed)
    wall = generator.integers(60, 255, (12, 16, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames, left = np.repeat(wall[None], 20, axis=0), generator.integers(0, 100)
    for t, frame in enumerate(frames):
        frame[3 * t : 3 * t + 30, left : left + 28] //= 8
    return frames


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six creators with a video of each class, one turned; hostile names; a copy; a file that is no video."""
    root = tmp_path_factory.mktemp("source")
    for number, label in enumerate(CLASSES):
        for creator in range(6):
            path = root / label / f"creator{creator}_{number}.mp4"
            turned = {"rotation": 90, "mirrored": label == CLASSES[1]} if creator == 5 else {}
            write_video(path, moving(10 * number + creator), fps=10, **turned)
        for place, name in enumerate(HOSTILE[2 * number :][:2]):
            write_video(root / label / name, moving(100 + 10 * number + place), fps=20)
    copied = root / CLASSES[0] / "creator0_0.mp4"
    ffmpeg("-i", copied, "-vf", "hflip", "-crf", "30", root / CLASSES[1] / "thief_9.mp4")
    (root / CLASSES[1] / "broken_8.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    return root


def inspect(source: Path, cache: Path, output: Path, *overrides: str) -> Page:
    shape = ["data.num_frames=8", "data.resolution=64", "data.decode.workers=1"]
    given = [f"data.source={source}", f"cache_dir={cache}", f"output={output}", "data=folder", *shape, *overrides]
    result = call("inspect_data.py", *given)
    assert result.code == 0, result.stderr
    return Page((output / "data.html").read_text())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def output(source: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output")
    inspect(source, cache, folder)
    return folder


@pytest.fixture(scope="module")
def page(output: Path) -> Page:
    return Page((output / "data.html").read_text())


def table(page: Page, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, as text."""
    start = next(
        n for n, (tag, _, text) in enumerate(page.elements) if tag in ("h2", "h3") and "".join(text) == heading
    )
    rows: list[list[str]] = []
    for tag, _, text in page.elements[start + 1 :]:
        if tag in ("h2", "h3"):
            break
        if tag == "tr":
            rows.append([])
        elif tag in ("td", "th"):
            rows[-1].append(" ".join("".join(text).split()))
    return rows


def test_it_counts_what_is_there(page: Page) -> None:
    first, second = (" ".join(visible(name).split()) for name in CLASSES)
    assert page.texts("h1") == ["18 videos"]
    counts = table(page, "Counts")
    assert counts[0] == ["Class", "train", "val", "test", "all"]
    assert [(row[0], row[-1]) for row in counts[1:]] == [(first, "8"), (second, "9"), ("all", "17")]
    assert table(page, "Picture")[1:] == [["128 x 96", "", "8", "9", "17"]]
    assert table(page, "Frames per second")[1:] == [["10", "", "6", "7", "13"], ["20", "", "2", "2", "4"]]
    assert table(page, "Codec")[1:] == [["h264", "", "8", "9", "17"]]
    assert table(page, "Rotation (degrees)")[1:] == [
        ["0", "", "7", "8", "15"],
        ["270, mirrored", "", "0", "1", "1"],
        ["90", "", "1", "0", "1"],
    ]
    assert table(page, "Duration (s)")[1:] == [["2", "", "6", "7", "13"], ["1", "", "2", "2", "4"]]
    (damaged,) = table(page, "Damaged files")[1:]
    assert damaged[0] == "undecodable" and damaged[1].endswith("broken_8.mp4") and damaged[2]


def test_copies_are_shown(page: Page) -> None:
    assert any(re.match("2 videos, .*of several classes", text) for text in page.texts("h3"))
    assert "None were found." not in page.texts("p")


def test_nothing_that_a_stranger_names_does_anything(page: Page) -> None:
    assert "script" not in page.tags
    assert not [attrs for _, attrs, _ in page.elements if any(name.startswith("on") for name in attrs)]
    assert all((attrs["src"] or "").startswith("data:image/jpeg") for tag, attrs, _ in page.elements if tag == "img")
    assert "\u202e" not in page.source and "\u2028" not in page.source
    policy = next(attrs["content"] for _, attrs, _ in page.elements if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_the_projector_has_a_row_and_a_picture_of_each_video(output: Path) -> None:
    rows = next(output.rglob("metadata.tsv")).read_bytes().decode().split("\n")
    assert rows[0] == "path\tlabel\tcreator\tsplit" and len(rows) == 1 + 17 + 1
    assert all(row.count("\t") == 3 and "\r" not in row for row in rows[:-1])
    assert len(next(output.rglob("tensors.tsv")).read_text().splitlines()) == 17
    assert next(output.rglob("sprite.png")).stat().st_size > 1000


def test_a_later_training_decodes_nothing_again(output: Path, source: Path, cache: Path) -> None:
    data = module(source, cache, num_frames=8, resolution=64)
    prepare(data)
    assert data.stats.decoded == 0


def test_videos_that_cannot_be_split_are_shown_too(source: Path, cache: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for label, name in zip(CLASSES, ("all", "other"), strict=True):
        shutil.copytree(source / label, few / name, ignore=lambda _, names: [n for n in names if "creator0" not in n])
    page = inspect(few, cache, tmp_path / "out")
    assert len(page.texts("p", class_="warning")) == 1
    assert table(page, "Counts")[1:] == [["all", "1", "1"], ["other", "1", "1"], ["all", "2", "2"]]


def test_headers_are_read_without_the_decoders_of_this_process(source: Path, tmp_path: Path) -> None:
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    turned = source / CLASSES[0] / "creator5_0.mp4"
    files = [turned, tmp_path / "list.mp4", tmp_path / "missing.mp4", "https://nowhere/a.mp4", turned]
    headers = read_headers(list(map(str, files)), DecodeLimits(workers=1))
    assert headers == [("h264", 128, 96, 10.0, 90, False), None, None, None, ("h264", 128, 96, 10.0, 90, False)]


def test_neighbours_are_counted() -> None:
    vectors, groups = np.array([[0.0], [1.0], [1.1], [9.0]]), np.array([0, 0, 0, 1])
    few = neighbour_shares(vectors, groups[:, None] == groups, ~np.eye(4, dtype=bool))
    assert [list(one) for one in few] == [pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])] * 2  # fewer than 5 others: all count
    assert np.isnan(neighbour_shares(vectors, groups[:, None] == groups, np.zeros((4, 4), bool))).all()
    # Two creators, far from each other, who show both classes at the same two places.
    creators, labels = np.repeat(["ann", "bob"], 12).astype(object), np.tile(np.repeat([0, 1], 6), 2)
    places = np.where(creators == "ann", 0.0, 100.0) + 10 * labels + np.tile(np.arange(6), 4) / 10
    found = creators_and_classes(places[:, None], creators, labels)
    assert found["the same creator"][0].mean() == 1 and found["the same class, among all"][0].mean() == 1
    assert found["the same class, among other creators"][0].mean() == pytest.approx(0.5)  # the nearer class is for both
    assert found["the same creator"][1] == pytest.approx(11 / 23)


def test_in_a_real_browser(output: Path, context: BrowserContext) -> None:
    page = context.new_page()
    for width in (1280, 380):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((output / "data.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("[...document.images].forEach(image => image.loading = 'eager')")
        assert value(page, "[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator(".map circle").count() == 2 * 17
        assert page.evaluate("getComputedStyle(document.images[0]).filter").startswith("blur")
    assert page.page_errors() == [] and page.console_messages() == []


def test_a_runs_videos_are_mapped_by_its_features(finished: Path, tmp_path: Path) -> None:
    result = call("inspect_data.py", f"run={finished}", f"output={tmp_path}", "accelerator=cpu")
    assert result.code == 0, result.stderr
    page = Page((tmp_path / "data.html").read_text())
    assert any(f"features (of the run {finished.name}, which was trained" in text for text in page.texts("p"))
    assert page.tags.count("circle") > 2 * 12
