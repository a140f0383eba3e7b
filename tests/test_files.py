"""Files are there whole or not at all, and never replace what somebody else wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sppnet.errors import OutputError
from sppnet.files import (
    MADE_BY,
    atomic_write,
    check_outputs,
    check_replaceable,
    is_ours,
    make_folder,
    remove_unfinished,
    to_json,
    write_json,
)


def test_what_we_wrote_may_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    write_json(path, {"boxes": []})
    write_json(path, {"boxes": [1]})
    assert json.loads(path.read_text()) == {"made_by": MADE_BY, "boxes": [1]}


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text("mine")
    with pytest.raises(OutputError, match="was not written by sppnet: choose another name"):
        write_json(path, {})
    with pytest.raises(OutputError):
        check_replaceable(path)
    assert path.read_text() == "mine"
    with atomic_write(path, replace="any") as unfinished:
        unfinished.write_text("a cache's")
    assert path.read_text() == "a cache's"


def test_the_mark_is_found_at_either_end_of_a_large_file(tmp_path: Path) -> None:
    filling = b"\0" * 300_000
    for name, content in {"front": MADE_BY.encode() + filling, "back": filling + MADE_BY.encode()}.items():
        (tmp_path / name).write_bytes(content)
        assert is_ours(tmp_path / name)
    (tmp_path / "middle").write_bytes(filling + MADE_BY.encode() + filling)
    assert not is_ours(tmp_path / "middle")
    assert not is_ours(tmp_path / "none")


def write_half(path: Path, error: Exception) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text("half of")
        raise error


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    write_json(path, {"boxes": []})
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"answer\.json: cannot be written: No space left"):
        write_half(path, OSError(28, "No space left on device"))
    with pytest.raises(RuntimeError):
        write_half(path, RuntimeError())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_write_into_each_others(tmp_path: Path) -> None:
    def write(content: str) -> None:
        with atomic_write(tmp_path / "file", replace="any") as unfinished:
            unfinished.write_text(content)

    contents = [letter * 100_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=write, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in contents


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another place"), atomic_write(tmp_path / "file" / "x"):
        pass
    with pytest.raises(OutputError, match="cannot be a folder"):
        make_folder(tmp_path / "file")


def test_names_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    write_json(path, {})
    assert path.is_file()


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    check_outputs(tmp_path / "new" / "a.json", tmp_path / "b.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]  # and nothing is left there
    (tmp_path / "file").touch()
    for path, says in (("file/a.json", "cannot be a folder"), ("file", "not written by sppnet")):
        with pytest.raises(OutputError, match=says):
            check_outputs(tmp_path / path)


def test_json_holds_no_nan() -> None:
    document = {"ap": float("nan"), "inside": [(1.5, float("inf"))], "text": "NaN"}
    assert json.loads(to_json(document), parse_constant=pytest.fail) == {
        "ap": None,
        "inside": [[1.5, None]],
        "text": "NaN",
    }


@pytest.mark.skipif(os.name != "posix", reason="a process is asked whether it is there by POSIX's means")
def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """Of this machine, and of processes that have ended, alone."""
    code = f"""
import os, pathlib, sppnet.files
with sppnet.files.atomic_write(pathlib.Path({str(tmp_path)!r}, "deep", "a.bin"), replace="any") as unfinished:
    unfinished.write_text("half"); os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    (left,) = (tmp_path / "deep").iterdir()
    others = left.with_name(left.name.replace(left.name.split("-")[1], "00000000"))
    others.touch()
    with atomic_write(tmp_path / "b.bin") as unfinished:
        unfinished.write_text("more")
        remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == sorted([others.name, "b.bin"])
