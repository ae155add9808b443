"""A night while it runs, as a person sees it: on a terminal, and as a page that is served."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_repository
from filelock import FileLock
from long_night import HOSTILE, long_night
from rich.console import Console
from test_loop import PROGRAM, block, command, environment, write_replies
from test_report import BROWSER, browser  # noqa: F401

from agent import events as ev
from agent import live
from agent.inbox import unread
from agent.observers import now, screen
from agent.observers.now import Tally
from agent.observers.report.read import Reader
from agent.observers.terminal import LiveTerminal, terminal
from bench.stop import journal

TRAIN = """\
import math, os, random, time
RATE = 0.5
WIDTH = 8
random.seed(int(os.environ.get("RESEARCH_SEED", "0")))
began, last = time.time(), float(os.environ.get("SLOW", "4"))
for step in range(1_000_000):
    share = (time.time() - began) / last
    if share >= 1:
        break
    print(f"step {step} | loss {2 * math.exp(-5 * share) + RATE + 3 / WIDTH:.4f} | {100 * share:.1f}%", flush=True)
    time.sleep(0.05)
print("loss:", (RATE - 0.1) ** 2 + 1 / WIDTH + random.gauss(0, 0.001))
"""
REPLIES = (
    block("RATE = 0.5", "RATE = 0.45", f"{HOSTILE} [bold red]A lower rate[/] \x1b[2J\x1b]0;taken\x07 lands nearer."),
    block("RATE = 0.45", "RATE = 0.9", "A higher rate travels further."),
    *(block("WIDTH = 8", f"WIDTH = {n}", f"Width {n} is better.") for n in (9, 10, 11, 12, 13, 14)),
)
Answer = tuple[int, str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    program = PROGRAM.replace("budget: 20s", "budget: 20s\nenvironment: [SLOW]")
    files = {"train.py": TRAIN, "prepare.py": "# protected\n", "program.md": program}
    return make_repository(tmp_path / "project", files)


@contextlib.contextmanager
def loop(project: Path, replies: Path, *flags: str, slow: str = "4") -> Iterator[subprocess.Popen[str]]:
    """A loop at work on the night `night` of the project."""
    chosen = ("--replay", str(replies), "--unsafe-no-sandbox", *flags)
    process = subprocess.Popen(
        command(project, *chosen), cwd=ROOT, env=environment(SLOW=slow), stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def until(true: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


# On a terminal.


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


# As a page.


class Served:
    """`agent watch` of the newest night, as a process; its answers."""

    def __init__(self, project: Path):
        words = [sys.executable, "-m", "agent", "watch", "--repo", str(project)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment())
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#token=(\S+)", self.url)
        assert found, self.url
        self.port, self.token = int(found[1]), found[2]

    def ask(self, method: str, path: str, content: object = None, token: bool = True, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        known = {"Authorization": f"Bearer {self.token}"} if token else {}
        sent = known | {name.title(): value for name, value in headers.items()}
        connection.request(method, path, None if content is None else json.dumps(content), sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def first_events(self) -> dict[str, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/events")
        answer, found = connection.getresponse(), {}
        while len(found) < 2:
            name, data = answer.readline().decode()[7:].strip(), answer.readline().decode()[6:]
            found[name] = json.loads(data)
            answer.readline()
        connection.close()
        return found

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0


def test_who_may_look_and_who_may_steer(project: Path):
    """The rules of the server: only this page, and only with the token anything but looking."""
    home = long_night(project / ".research" / "monday", 5)
    program = project / "program.md"
    before = program.read_text()
    served = Served(project)
    try:
        status, page = served.ask("GET", "/", token=False)
        assert status == 200 and "connect-src 'self'" in page.replace("&#39;", "'") and served.token not in page
        assert json.loads(served.ask("GET", "/overview", token=False)[1])["facts"]["tried"] == 5
        assert "CONSTANT_" in served.ask("GET", "/experiment/5", token=False)[1]
        assert served.ask("GET", "/experiment/77")[0] == 404
        events = served.first_events()
        assert "stop" in events["can"] and events["now"]["state"] == "5 experiments are done"

        # A name that was rebound to this machine, and another page in the same browser.
        for headers in ({"host": "evil.example"}, {"host": f"evil.example:{served.port}"}, {"origin": "http://evil.example"},
                        {"origin": "null"}, {"origin": "http://127.0.0.1:1"}):  # fmt: skip
            for method, path in (("GET", "/"), ("GET", "/events"), ("POST", "/request"), ("PUT", "/program")):
                assert served.ask(method, path, {"what": "stop"}, **headers)[0] == 403, headers
        tunnel = {"host": "localhost:9000", "origin": "http://localhost:9000"}  # ssh -L 9000:127.0.0.1:8765
        assert served.ask("GET", "/overview", **tunnel)[0] == 200

        for method, path in (("POST", "/request"), ("PUT", "/program"), ("GET", "/program")):
            for known in ({}, {"authorization": "Bearer"}, {"authorization": f"Bearer {served.token}x"}):
                status, said = served.ask(method, path, {"what": "stop"}, token=False, **known)
                assert status == 403 and "open the URL that was printed" in said
        assert not list((home / "requests").glob("*")) and program.read_text() == before

        # Requests, where somebody is there to hear them.
        assert served.ask("POST", "/request", {"what": "stop"})[0] == 409
        with FileLock(home / "lock"):
            until(lambda: served.first_events()["now"]["at_work"], "the loop is seen")
            asked = served.ask("POST", "/request", {"what": "stop", "text": "from the page"})
            assert asked[0] == 200 and json.loads(asked[1])["asked"] == "stop"
            for wrong in ({"what": "rm"}, {"what": "stop", "nothing": 1}, {}, ["stop"]):
                assert served.ask("POST", "/request", wrong)[0] == 400
            assert served.ask("POST", "/request", {"what": "stop", "text": "x" * 2_000_000})[0] == 413
        (request,) = unread(home)
        assert (request.what, request.text) == ("stop", "from the page")

        # program.md.
        loaded = json.loads(served.ask("GET", "/program")[1])
        assert loaded["text"] == before
        broken = {"text": before.replace("edit:", "edits:"), "version": loaded["version"]}
        status, said = served.ask("PUT", "/program", broken)
        assert status == 422 and said.startswith("program.md: ") and "\n" not in said
        other = {"text": before.replace("name: loss", "name: accuracy"), "version": loaded["version"]}
        assert served.ask("PUT", "/program", other)[0] == 422 and program.read_text() == before
        program.write_text(before + "Changed by hand.\n")
        good = {"text": before + "Try wider layers first.\n", "version": loaded["version"]}
        status, said = served.ask("PUT", "/program", good)
        assert status == 412 and "changed meanwhile" in said and "by hand" in program.read_text()
    finally:
        served.close()


def test_a_port_that_is_taken_is_said_in_one_line(project: Path):
    long_night(project / ".research" / "monday", 1)
    served = Served(project)
    try:
        words = [sys.executable, "-m", "agent", "watch", "--repo", str(project), "--port", str(served.port)]
        ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environment())
        assert ran.returncode == 2
        assert re.fullmatch(r"error: port \d+ can't be used .*: choose another --port\n", ran.stderr)
    finally:
        served.close()


@pytest.mark.slow
def test_the_live_page_in_a_browser_while_a_loop_runs(browser: Any, project: Path, tmp_path: Path):  # noqa: F811
    replies = write_replies(tmp_path / "replies", *REPLIES)
    with loop(project, replies, "--watch") as process:
        assert process.stdout
        url = until(lambda: re.search(r"http://\S+", process.stdout.readline()), "the page is said")[0]  # type: ignore[union-attr]
        window, asked = browser.new_page(), []
        complaints: list[str] = []
        window.on("request", lambda request: asked.append(request.url))
        window.on("console", lambda message: complaints.append(message.text))
        window.on("pageerror", lambda error: complaints.append(str(error)))

        def shows(true: str) -> None:  # asked from outside: the page may not evaluate text, so it could not wait
            until(lambda: window.evaluate(true), true)

        window.goto(url)
        window.wait_for_selector("html[data-ready]")
        assert "token" not in window.url and "at work" in window.inner_text("#setup")

        # A trial that runs: its curve, its log; then the next experiment, without a reload.
        window.wait_for_selector(".run .plot g.mark-line path", timeout=60_000)
        shows("document.querySelector('.run .log').textContent.includes('| loss')")
        window.wait_for_selector("#rows tr[data-n='1'].kept", timeout=60_000)
        shows("document.querySelector('.run .eyebrow')?.textContent.includes('#2')")
        shows("document.querySelectorAll('.run .plot g.mark-line path').length === 2")  # incumbent's
        assert "the incumbent\u2019s at" in window.inner_text(".run .small")
        assert "Confirmed gain" in window.inner_text("#headline")
        assert "In training" in window.inner_text("#facts") and window.locator("#chart g.mark-symbol path").count() >= 2
        assert "<script>document.title" in window.inner_text("#rows tr[data-n='1'] .what")
        assert "taken" not in window.title() and window.locator("#rows img, #now img").count() == 0
        window.click("#rows tr[data-n='1']")
        window.wait_for_selector("#curves svg")
        assert window.locator("#shown .plus").count() == 1
        window.click("#close")

        # Without the token: to look at only.
        other = browser.new_page(viewport={"width": 390, "height": 844})
        other.goto(url.partition("#")[0])
        other.wait_for_selector("html[data-ready]")
        assert other.locator("#steer").is_hidden() and other.evaluate("document.documentElement.scrollWidth") <= 390

        # program.md: refused where it is broken, saved where it is not, and told where it was changed meanwhile.
        program, home = project / "program.md", project / ".research" / "night"
        before = program.read_text()
        window.click("#edit")
        window.wait_for_selector("#editor[open]")
        window.fill("#text", before.replace("metric:", "metrics:"))
        window.click("#save")
        shows("document.querySelector('#refused').textContent.startsWith('program.md: ')")
        program.write_text(before + "Edited elsewhere.\n")
        window.fill("#text", before + "Widen first.\n")
        window.click("#save")
        window.wait_for_selector("#reload:not([hidden])")
        window.click("#reload")
        shows("document.querySelector('#text').value.includes('Edited elsewhere.')")
        window.fill("#text", before + "Widen first, of all things.\n")
        window.click("#save")
        window.wait_for_selector("#editor:not([open])", state="attached")
        until(lambda: any(isinstance(e, ev.Steered) and not e.refused for e in journal(home)), "the loop has read it")

        window.click("[data-ask=stop]")
        window.click("[data-ask=stop][data-sure]")
        shows("document.querySelector('#answer').textContent.includes('stopping')")
        process.wait(60)
        assert process.returncode == 3
        window.wait_for_selector("body.lost")  # and what was shown last stays
        assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {url.split("/")[2]}
        assert [text for text in complaints if not text.startswith("Failed to load resource")] == []  # what was refused
        window.close()
        other.close()
