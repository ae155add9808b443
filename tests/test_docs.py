"""The documentation says what is so: the reference is made from the code, errors are real ones, and samples run."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from conftest import ROOT
from long_night import PROGRAM, Writer
from typer.main import get_command

from agent.cli import app, wiring
from agent.errors import ProposerError
from agent.judge.audit import worked_off
from agent.observers.follow import Follower
from agent.propose import choose
from agent.propose.edits import parse_reply
from agent.protocols import Job, Request
from agent.records import Turn

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")]


def test_the_reference_of_program_md_is_what_the_code_makes_of_it():
    made = subprocess.run(
        [sys.executable, "docs/reference.py"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert made.stderr == ""
    stands = (ROOT / "docs" / "PROGRAM.md").read_text()
    assert stands == made.stdout, "out of date: python docs/reference.py > docs/PROGRAM.md"


def test_every_error_of_the_faq_is_one_of_the_program():
    """As the source has it, with texts that stand in several lines put together."""
    source = "\n".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)
    asked = re.findall(r"(?m)^### `(.+)`$", (ROOT / "docs" / "FAQ.md").read_text())
    assert len(asked) > 20
    assert [line for line in asked if line not in joined] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path):
    links = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_lists_every_command():
    listed = set(re.findall(r"(?m)^\| `python -m agent (\w+)", (ROOT / "README.md").read_text())) | {"run"}
    assert set(getattr(get_command(app), "commands")) == listed  # noqa: B009


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of CONTRIBUTING.md where it says that it belongs."""
    for table in (choose.PROPOSERS, wiring.OBSERVERS, wiring.EXECUTORS):
        monkeypatch.setitem(table, "sample", None)  # so that the tables are put back
    blocks = re.findall(r"```python\n# (in )?agent/(\S+)\.py\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert len(blocks) == 6
    for within, path, code in blocks:
        name = f"agent.{path.replace('/', '.')}"
        if within:
            exec(code, dict(vars(sys.modules[name])))
        else:
            module = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(code, vars(module))
    yield
    for table, name in ((choose.PROPOSERS, "halve"), (wiring.OBSERVERS, "bell"), (wiring.EXECUTORS, "dice")):
        del table[name]


def test_the_samples_of_contributing_work(samples: None, tmp_path: Path):
    proposer = choose.choose_proposer("halve")
    files, turns = {"train.py": "import os\nRATE = 0.5\n"}, (Turn(role="user", text="Propose."),)
    request = Request(number=1, system="", turns=turns, program=PROGRAM, files=files, history=())
    edit = parse_reply(proposer.propose(request).text).edits[0]
    assert (edit.path, edit.search.strip(), edit.replace.strip()) == ("train.py", "RATE = 0.5", "RATE = 0.25")
    with pytest.raises(ProposerError, match="no number to halve"):
        proposer.propose(request.model_copy(update={"files": {"train.py": "import os\n"}}))

    home = tmp_path / "night"
    writer, looks = Writer(home), threading.Event()
    bell = wiring.OBSERVERS["bell"](home, None)  # type: ignore[arg-type]
    bell.start = lambda night, history: looks.set()  # type: ignore[method-assign]
    follower = Follower(home, bell)
    follower.start()
    assert looks.wait(30)
    writer.begin()
    for n in range(1, 21):
        writer.experiment(n)
    writer.ledger.close()
    follower.leaving.set()
    follower.news.set()
    follower.join(30)
    rung = (home / "bell.txt").read_text().splitlines()
    assert rung[0] == "#0 baseline" and len(rung) > 1

    executor = wiring.EXECUTORS["dice"](None, None, PROGRAM, 1)  # type: ignore[arg-type]
    job = Job(what="train", experiment=1_000_000, number=0, attempt=1, commit="c", seed=3, slot=0, program=PROGRAM)
    ((_, result),) = worked_off(executor, [job], tested=())
    assert result.measurement.metric == pytest.approx(0.2379646270918914)  # type: ignore[attr-defined]
