"""The page is read as a browser would: parsed, its data decoded; and, where there is one, in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.browser import value
from helpers.page import Page
from helpers.reports import CLASSES, FACTS, HOSTILE, ORDER, Predictions, jpeg, sha256_of, some
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, BrowserContext

from vidcls.pages import visible
from vidcls.prediction.html_report import most_urgent, write_report


@pytest.fixture
def predictions(tmp_path: Path) -> Iterator[Predictions]:
    predictions = Predictions(tmp_path)
    yield predictions
    predictions.journal.close()


def test_every_video_has_one_row_the_most_urgent_first(predictions: Predictions) -> None:
    some(predictions)
    page = predictions.report()
    assert page.paths == ORDER
    cells = page.cells()
    assert cells[0] == ["block", "safe", "0.970", "0.900", "0.970", "0.700", "0:10", "ok", "2"]
    assert cells[2] == ["review", "–", "–", "–", "–", "–", "–", "undecodable", "0"]  # noqa: RUF001
    assert [row[0] for row in cells] == ["block"] * 2 + ["review"] * 3 + ["allow"] * 2
    assert page.texts("div", class_="reason")[3] == "partial: the file ends early"


def test_the_head_says_what_was_run_and_counts(predictions: Predictions) -> None:
    some(predictions)
    page = predictions.report()
    assert page.texts("title") == ["7 videos: 2 block, 3 review, 2 allow"]
    assert page.texts("dt")[:2] == list(FACTS)
    assert page.texts("dd")[:2] == list(FACTS.values())
    chips = ["all 7", "block 2", "review 3", "allow 2", "all 7", "ok 5", "partial 1", "undecodable 1", "unfetchable 0"]
    chips += ["all 7", "open 7", "decided 0"]
    assert page.texts("label", class_="chip") == chips


def test_what_could_not_be_read_is_said_at_the_top(predictions: Predictions) -> None:
    some(predictions)
    (warning,) = [text for text in predictions.report().texts("p", class_="warning") if "JavaScript" not in text]
    assert warning.startswith("2 of 7 videos could not be decoded completely: 1 partial, 1 undecodable.")


def test_only_what_happened_is_said(predictions: Predictions) -> None:
    predictions.video("half.mp4", "review", 0.2, None, "partial", "partial: the file ends early")
    warning = "1 of 1 video could not be decoded completely: 1 partial. They are marked for review."
    assert warning in predictions.report().texts("p", class_="warning")


def test_nothing_is_said_where_all_was_read(predictions: Predictions) -> None:
    predictions.video("a.mp4")
    page = predictions.report()
    assert len(page.texts("p", class_="warning")) == 1  # the one about JavaScript
    assert page.texts("h1") == ["1 video"]


def test_details_hold_what_is_drawn(predictions: Predictions) -> None:
    some(predictions)
    *details, page = predictions.report().data()
    videos = page.pop("videos")
    assert [[path, sha256] for path, sha256, *_ in videos] == [[path, sha256_of(path)] for path in ORDER]
    assert [place for *_, place, _ in videos].count(None) == 1  # which could not be decoded
    assert page == {
        "classes": CLASSES,
        "labels": CLASSES,
        "plotted": [0, 1],
        "total": 7,
        "atOnce": 200,
        "model": "3f9a0c77d1e2",
        "policy": "",
    }
    (long,) = [one for one in details if len(one["cuts"]) > 2]
    assert long["cuts"] == [0, 3, 5, 7, 10]  # windows 0-4 2-6 4-8 6-10: centres 2 4 6 8
    assert long["probabilities"][1] == [0.2, 0.97, 0.6, 0.05]
    assert long["segments"] == [[1, 3, 7, 0.97, 4], [0, 7, 10, 0.9, 8]]  # in order of time
    assert long["peaks"] == [[0, 2, 0.1]] and long["loops"] == [[2, [jpeg("long.mp4")]]]


def test_copies_share_their_details_and_name_each_other(predictions: Predictions) -> None:
    copies = [f"{number}.mp4" for number in range(1, 8)]
    predictions.video("0.mp4", segments=[("fight", 0.0, 4.0, 0.6, 2.0)], copies=copies)
    page = predictions.report()
    details, drawn = page.data()
    assert details["segments"] == [[1, 0, 4, 0.6, 2]]
    assert [place for *_, place, _ in drawn["videos"]] == [0] * 8
    copies = [facts["Same content"] for *_, facts in drawn["videos"]]
    assert copies[0] == "1.mp4, 2.mp4, 3.mp4, 4.mp4, 5.mp4 and 2 more"
    assert copies[7] == "0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4 and 2 more"


def test_max_videos_cuts_the_least_urgent_and_says_so(predictions: Predictions) -> None:
    some(predictions)
    page = predictions.report(max_videos=3)
    assert page.paths == ORDER[:3]
    assert len(page.data()) == 3  # of the two that could be read, and the page's own
    assert jpeg("long.mp4") in page.source
    assert jpeg("calm.mp4") not in page.source
    assert "all 7" in page.texts("label", class_="chip")  # counts are of all
    note = "Only the 3 most urgent videos are shown. The other 4 are left out here; predictions.csv has them all."
    assert note in page.texts("p", class_="warning")
    assert page.texts("p", id="count") == ["Showing 3 of 7"]


def test_without_a_policy_there_is_no_score_and_every_class_is_drawn(predictions: Predictions) -> None:
    predictions.video("a.mp4", "review", None)
    predictions.video("b.mp4", "review", None, status="partial")
    page = predictions.report(safe_class=None)
    assert page.paths == ["b.mp4", "a.mp4"]
    heads = ["Decision", "Video", "Class", "p(adult)", "p(fight)", "p(safe)", "Length", "Status", "Segments"]
    assert page.texts("th") == heads
    assert page.data()[-1]["plotted"] == [0, 1, 2]


def test_probabilities_that_are_none_are_unknown(predictions: Predictions) -> None:
    nan = float("nan")
    predictions.video("nan.mp4", "review", nan, [[nan, nan, nan], [0.5, 0.5, 0.0]], reason="no probabilities")
    predictions.video("fine.mp4", "review", 0.9)
    page = predictions.report()
    assert page.paths == ["nan.mp4", "fine.mp4"]  # what has no score is more urgent than what has one
    assert page.cells()[0][2:6] == ["–"] * 4  # noqa: RUF001
    assert page.data()[0]["probabilities"] == [[None, 0.5], [None, 0.5], [None, 0.0]]
    assert page.data()[0]["peaks"][0][2] is None


def test_no_videos_make_a_page_too(predictions: Predictions) -> None:
    page = predictions.report()
    assert page.texts("h1") == ["0 videos"]
    assert page.paths == []
    assert page.texts("p", class_="note") == ["There are no videos."]


def test_the_most_urgent_keep_the_order_of_equals() -> None:
    cells = [("allow", "ok", "0.1"), ("review", "ok", "0.7"), ("block", "ok", "0.9"), ("review", "ok", "0.7")]
    rows = [{"decision": d, "status": s, "score": n, "path": str(i)} for i, (d, s, n) in enumerate(cells)]
    assert "".join(row["path"] for row in most_urgent(rows, 9)) == "2130"


# ---- what strangers may write


def test_hostile_names_are_text(predictions: Predictions) -> None:
    for name in HOSTILE:
        predictions.video(name, "review", 0.5, reason=f"partial: {name}", windows=[[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])
    page = predictions.report()
    names = [" ".join(visible(name).split()) for name in HOSTILE]
    assert [video[:2] for video in page.data()[-1]["videos"]] == [[name, sha256_of(name)] for name in HOSTILE]
    assert page.paths == names
    assert page.texts("div", class_="reason") == [f"partial: {name}" for name in names]
    # The only characters that are not drawn are the white space of the page itself and the joiners of the emoji.
    assert {c for c in page.source if not c.isprintable()} == {"\n", "\u200d"}
    assert not [key for _, attrs, _ in page.elements for key in attrs if key.startswith("on")]


def one_video(path: str, fact: str, classes: list[str]) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        predictions = Predictions(Path(folder), classes)
        predictions.video(path, "block", 0.9, segments=[(classes[0], 0.0, 4.0, 0.9, 2.0)])
        written = write_report(
            predictions.journal, classes, "safe", {"Run": fact}, max_videos=5, loops_megabytes=1, blur=False
        )
        predictions.journal.close()
        return Page(written.read_bytes().decode())


def test_hostile_classes_are_text() -> None:
    classes = ["</script><script>alert(1)", "__proto__", '"><img src=x>', "safe"]
    page = one_video("a.mp4", "a run", classes)
    assert page.data()[-1]["classes"] == classes
    assert page.data()[0]["segments"] == [[0, 0, 4, 0.9, 2]]
    assert page.tags == one_video("a.mp4", "a run", ["a", "b", "c", "safe"]).tags


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@cache
def tags_of_a_plain_page() -> list[str]:
    return one_video("a.mp4", "a run", CLASSES).tags


@settings(deadline=None, max_examples=30)
@given(TEXT | st.sampled_from(HOSTILE), TEXT)
def test_no_name_changes_the_page_around_it(name: str, fact: str) -> None:
    page = one_video(name, fact, CLASSES)
    assert page.paths == [" ".join(visible(name).split())]
    assert page.texts("dd")[0] == " ".join(visible(fact).split())
    assert page.tags == tags_of_a_plain_page()


def test_a_fact_that_is_no_valid_text_is_written_out() -> None:
    """The name of a folder may hold bytes that are no UTF-8, which Python reads as lone surrogates."""
    assert one_video("a.mp4", "run\udcff", CLASSES).texts("dd")[0] == "run\\udcff"


def test_only_the_scripts_and_styles_of_the_page_itself_may_run(predictions: Predictions) -> None:
    some(predictions)
    page = predictions.report()
    (policy,) = (attrs["content"] for _, attrs, _ in page.elements if attrs.get("http-equiv"))
    rules = dict(rule.split(maxsplit=1) for rule in str(policy).split("; "))
    (style,), (script,) = (
        ["".join(text) for tag, attrs, text in page.elements if tag == name and "type" not in attrs]
        for name in ("style", "script")
    )
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": allowed(style),
        "script-src": allowed(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    attributes = [key for _, attrs, _ in page.elements for key in attrs]
    assert not {"src", "href", "style", "action"} & set(attributes)
    addresses = set(re.findall(r"https?:[^\"'`\s)]*", page.source))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}  # names, not places
    assert "url(" not in style and "@import" not in style


def allowed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("blur", [True, False])
def test_pictures_are_blurred_from_the_first_moment(predictions: Predictions, blur: bool) -> None:
    some(predictions)
    page = predictions.report(blur=blur)
    tag, attrs, _ = page.elements[0]
    assert (tag, attrs.get("class")) == ("html", "blur grey" if blur else None)
    for name in ("blur", "grey"):
        (box,) = [attrs for _, attrs, _ in page.elements if attrs.get("id") == name]
        assert ("checked" in box) == blur
    assert re.search(r"^\.blur \{ --blur: blur\(14px\)", page.source, re.MULTILINE)


# ---- in a browser


ROWS = "[...document.querySelectorAll('.videos > tbody')].filter(v => !v.hidden)"
PATHS = f"{ROWS}.map(v => v.querySelector('bdi').textContent)"


def test_in_a_real_browser(predictions: Predictions, context: BrowserContext, chromium: Browser) -> None:
    some(predictions)
    for name in HOSTILE:
        predictions.video(name, "allow", 0.0)
    predictions.report(blur=True)
    hostile = [visible(name) for name in HOSTILE]
    page = context.new_page()
    page.goto(predictions.url)
    assert value(page, PATHS) == ORDER + hostile

    def click(selector: str, which: int = 0) -> None:
        page.evaluate(f"document.querySelectorAll({selector!r})[{which}].click()")

    # Sorting, by length: numbers fall first, then rise; what is unknown stays last, and the rank decides ties.
    click("th button", 7)
    assert value(page, PATHS)[:2] == ["long.mp4", "a/fight.mp4"]
    click("th button", 7)
    assert value(page, PATHS)[0] == "a/fight.mp4"
    assert value(page, PATHS)[-2:] == ["long.mp4", "empty.mp4"]
    sorted_by = "[...document.querySelectorAll('[aria-sort]')].map(h => [h.textContent.trim(), h.ariaSort])"
    assert value(page, sorted_by) == [["Length", "ascending"]]
    click("th button", 1)
    assert value(page, PATHS)[:2] != ORDER[:2] and sorted(value(page, PATHS)) == sorted(ORDER + hostile)
    click("th button", 0)
    assert value(page, PATHS) == ORDER + hostile

    # Filters: by decision and status, and by words in the path or the reason.
    click("[name=decision]", 2)
    assert value(page, PATHS) == ["empty.mp4", "half.mp4", "unsure.mp4"]
    click("[name=status]", 1)
    assert value(page, PATHS) == ["unsure.mp4"]
    assert page.locator("#count").inner_text() == "Showing 1 of 17"
    click("[name=decision]", 0)
    click("[name=status]", 0)
    page.locator("[type=search]").fill("FIGHT")
    assert value(page, PATHS) == ["long.mp4", "a/fight.mp4", "unsure.mp4"]

    # A row opens by itself, with a plot of both harmful classes or with bars.
    click("[aria-expanded]", 0)
    click("[aria-expanded]", 1)
    assert value(page, f"{ROWS}.map(v => v.rows[1]?.hidden ?? true)") == [False, False, True]
    assert value(page, f"{ROWS}[0].querySelectorAll('svg .curve').length") == 2
    assert value(page, f"{ROWS}[0].querySelectorAll('svg .shade').length") == 2
    assert value(page, f"[...{ROWS}[0].querySelectorAll('svg text')].map(t => t.textContent)")[-3:-1] == [
        "0:08",
        "0:09",
    ]
    cells = f"[...{ROWS}[0].querySelectorAll('.found td')].map(c => c.textContent)"
    assert value(page, cells)[:5] == ["fight", "0:03.0", "0:07.0", "0.97", "0:04.0"]
    widths = f"[...{ROWS}[1].querySelectorAll('.bars b')].map(b => b.style.width)"
    assert value(page, widths) == ["10%", "10%", "80%"]

    # Pictures are blurred until one is clicked, or all are wanted.
    filters = "[...document.querySelectorAll('.peaks img')].map(i => getComputedStyle(i).filter)"
    assert value(page, filters) == ["blur(14px) grayscale(1)"] * 2
    assert value(page, "[...document.querySelectorAll('.peaks img')].map(i => i.naturalWidth)") == [16, 16]
    assert value(page, "document.querySelector('.peaks').textContent") == "adult 0.10 at 0:02.0"
    click(".peaks button", 1)
    assert value(page, filters) == ["blur(14px) grayscale(1)", "none"]
    click("#blur")
    assert value(page, filters) == ["grayscale(1)"] * 2
    click("#grey")
    assert value(page, filters) == ["none"] * 2

    # A link to one video opens it, on a phone too, where the page is as wide as the screen even with all rows open.
    assert page.page_errors() == [] and page.console_messages() == []
    page = chromium.new_page(viewport={"width": 360, "height": 900}, is_mobile=True)
    page.goto(f"{predictions.url}#v3")
    assert value(page, f"{ROWS}.map(v => v.rows[1]?.hidden ?? true)").index(False) == 2
    click("#all")
    assert value(page, f"{ROWS}.every(v => v.rows[1]?.hidden === false)")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.page_errors() == [] and page.console_messages() == []


def test_a_real_browser_refuses_what_does_not_belong_to_the_page(
    predictions: Predictions, context: BrowserContext
) -> None:
    some(predictions)
    source = predictions.report().source
    foreign = '<script>document.title = "taken"</script><img src="file:///x.png"></body>'
    (predictions.path / "report.html").write_text(source.replace("</body>", foreign))
    page = context.new_page()
    page.goto(predictions.url)
    assert page.title().startswith("7 videos")
    assert len(page.console_messages()) == 2
