"""A night while it runs, as a page that is served: its rules, and in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from at_work import REPLIES, Served, loop, slow_project, until
from conftest import ROOT, make_repository
from filelock import FileLock
from long_night import long_night
from server import ModelServer
from test_loop import PROGRAM, block, environment, write_replies
from test_report import browser  # noqa: F401

from agent import events as ev
from agent.inbox import unread
from agent.ledger import Ledger
from bench.stop import journal

STEERED = """\
import os, random, time
RATE = 0.5
SCALE = 0.01
PAUSE = 0.0
for step in range(3):
    print(f"step {step} | loss {RATE:.4f} | {33 * step}%", flush=True)
    time.sleep(PAUSE)
luck = random.Random(os.environ["RESEARCH_SEED"]).gauss(0, 1)
print("loss:", (RATE - 0.1) ** 2 + SCALE * (50 + luck))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return slow_project(tmp_path / "project")


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
            for words, why in ((" ", "is empty"), ("x" * 5000, "5,000 characters, 4,000 fit")):
                status, said = served.ask("POST", "/request", {"what": "suggest", "words": words})
                assert status == 409 and why in said
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
    with loop(project, "--replay", str(replies), "--watch") as process:
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


@pytest.mark.slow
def test_every_button_of_the_page_is_an_event_of_the_night(browser: Any, tmp_path: Path):  # noqa: F811
    """#1 is kept, #2 shows a sign of cheating and is held, #3 hangs until it is skipped."""
    files = {"train.py": STEERED, "prepare.py": "#", "program.md": PROGRAM}
    project = make_repository(tmp_path / "project", files)
    home, program = project / ".research" / "night", project / "program.md"
    replies = [
        block("RATE = 0.5", "RATE = 0.3", "A lower rate lands nearer."),
        block("SCALE = 0.01", "SCALE = 0.0", "Less scale is less loss."),
        block("PAUSE = 0.0", "PAUSE = 1000.0", "Patience pays."),
        *(block("RATE = 0.3", f"RATE = 0.{n}", f"A rate of 0.{n} is tried.") for n in (5, 6, 7, 8, 9)),
    ]

    def asked(what: str) -> ev.Requested | None:
        return next((e for e in journal(home) if isinstance(e, ev.Requested) and e.what == what), None)

    def verdict(number: int) -> str:
        known = Ledger(home, readonly=True).night().experiments.get(number)
        return known.verdict.kind if known and known.verdict else ""

    with ModelServer(replies) as server:
        flags = ("--proposer", "openai", "--base-url", server.url + "/v1", "--watch", "--experiments", "40")
        with loop(project, *flags) as process:
            assert process.stdout
            page = re.compile(r"http://127.0.0.1\S+token\S+")
            url = until(lambda: page.search(process.stdout.readline()), "the page is said")[0]  # type: ignore[union-attr]
            window = browser.new_page()
            window.goto(url)
            window.wait_for_selector("html[data-ready]")

            def press(selector: str, what: str, twice: bool = False) -> ev.Requested:
                window.click(selector)
                if twice:
                    window.click(f"{selector}[data-sure]")
                return until(lambda: asked(what), f"{what} is in the journal")

            def says(selector: str, text: str) -> None:
                until(lambda: text in window.inner_text(selector), text)

            def opens(number: int, what: str) -> None:
                window.click(f"#rows tr[data-n='{number}']")
                window.wait_for_selector(f"#shown [data-ask={what}]")

            window.wait_for_selector("#rows tr[data-n='2']", timeout=90_000)
            window.wait_for_selector(".run[data-experiment='3']", timeout=90_000)
            assert (verdict(1), verdict(2)) == ("keep", "held")

            press("[data-ask=pause]", "pause")
            says("#answer", "paused")
            says("#setup", "paused by a person")
            press("[data-ask=resume]", "resume")
            says("#answer", "going on")

            opens(2, "accept")
            assert press("#shown [data-ask=accept]", "accept", twice=True).experiment == 2
            says("#answer", "#2 is accepted")
            window.click("#close")

            window.fill("#words", "a rate of <b>0.2</b>")
            window.click("#idea button")
            suggested = until(lambda: asked("suggest"), "the suggestion is in the journal")
            says("#answer", "put to the proposer")
            assert Ledger(home, readonly=True).text(suggested.idea) == "a rate of <b>0.2</b>"

            assert press(".run[data-experiment='3'] [data-ask=skip]", "skip", twice=True).experiment == 3
            until(lambda: verdict(3) == "skipped", "#3 is skipped")
            until(lambda: verdict(2) == "keep", "#2 is confirmed, and kept")
            until(lambda: any("a rate of <b>0.2</b>" in prompt for prompt in server.prompts), "the idea is asked for")

            opens(1, "veto")
            assert press("#shown [data-ask=veto]", "veto", twice=True).experiment == 1
            until(lambda: verdict(1) == "vetoed", "#1 is vetoed")
            window.click("#close")

            window.click("#edit")
            window.wait_for_selector("#editor[open]")
            window.fill("#text", program.read_text() + "Leave the scale alone.\n")
            window.click("#save")
            window.wait_for_selector("#editor:not([open])", state="attached")
            assert program.read_text().endswith("Leave the scale alone.\n")
            until(lambda: any(isinstance(e, ev.Steered) and not e.refused for e in journal(home)), "it is read")

            press("[data-ask=finish]", "finish")
            window.close()
