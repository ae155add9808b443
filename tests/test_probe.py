"""The probe finds what a sandbox lets through, and what cannot be run in it."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_sandbox import SMALL, room, wall  # noqa: F401 - fixtures

from agent.run.bubblewrap import Bubblewrap
from agent.run.probe import SECRETS, device_fault, probe, rooms_fault
from agent.run.sandbox import Room, Sandbox, Unsandboxed


def test_the_probe_finds_nothing_in_a_sandbox(tmp_path: Path, repository: Path, wall: Sandbox) -> None:
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    (heldout / "val").write_text("x")
    found = probe(wall, repository / ".research" / "x", repository, holdout=[heldout], protected=["prepare.py"])
    assert found == []


def test_the_probe_breaks_out_where_there_is_no_sandbox(tmp_path: Path, repository: Path) -> None:
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    (heldout / "val").write_text("x")
    before = sorted(path for path in repository.rglob("*"))
    home = repository / ".research" / "x"
    found = "\n".join(probe(Unsandboxed(), home, repository, holdout=[heldout], protected=["prepare.py"]))
    assert sum(f"person/{name}" in found for name in SECRETS) == len(SECRETS)
    for what in (
        f"list {Path.home()}",
        f"list {repository.parent}",
        f"list {heldout}",
        f"write {repository}/prepare.py",
        f"create files in {repository}/.git",
        f"list {heldout}",
        "read a key in the environment",
        "TCP",
        "UDP",
        "abstract unix socket",
        "unix socket file",
        "see a process",
        "read a host process",
        "signal a process",
        "outlives the trial",
    ):
        assert what in found
    assert sorted(path for path in repository.rglob("*") if ".research" not in path.parts) == before


class Careless(Bubblewrap):
    """Shows all of the folder in which the interpreter's `bin` lies, where a person may keep more than a Python."""

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        return super().wrap(argv, dataclasses.replace(room, data=(*room.data, Path(argv[0]).parents[1])))


def test_the_probe_finds_what_lies_beside_the_interpreter(tmp_path: Path, repository: Path) -> None:
    found = probe(Careless(SMALL), repository / ".research" / "x", repository)
    assert len(found) == 6 and all("/.local/" in what for what in found)  # three files, in two rooms


def test_a_sandbox_that_can_not_start_fails_the_probe(tmp_path: Path, repository: Path) -> None:
    sandbox = Bubblewrap(SMALL)
    sandbox.bwrap = Path("/bin/false")
    assert "keep the probe from running" in probe(sandbox, tmp_path / "home", repository)[0]


def test_a_small_program_runs_in_every_kind_of_room_at_once(tmp_path: Path, wall: Sandbox, room: Room) -> None:
    assert rooms_fault(wall, tmp_path, "cpu", None, room.env) is None


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_a_fault_and_says_why(wall: Sandbox, room: Room) -> None:
    fault = device_fault(wall, room, "cuda")
    assert fault and fault.startswith("a kernel on the GPU does not run in the sandbox: the driver's library can't")


def test_a_room_that_can_not_be_made_is_a_fault(room: Room) -> None:
    sandbox = Bubblewrap(SMALL)
    sandbox.bwrap = Path("/bin/false")
    fault = device_fault(sandbox, room, "cpu")
    assert fault and fault.startswith("a program does not run in the sandbox")
