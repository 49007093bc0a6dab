"""The folder of ``convattn predict --out``: an earlier call's files go, no other file is touched."""

import json
from pathlib import Path

import pytest

from convattn.cli._results_folder import RECORD, prepare
from convattn.errors import UserError


def fill(out: Path, *names: str) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {RECORD}


def test_only_what_an_earlier_call_wrote_goes(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "found"
    for names in (["a.png", "labels/a.png", "labels/classes.txt"], ["b.png", "annotations.json"]):
        prepare(out, names, [])
        assert files(out) <= {"mine.txt", "labels/mine.txt"}
        fill(out, *names, "mine.txt", "labels/mine.txt")
    prepare(out, ["c.png"], [])
    assert files(out) == {"mine.txt", "labels/mine.txt"}
    (out / "labels/mine.txt").unlink()


def test_a_folder_that_is_empty_then_goes(tmp_path: Path) -> None:
    prepare(tmp_path, ["a.png", "labels/a.png"], [])
    fill(tmp_path, "a.png", "labels/a.png")
    prepare(tmp_path, ["a.png"], [])
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]


def test_a_call_that_was_broken_off_leaves_nothing_behind(tmp_path: Path) -> None:
    prepare(tmp_path, ["a.png", "b.png"], [])
    fill(tmp_path, "a.png")  # and then it was killed
    prepare(tmp_path, ["c.png"], [])
    assert files(tmp_path) == set()


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    fill(tmp_path, "mine.png")
    with pytest.raises(UserError, match="holds other files, which could be written over"):
        prepare(tmp_path, ["a.png"], [])
    (tmp_path / "mine.png").rename(tmp_path.parent / "mine.png")
    prepare(tmp_path, ["a.png"], [])
    fill(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match=r"b\.png: would be written over"):
        prepare(tmp_path, ["a.png", "b.png"], [])
    assert files(tmp_path) == {"a.png", "b.png"}


def test_results_that_are_to_be_read_are_not_removed(tmp_path: Path) -> None:
    prepare(tmp_path, ["a.png"], [])
    fill(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"a\.png: an earlier result in .*give --out another folder"):
        prepare(tmp_path, ["a.png"], [tmp_path / "." / "a.png"])
    assert files(tmp_path) == {"a.png"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"files": ["../outside.txt", "/etc/passwd", 3, "a\0b", "link/outside.txt"]}),
        "{}",
        "[" * 100_000,
        "no JSON",
    ],
)
def test_a_record_that_is_wrong_removes_nothing(tmp_path: Path, text: str) -> None:
    out = tmp_path / "found"
    fill(tmp_path, "outside.txt", "found/mine.txt")
    (out / "link").symlink_to(tmp_path)
    (out / RECORD).write_text(text)
    prepare(out, ["a.png"], [])
    assert (tmp_path / "outside.txt").is_file()
    assert (out / "mine.txt").is_file()
