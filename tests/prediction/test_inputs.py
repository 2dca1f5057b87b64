from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from vidcls.data.options import FetchLimits
from vidcls.errors import UserError
from vidcls.prediction.inputs import Inputs, plan_videos
from vidcls.prediction.journal import Journal


def plan(text: object, output: Path) -> dict[str, str]:
    with closing(Journal(output, {})) as journal:
        return plan_videos(Inputs(str(text), FetchLimits()), journal, Console(quiet=True)).videos


def test_the_largest_come_first_and_names_decide_between_equals(tmp_path: Path) -> None:
    for name, size in {"b.mp4": 1, "day/c.mp4": 9, "a.mp4": 1, "d.mp4": 5}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(bytes(size))
    found = plan(tmp_path / "in", tmp_path / "out")
    assert list(found) == ["day/c.mp4", "d.mp4", "a.mp4", "b.mp4"]
    assert found["day/c.mp4"] == str(tmp_path / "in" / "day" / "c.mp4")
    assert plan(f"file://{tmp_path}/in", tmp_path / "other") == found


def test_a_local_file_that_has_changed_is_pending_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in" / name).write_bytes(b"content")
    with closing(Journal(tmp_path / "out", {})) as journal:
        versions = {}
        for name in ("a.mp4", "b.mp4"):
            state = os.stat(tmp_path / "in" / name)
            values = state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns
            versions[name] = " ".join(map(str, values))
        journal.write(versions, "1", {"status": "ok", "decision": "allow"}, None)
    assert plan(tmp_path / "in", tmp_path / "out") == {}
    (tmp_path / "in" / "b.mp4").write_bytes(b"another")
    assert list(plan(tmp_path / "in", tmp_path / "out")) == ["b.mp4"]
    (tmp_path / "in" / "c.mp4").write_bytes(b"new")
    with closing(Journal(tmp_path / "out", {})) as journal:
        found = plan_videos(Inputs(str(tmp_path / "in"), FetchLimits()), journal, Console(quiet=True))
    assert (found.num_listed, len(found.videos), found.num_again) == (3, 2, 1)


def test_names_of_a_list_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff.mp4\r\n\r\nhttps://host/a.mp4\n")
    assert sorted(plan(tmp_path / "list.txt", tmp_path / "out")) == ["https://host/a.mp4", "\udcff.mp4"]


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "input"), (b"\n\n", "input"), ("\ufeffa.mp4\n".encode("utf-16-le"), "bad-txt")]
)
def test_a_list_that_is_empty_or_no_utf_8_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        Inputs(str(tmp_path / "list.txt"), FetchLimits())
    assert error.value.code == code


def test_what_a_list_or_a_glob_leaves_out_is_counted(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,note\na.mp4,x\n,lost its path\n")
    (tmp_path / "in" / "day").mkdir(parents=True)
    for name in ("b.mp4", "day/c.mp4"):
        (tmp_path / "in" / name).write_bytes(b"content")
    (tmp_path / "in" / "gone.mp4").symlink_to("nowhere")
    expected = {
        tmp_path / "list.csv": (1, {"rows without a path": 1}),
        tmp_path / "in" / "*": (1, {"folders": 1, "broken links or special files": 1}),
        tmp_path / "in" / "**": (2, {"broken links or special files": 1}),
    }
    for text, (count, ignored) in expected.items():
        inputs = Inputs(str(text), FetchLimits())
        assert len(list(inputs)) == count and inputs.ignored == ignored, text
