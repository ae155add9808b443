"""Where a person says that something should be written: every command that takes a path, and every wrong one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, make_repository
from long_night import long_night
from test_loop import environment

from agent.errors import Failure
from agent.files import replace_file, write_file

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_repository(tmp_path_factory.mktemp("files") / "project", {"train.py": "", "program.md": "x"})
    long_night(made / ".research" / "monday", 3)
    return made


def agent(project: Path, *arguments: str, stdout: object = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "agent", *arguments, "--repo", str(project)]
    return subprocess.run(words, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "command", [("report", "--out"), ("report", "--png"), ("export", "--jsonl"), ("export", "--parquet")]
)
def test_a_wrong_place_is_one_line_and_nothing_is_left_there(project: Path, tmp_path: Path, command: tuple[str, str]):
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for place, says in (("/", "is a folder"), (str(tmp_path / "file" / "x"), "can't be written")):
        ran = agent(project, *command, place)
        assert ran.returncode == 2 and ran.stderr.startswith("error: ") and says in ran.stderr, ran.stderr
        assert ran.stderr.count("\n") == 1 and not ran.stdout
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


def test_every_wrong_place_raises_a_failure_and_every_folder_that_is_missing_is_made(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    beyond = [tmp_path / "file" / "x", Path("/proc/x"), tmp_path / ("x" * 300)]
    for place in (Path("/"), Path(""), Path(".."), tmp_path, *beyond):
        with pytest.raises(Failure, match="is a folder: name a file in it|can't be written .*: name another file"):
            write_file(place, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    write_file(tmp_path / "a" / "b", b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"new" and len(list((tmp_path / "a").iterdir())) == 1


def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path: Path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"through it")
    reader.join(20)
    assert read == [b"through it"] and stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "link").symlink_to("there")
    write_file(tmp_path / "link", b"1")
    write_file(tmp_path / "link", b"2")
    assert (tmp_path / "there").read_bytes() == b"2" and (tmp_path / "link").is_symlink()


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path):
    (path := tmp_path / "script").write_text("old")
    path.chmod(0o750)
    replace_file(path, b"new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o750)


def test_data_on_standard_output_is_whole_or_an_error_and_a_reader_may_leave(project: Path, tmp_path: Path):
    with (tmp_path / "table").open("wb") as file:
        assert agent(project, "export", "--parquet", "-", stdout=file).returncode == 0
    assert (tmp_path / "table").read_bytes().startswith(b"PAR1")
    for command in (("export", "--jsonl", "-"), ("show", "1", "--json")):
        with open("/dev/full", "wb") as full:
            ran = agent(project, *command, stdout=full)
        assert ran.returncode == 2
        assert ran.stderr == "error: standard output can't be written (No space left on device)\n"
    reader, writer = os.pipe()
    os.close(reader)
    ran = agent(project, "export", "--jsonl", "-", stdout=writer)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_folder_of_tensorboard_that_is_a_file_is_said(project: Path, tmp_path: Path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "file").write_text("")
    ran = agent(project, "export", "--to", f"tensorboard:{tmp_path / 'file'}")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1) and "name another folder" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
