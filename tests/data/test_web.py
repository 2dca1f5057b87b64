"""Videos on web servers, which answer in more ways than S3 does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.web import Web, self_signed, serve_web

from vidcls.data import remote
from vidcls.data.listing import walk_folder
from vidcls.data.options import FetchLimits
from vidcls.data.remote import UnfetchableError, fetch, open_filesystem
from vidcls.errors import UserError

QUICK = FetchLimits(attempts=3, timeout_seconds=20.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Web]:
    with serve_web() as found:
        yield found


@pytest.fixture
def web(server: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    server.pages.clear()
    server.requests.clear()
    return server


@pytest.mark.parametrize("kind", ["plain", "nosize", "busy"])
def test_a_file_arrives_whole(web: Web, tmp_path: Path, kind: str) -> None:
    """``nosize``: the server answers HEAD with a length of 0."""
    fetched = fetch(f"{web.url}/{kind}/a.mp4?id=7", tmp_path, QUICK)
    assert fetched.path.read_bytes() == web.content


@pytest.mark.parametrize(
    ("kind", "words", "gets"),
    [
        ("login", "a page or message came instead: <!DOCTYPE html><title>Sign in</title>", 1),
        ("message", '{"error": "sign in"}', 1),
        ("cut", "(3 attempts)", 3),
        ("loop", "TooManyRedirects", 0),
    ],
)
def test_what_is_no_video_is_a_reason(web: Web, tmp_path: Path, kind: str, words: str, gets: int) -> None:
    """A login page for each video would else be undecodable for good."""
    with pytest.raises(UnfetchableError) as error:
        fetch(f"{web.url}/{kind}/a.mp4", tmp_path, QUICK)
    assert words in str(error.value) and not list(tmp_path.iterdir())
    assert kind == "loop" or [method for method, _ in web.requests].count("GET") == gets


def test_a_busy_server_says_when_to_come_again(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("threading.Event.wait", lambda _, timeout=None: pauses.append(timeout or 0.0))
    fetch(f"{web.url}/busy/b.mp4", tmp_path, QUICK)
    assert 2 in pauses


def test_the_time_for_a_file_is_that_of_the_options() -> None:
    system, _ = open_filesystem("https://host/a.mp4")
    assert system.client_kwargs["timeout"].total is None  # aiohttp's default are five minutes


def test_a_server_that_falls_silent_is_given_up(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnfetchableError) as error:
        fetch(f"{web.url}/stall/a.mp4", tmp_path, FetchLimits(attempts=1, timeout_seconds=0.5))
    assert "timed out after 0.5 s" in str(error.value)
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.5)
    with pytest.raises(UnfetchableError) as error:
        fetch(f"{web.url}/stall/b.mp4", tmp_path, FetchLimits(attempts=1))
    assert "timed out after" not in str(error.value)
    with pytest.raises(UserError) as refused:
        list(walk_folder(f"{web.url}/stall/", Counter()))
    assert refused.value.code == "unreadable-source" and "imeout" in str(refused.value)


def test_a_certificate_that_nobody_trusts_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100,000 videos of that server would take hours."""
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    with serve_web(self_signed(tmp_path)) as web, pytest.raises(UnfetchableError) as error:
        fetch(f"{web.url}/plain/a.mp4", tmp_path / "fetched", QUICK)
    assert "self-signed certificate" in str(error.value) and "attempts" not in str(error.value)


def test_proxies_come_from_the_environment(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    fetch("http://host.invalid/plain/a.mp4", tmp_path, QUICK)
    assert ("GET", "http://host.invalid/plain/a.mp4") in web.requests


def test_a_page_is_listed_as_a_browser_follows_it(web: Web) -> None:
    links = ("../", "./a.mp4", "b%20c.mp4", "b&amp;c.mp4", "?C=N;O=D", "/up/", "../up/d.mp4", "../clips/", "sub/")
    web.pages["/clips"] = web.pages["/clips/"] = "".join(f'<a href="{link}">' for link in links).encode()
    web.pages["/clips/sub"] = b'<a href="../"><a href="./e.mp4"><a href="/clips/sub/f.mp4">'
    found = [path for path, _, _ in walk_folder(f"{web.url}/clips/", Counter())]
    assert sorted(found) == ["a.mp4", "b%20c.mp4", "b&c.mp4", "sub/e.mp4", "sub/f.mp4"]
    assert len(web.requests) == 2


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems connect as soon as they are opened."""
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)
    with pytest.raises(UserError) as error:
        list(walk_folder("ftp://127.0.0.1:1/clips", Counter()))
    assert error.value.code == "unreadable-source"
    with pytest.raises(UnfetchableError):
        fetch("ftp://127.0.0.1:1/a.mp4", tmp_path, QUICK)
