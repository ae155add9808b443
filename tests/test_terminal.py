"""A night while it runs, on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from at_work import REPLIES, slow_project, until
from conftest import ROOT
from long_night import long_night
from rich.console import Console
from test_loop import command, environment, write_replies

from agent import events as ev
from agent import live
from agent.observers import now, screen
from agent.observers.now import Tally
from agent.observers.report.read import Reader
from agent.observers.terminal import LiveTerminal, terminal


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return slow_project(tmp_path / "project")


def drawn(home: Path, width: int, height: int) -> str:
    reader = Reader(home)
    reader.read()
    night, history = reader.night, reader.history
    seen = now.look(home, night, history, at_work=True)
    figures = Tally.of((event for _, event in reader.ledger.events()), night, history).figures(night, history, seen)
    verdicts = [history.brief(night.experiments[n]) for n in reversed(night.order[-50:])]
    lines = screen.picture(home.name, "val_bpb", seen, figures, verdicts, width, height)
    assert len(lines) <= height and all(line.cell_len <= width for line in lines)
    return "\n".join(line.plain for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 23), (199, 49), (40, 10)])
def test_the_picture_of_a_night_fits_and_says_what_runs_and_what_was_gained(tmp_path: Path, width: int, height: int):
    home = long_night(tmp_path / "night", 40)
    log = tmp_path / "log"
    log.write_text("step 1\n\x1b[2J\x1b]0;title\x07step 2 [red]loss\n")
    curve = [(k / 100, 1.2 + 3 / (k + 1)) for k in range(51)]
    live.write(home, live.Live(0, "train", 40, 1, time.time() - 200, str(log), "training", time.time() - 150, curve))
    said = drawn(home, width, height)
    assert "\x1b" not in said and "\x07" not in said
    assert re.search("val_bpb 1 → 0.9", said) and "kept" in said
    assert "#40 trial 2" in said
    if width >= 80:
        assert "50%  2m30s left" in said, said
        assert re.search(r"loss 1\.\d+  0\.\d+ (above|below) the incumbent's at this point", said), said
        assert "step 2 [red]loss" in said and re.search(r"gain 0\.0\d+ \(95%: 0\.0\d+ \.\. 0\.0\d+\)", said)
        assert len(re.findall(r"discard|keep|crash", said)) >= min(40, height - 16)


def test_eight_gpus_fit_on_a_small_terminal(tmp_path: Path):
    home = long_night(tmp_path / "night", 20)
    reader = Reader(home)
    reader.read()
    night, history = reader.night, reader.history
    for slot in range(8):
        curve = [(k / 10, 4 - k / 10) for k in range(slot + 1)]
        began, card = time.time() - 5, f"GPU-{slot}"
        live.write(home, live.Live(slot, "train", 10 + slot, 1, began, "", "training", began, curve, card))
    seen = now.look(home, night, history, at_work=True)
    cards = [now.Card(n, f"GPU-{n}", "Some GPU", 0.5 if n else None, 60.0, 80.0) for n in range(8)]
    figures = Tally.of((event for _, event in reader.ledger.events()), night, history).figures(night, history, seen)
    verdicts = [history.brief(night.experiments[n]) for n in reversed(night.order)]
    lines = screen.picture("night", "val_bpb", replace(seen, cards=cards), figures, verdicts, 79, 23)
    said = "\n".join(line.plain for line in lines)
    assert len(lines) <= 23 and all(f"#{10 + slot} training" in said for slot in range(8))
    assert "8 GPUs" in said and "50%" in said and "480.0 of 640 GB" in said and said.count("discard") >= 2


def test_a_tally_that_goes_on_with_the_events_is_that_of_the_whole_journal(tmp_path: Path):
    home = long_night(tmp_path / "night", 30)
    reader = Reader(home)
    events = [event for _, event in reader.ledger.events()]
    grown, night = Tally(), reader.night
    for event in events:
        night = night.after(event)
        grown.see(event, night, reader.history)
    seen = now.look(home, night, reader.history, at_work=False, stands="it ended")
    whole = Tally.of(events, night, reader.history)
    figures = whole.figures(night, reader.history, seen)
    assert grown.figures(night, reader.history, seen) == figures
    assert figures.tried == 30 and figures.gain and figures.interval and 0.8 < (figures.training or 0) < 0.95


def test_without_a_command_a_repository_with_a_night_shows_it_and_another_one_the_help(project: Path):
    def bare() -> str:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        ran = subprocess.run([sys.executable, "-m", "agent"], cwd=project, capture_output=True, text=True,
                             env=environment(PYTHONPATH=path, COLUMNS="100", LINES="30"))  # fmt: skip
        assert ran.returncode == 0 and not ran.stderr, ran.stderr
        return ran.stdout

    assert "doctor" in bare() and "init" in bare()
    long_night(project / ".research" / "monday", 6)
    said = bare()
    assert "night monday  6 experiments are done" in said and "val_bpb" in said and "baseline" in said


class Tmux:
    """A real terminal of this size, and what stands on it."""

    def __init__(self, folder: Path, width: int, height: int):
        self.socket = str(folder / "tmux")
        size = ("-x", str(width), "-y", str(height))
        self.run("-f", "/dev/null", "new-session", "-d", *size, "bash --norc --noprofile")

    def run(self, *arguments: str) -> str:
        env = environment(TERM="xterm-256color")
        ran = subprocess.run(["tmux", "-S", self.socket, *arguments], capture_output=True, text=True, env=env)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def type(self, text: str) -> None:
        self.run("send-keys", "-l", text)
        self.run("send-keys", "Enter")

    @property
    def text(self) -> str:
        return self.run("capture-pane", "-p")

    def shows(self, *parts: str) -> str:
        return until(lambda: all(part in self.text for part in parts) and self.text, f"{parts}")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_the_live_view_in_tmux(project: Path, tmp_path: Path, width: int, height: int):
    if shutil.which("tmux") is None:
        pytest.skip("no tmux here: apt-get install tmux")
    tmux = Tmux(tmp_path, width, height)
    try:
        replies = write_replies(tmp_path / "replies", *REPLIES)
        words = command(project, "--replay", str(replies), "--unsafe-no-sandbox", "--hours", "1", "--experiments", "6")
        tmux.type(f"cd {ROOT} && clear && SLOW=3 {' '.join(words)}; echo ended with $?")
        said = tmux.shows("#2 trial 1", "above the incumbent's at this point", "1 keep ")
        assert re.search(r"━━ +\d+% +\d+s left", said) and "left" in said and "verdicts" in said
        assert "A higher rate travels further." in said and re.search(r"step \d+ \| loss", said)
        assert "<script>" in said and len(said.splitlines()) <= height
        tmux.run("resize-window", "-x", str(width - 17), "-y", str(height - 3))
        said = tmux.shows("#3 trial 1", "2 discard ")
        assert said.count("── now") == said.count("── verdicts") == 1, said
        tmux.run("send-keys", "C-c")
        tmux.shows("ended with 3")
        kept = tmux.run("capture-pane", "-p", "-S", "-200")
        assert "go on" in kept and "baseline" in kept  # the summary
        assert "night night  stopped" in kept and "#2 discard" in kept  # the last picture, and the lines above it
    finally:
        tmux.run("kill-server")


def test_lines_alone_where_nobody_could_draw(project: Path, tmp_path: Path):
    """Neither on a pipe, nor on a terminal that is dumb or where they are wished."""
    class Tty(StringIO):
        def isatty(self) -> bool:
            return True

    real, dumb = Console(file=Tty(), _environ={"TERM": "xterm"}), Console(file=Tty(), _environ={"TERM": "dumb"})
    forced = Console(file=StringIO(), force_terminal=True)
    assert isinstance(terminal(project, real), LiveTerminal)
    for console, plain in ((real, True), (dumb, False), (forced, False)):
        assert not isinstance(terminal(project, console, plain), LiveTerminal)


def test_a_picture_that_fails_leaves_the_lines(tmp_path: Path):
    home, said = long_night(tmp_path / "night", 3), StringIO()
    reader = Reader(home)
    reader.read()
    view = LiveTerminal(home, Console(file=said, force_terminal=True, width=300, height=30))
    view.start(reader.night, reader.history)
    live.write(home, live.Live(0, "train", 3, 0, 1.0, "log", "training", 1.0, "no curve"))  # type: ignore[arg-type]
    view.tick()
    view.see(ev.Noted(text="something else"), reader.night, reader.history)
    view.close()
    assert "lines alone from here on" in said.getvalue() and "something else" in said.getvalue()
    assert "Traceback" in (home / "logs" / "picture.log").read_text()
