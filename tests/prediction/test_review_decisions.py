"""Decisions that leave the page and come back, in a real browser: exported, imported, refused, and read by Python."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from helpers.reports import CLASSES, HOSTILE, ORDER, Predictions, sha256_of
from helpers.review import alerts, choose, export, is_pressed, keys, opened, short, start, title
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, BrowserContext, Page, expect

from vidcls.data.decisions import COLUMNS, read_decisions, unescape_formula
from vidcls.pages import visible


def test_a_second_opinion_without_the_first(predictions: Predictions, chromium: Browser, tmp_path: Path) -> None:
    predictions.write_report()
    first, second = chromium.new_context(), chromium.new_context()
    page = opened(first, predictions.url, "Ada")
    keys(page, "2", "u")
    ada = export(page, tmp_path / "ada.csv")

    page = opened(second, predictions.url)
    choose(page, ada)
    expect(page.get_by_role("status").first).to_have_text("Imported 2 decisions of ada.csv that were new.")
    assert page.locator(".given").all_inner_texts() == ["Ada: fight", "Ada: unsure"]
    page.get_by_label("Second opinion").check()
    expect(page.locator(".list")).to_be_hidden()
    start(page, "Bo")
    order = sorted(ORDER, key=sha256_of)  # not by urgency, which is the model's
    assert title(page) == order[0]
    controls = [*CLASSES, "unsure", "bad file", "Previous", "Next", "Undo", "Blur", "Grey", "Play", "Note"]
    for path in order:
        assert title(page) == path
        picture = "It could not be decoded." if path == "empty.mp4" else "0:02.0"
        shown = "".join(line for line in page.locator("#desk").inner_text().splitlines() if line.strip())
        keys_shown = ["1", "2", "3", "u", "x", "←", "→", "z", "b", "g", "p", "n"]
        named = "".join(f"{name} {key}" for name, key in zip(controls, keys_shown, strict=True))
        assert shown.replace(" ", "") == f"{path}{picture}{named}SinglekeysdecideExportdecisions.csv".replace(" ", "")
        keys(page, "ArrowRight")
    page.reload()
    expect(page.locator(".list")).to_be_hidden()  # still
    start(page)
    page.get_by_role("button", name="fight").click()
    assert title(page) == order[1]
    both = read_decisions([ada, export(page, tmp_path / "both.csv")])
    assert sorted(zip(both["path"], both["reviewer"], both["verdict"], strict=True)) == sorted(
        [(ORDER[0], "Ada", "label"), (ORDER[1], "Ada", "unsure"), (order[0], "Bo", "label")]
    )
    first.close()
    second.close()


def rewrite(file: Path, source: Path, **changes: str) -> Path:
    with source.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    rows[-1] |= changes
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_what_does_not_match_is_refused_in_words(
    predictions: Predictions, context: BrowserContext, tmp_path: Path
) -> None:
    predictions.write_report()
    page = opened(context, predictions.url, "Ada")
    keys(page, "2", "u")
    good = export(page, tmp_path / "good.csv")
    keys(page, "z", "z", "Escape")
    kept = "JSON.stringify(Object.entries(localStorage).sort())"
    before, bad = page.evaluate(kept), tmp_path / "bad.csv"
    changes = {
        "1 of its 2 rows are about videos that this page does not show, the first in line 3: <b>x": {
            "sha256": sha256_of("other"),
            "path": "<b>x",
        },
        'line 3: the label "dance" is no class of this page': {"verdict": "label", "label": "dance"},
        'line 3: the verdict "maybe"': {"verdict": "maybe"},
        "line 3: the time": {"time": "2026-03-01T10:00:00"},
        "line 3: the seconds": {"seconds": "soon"},
        "line 3: the name": {"reviewer": ""},
    }
    for message, change in changes.items():
        choose(page, rewrite(bad, good, **change))
        expect(page.get_by_role("alert").first).to_contain_text(f"bad.csv was not imported: {message}")
    contents = {"no column path": b"a;b\n1;2\n", "line 2 is no CSV": b'"a"\n"b"c"', "encoded data": b"\xff\xfe"}
    for message, content in contents.items():
        bad.write_bytes(content)
        choose(page, bad)
        expect(page.get_by_role("alert").first).to_contain_text(message)
    assert page.evaluate(kept) == before  # not a row of them
    choose(page, good)  # older than what was withdrawn since
    expect(page.get_by_role("status").first).to_have_text("Imported 0 decisions of good.csv that were new.")
    assert alerts(page) == set()


def test_two_tabs_lose_nothing_of_each_other(predictions: Predictions, context: BrowserContext, tmp_path: Path) -> None:
    predictions.write_report()
    one, two = opened(context, predictions.url, "Ada"), opened(context, predictions.url)
    start(two)
    keys(one, "2")
    expect(two.locator("#place")).to_have_text("Video 1 of 7 · 1 decided")
    is_pressed(two, "fight")
    keys(two, "3")  # about the same video, later
    keys(one, "u")
    for page in (one, two):
        expect(page.locator("#place")).to_contain_text("2 decided")
        found = short(read_decisions([export(page, tmp_path / "ada.csv")]))
        assert found == {ORDER[0]: ("label", "safe", ""), ORDER[1]: ("unsure", "", "")}


@pytest.mark.parametrize("storage", ["full", "blocked"])
def test_storage_that_keeps_nothing_is_said(
    predictions: Predictions, context: BrowserContext, tmp_path: Path, storage: str
) -> None:
    predictions.write_report()
    if storage == "blocked":
        context.add_init_script(
            "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('', 'SecurityError'); }})"
        )
    page = opened(context, predictions.url)
    if storage == "full":
        page.evaluate("for (let n = 2 ** 22; n >= 1; n /= 2) try { localStorage[n] = 'x'.repeat(n) } catch {}")
        page.evaluate("for (let n = 0; ; n++) try { localStorage['y' + n] = 'x' } catch { break }")
    start(page, "Ada")
    keys(page, "2")
    (alert,) = alerts(page)
    assert "does not keep what you decide" in alert and "Export decisions.csv before you close" in alert
    if storage == "full":
        page.once("dialog", lambda dialog: dialog.dismiss())  # "Leave this page?" No.
        page.close(run_before_unload=True)
        page.wait_for_timeout(200)
    assert short(read_decisions([export(page, tmp_path / "ada.csv")])) == {ORDER[0]: ("label", "fight", "")}


def test_hostile_names_come_back_from_decisions(chromium: Browser, tmp_path: Path) -> None:
    names = [*HOSTILE, "=1+1.mp4", "@SUM(A1).mp4", "'=x.mp4", "carriage\rreturn.mp4", '"quoted", twice.mp4']
    classes = ["=cmd|' /C calc'!A0", "<img src=x onerror=alert(1)>", "unsure", "\u202eefas"]
    predictions, context = Predictions(tmp_path, classes), chromium.new_context()
    for name in names:
        predictions.video(name, "review", 0.5)
    predictions.write_report(safe_class=None)
    predictions.journal.close()
    page = opened(context, predictions.url, "=<i>\u202eAda</i>")
    keys(page, "n")
    page.keyboard.insert_text("+1\n\"'</script>")
    keys(page, "Escape", *(str(1 + place % 4) for place in range(len(names))))
    path = export(page, tmp_path / "decisions.csv")
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    table = read_decisions([path]).set_index("path")
    assert sorted(table.index) == sorted(names)
    assert [table.loc[name, "label"] for name in sorted(names)] == [classes[p % 4] for p in range(len(names))]
    assert set(table["reviewer"]) == {"=<i>\u202eAda</i>"} and set(table["verdict"]) == {"label"}
    assert sorted(table["note"])[-1] == "+1\n\"'</script>"
    other = chromium.new_context()
    page = opened(other, predictions.url)
    choose(page, path)
    expect(page.get_by_role("status").first).to_contain_text(f"Imported {len(names)} decisions")
    assert page.locator(".given").first.inner_text() == f"=<i>\u202eAda</i>: {visible(classes[0])}"
    assert page.evaluate("document.querySelectorAll('.given *, #work i, #work img').length") == 0
    assert page.page_errors() == [] and page.console_messages() == []
    other.close()
    context.close()


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("'=+-@\t\r\n\",;"), max_size=5)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(TEXT, min_size=2, max_size=3), min_size=1, max_size=3))
def test_any_text_comes_back(csv_page: Page, rows: list[list[str]]) -> None:
    text = csv_page.evaluate("rows => writeCsv(rows)", rows)
    assert [cells for _, cells in csv_page.evaluate("text => readCsv(text)", text)] == rows
    cells = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert [[unescape_formula(cell) for cell in row] for row in cells] == rows
    plain = io.StringIO(newline="")  # as others may write it
    csv.writer(plain).writerows(cells)
    assert [cells for _, cells in csv_page.evaluate("text => readCsv(text)", plain.getvalue())] == rows


@pytest.fixture
def csv_page(predictions: Predictions, context: BrowserContext) -> Page:
    predictions.write_report()
    page = opened(context, predictions.url)
    assert page.evaluate("COLUMNS") == list(COLUMNS)
    return page
