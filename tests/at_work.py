"""A loop at work on a night, and its page, for the tests of what a person sees."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from conftest import ROOT, make_repository
from long_night import HOSTILE
from test_loop import PROGRAM, block, command, environment

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


def slow_project(folder: Path) -> Path:
    """Its training takes $SLOW seconds."""
    program = PROGRAM.replace("budget: 20s", "budget: 20s\nenvironment: [SLOW]")
    files = {"train.py": TRAIN, "prepare.py": "# protected\n", "program.md": program}
    return make_repository(folder, files)


@contextlib.contextmanager
def loop(project: Path, *flags: str, slow: str = "4") -> Iterator[subprocess.Popen[str]]:
    """A loop at work on the night `night` of the project."""
    words = command(project, "--unsafe-no-sandbox", *flags)
    process = subprocess.Popen(words, cwd=ROOT, env=environment(SLOW=slow), stdout=subprocess.PIPE, text=True)
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
