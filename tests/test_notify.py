"""Messages to a person who is elsewhere, over a real local HTTP server."""

from __future__ import annotations

import base64
import json
import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_loop import STORY, night, project, write_replies  # noqa: F401

from agent.events import Ended, Event, Paused, Resumed
from agent.night import Night
from agent.observers.notify import message

TOKEN = "tok-4711-secret"


@pytest.fixture
def received() -> Iterator[tuple[str, queue.SimpleQueue[dict[str, str]]]]:
    """The URL of a service, and the messages that have reached it."""
    got: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_port}/{TOKEN}", got
        server.shutdown()


def test_a_new_best_and_the_end_are_told_and_a_service_that_hangs_is_nothing_to_the_night(
    project: Path,  # noqa: F811
    tmp_path: Path,
    received: tuple[str, queue.SimpleQueue[dict[str, str]]],
):
    pytest.importorskip("apprise")
    url, got = received
    replies = write_replies(tmp_path / "replies", STORY[0])
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # it takes the connection, and never answers
        urls = f"{url}/broken, {url}, json://127.0.0.1:{hangs.getsockname()[1]}/?cto=0.5&rto=0.5"
        flags = ("--replay", str(replies), "--experiments", "1")
        said = night(project, *flags, OVERNIGHT_NOTIFY=urls)
    told = [got.get(timeout=10) for _ in range(6)]
    assert {m["title"] for m in told} == {"overnight night"}
    ended, picture, best = sorted((m for m in told), key=lambda m: m["message"])[::2]
    assert picture["message"] == "every experiment" and best["message"] == "new best: loss 0.165 (experiment 1)"
    lines = ended["message"].splitlines()
    assert lines[:2] == ["ended: 1 experiments are done, as asked", "loss: 0.285 -> 0.165 (experiment 1)"]
    assert lines[3].startswith("kept 1 of 1 experiments in ") and lines[3].endswith("cost $0.0000")
    (attached,) = picture["attachments"]
    assert base64.b64decode(attached["base64"]).startswith(b"\x89PNG") and attached["filename"] == "night.png"
    kept = [path for path in (project / ".research").rglob("*") if path.is_file()]
    assert TOKEN not in said and not any(TOKEN.encode() in path.read_bytes() for path in kept)


def test_what_is_no_url_is_said_in_one_line_without_it(project: Path):  # noqa: F811
    said = night(project, "--notify", f"nowhere:{TOKEN}", expect=2)
    assert said.startswith("error: --notify") and TOKEN not in said and said.count("\n") == 1


def test_pauses_and_ends_are_worth_a_message():
    assert message(Paused(reason="no model can be had"), Night()) == "paused: no model can be had"
    assert message(Resumed(), Night()) == "goes on"
    assert message(Ended(reason="8 hours are over", code=3), Night()) == "ended: 8 hours are over"
    assert message(Event(), Night()) == ""
