"""The live page: a small server on this machine alone, which reads the journal as it grows and pushes what is new.

It is a process of its own and shares nothing with the loop: it reads the files of the night, and leaves requests in its
inbox. Everybody who can reach the port may look; to change anything the token is needed, which stands in the URL that
was printed. Two headers are looked at for every request, so that no other web page can reach it through a browser:
Host, which a name that was rebound to 127.0.0.1 would be in, and Origin.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent import inbox
from agent.errors import Failure, ProgramError
from agent.events import Requested
from agent.files import replace_file
from agent.forms import defaults
from agent.night import Night
from agent.observers import now, steering
from agent.observers.report import data
from agent.observers.report.page import drawable, library, live_page
from agent.observers.report.read import Reader
from agent.program import parse_program

Json = dict[str, Any]
Stands = Callable[[Night], tuple[bool, str]]
"""Whether a loop works on the night, and why none does."""
LOCAL = ("127.0.0.1", "localhost", "::1")
FRESH = 1.0  # seconds for which what was read is not read again, however many look
QUIET = 15.0  # seconds after which a line is pushed though nothing is new: so a connection that is gone is noticed
LOG_LINES = 8
LARGEST = 1 << 20  # bytes of a request
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Refusal(Exception):
    """What is answered in place of doing it: a status of HTTP, and one line."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


class Sight:
    """The night as it is shown; may be asked from any thread."""

    def __init__(self, home: Path, stands: Stands):
        self.home, self.stands, self.reader = home, stands, Reader(home)
        self.lock = threading.Lock()
        self.read_at, self.moment, self.made = 0.0, {}, (-1, {})

    def now(self) -> Json:
        """What is at work, and how far the journal was read."""
        with self.lock:
            self.refresh()
            return self.moment

    def overview(self) -> Json:
        """As the report has it, made once for each state of the journal."""
        with self.lock:
            self.refresh()
            if self.made[0] != self.reader.cursor:
                told = self.reader.told(whole=())
                self.made = self.reader.cursor, drawable(data.overview(self.current(told))) if told else {}
            return self.made[1]

    def experiment(self, number: int) -> Json:
        """Its details, with those of what it stands on."""
        with self.lock:
            night = self.reader.night
            if number not in night.experiments or not night.program:
                raise Refusal(404, f"there is no experiment {number}")
            base = night.kept.get(night.experiments[number].parent)
            wanted = {number, *(() if base is None else (base,))}
            told = self.reader.told(whole={*wanted, *night.kept.values()})
            assert told is not None
            return data.details(told, wanted)

    def current(self, told: data.Told) -> data.Told:
        """With the time that has passed since the last event."""
        at_work, why = self.stands(self.reader.night)
        times, at = replace(self.reader.times), time.time()
        times.pass_to(at, counts=times.running and at_work)
        trains = [r["job"] for r in self.moment.get("running", ()) if r["job"]["phase"] == "training"]
        return replace(told, times=times, ended=why, training=sum(at - job["trains_since"] for job in trains))

    def refresh(self) -> None:
        if time.monotonic() - self.read_at < FRESH:
            return
        self.reader.read()
        at_work, why = self.stands(self.reader.night)
        seen = now.look(self.home, self.reader.night, self.reader.history, at_work, why)
        self.moment = dataclasses.asdict(seen)
        for running, known in zip(self.moment["running"], seen.running, strict=True):
            running["log"] = now.tail(Path(running["job"].pop("log")), LOG_LINES)
            running["job"]["curve"], running["base"] = data.curve(known.job.curve), data.curve(known.base)
            running["share"] = known.job.share
        self.moment |= {"cursor": self.reader.cursor, "at_work": at_work, "paused": bool(self.reader.night.paused)}
        self.read_at = time.monotonic()


def kinds() -> tuple[str, ...]:
    """What a person can ask of a loop."""
    return get_args(Requested.model_fields["what"].annotation)


def send(home: Path, night: Night, what: str, **fields: Any) -> str:
    """Leave a request for the loop, and say what it will do. Raises Refusal where it is none, or would do nothing."""
    if what not in kinds():
        raise Refusal(400, f"nobody can be asked to {what}")
    if what == "suggest":
        fields["words"] = " ".join(str(fields.get("words", "")).split())
        if why := steering.unheard(fields["words"], night, works=True):
            raise Refusal(409, why)
    try:
        request = Requested(at=time.time(), id=f"{what} at {time.time_ns()}", what=what, **fields)  # type: ignore[arg-type]
    except (TypeError, ValidationError):
        raise Refusal(400, f"that is no whole request to {what}") from None
    after = night.after(request)
    if why := steering.refused(request, after):
        raise Refusal(409, why)
    inbox.send(home, request.what, **fields)
    return steering.said(request, after)


class Program:
    """program.md, read and written for the page."""

    def __init__(self, root: Path):
        self.root = root
        self.path = (root / "program.md").resolve()

    def read(self) -> Json:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Refusal(409, f"program.md can't be read: {error}") from None
        return {"text": text, "version": hashlib.sha256(text.encode()).hexdigest()}

    def write(self, text: str, version: str, refused: Callable[[Any], str]) -> Json:
        """Raises Refusal where it was changed meanwhile, or can't be used; then it stays as it is. `refused` says why a
        contract is not that of the night."""
        if self.read()["version"] != version:
            raise Refusal(412, "program.md was changed meanwhile: load the newer one, and edit that")
        try:
            why = refused(parse_program(text, defaults(self.root)))
        except ProgramError as error:
            why = str(error) if self.stands_alone() else ""
        if why:
            raise Refusal(422, why)
        try:
            replace_file(self.path, text.encode())
        except OSError as error:
            raise Refusal(409, f"program.md can't be written: {error.strerror}") from None
        return self.read()

    def stands_alone(self) -> bool:
        """Whether what is there now is understood without the flags that the loop was given."""
        try:
            parse_program(self.read()["text"], defaults(self.root))
        except ProgramError:
            return False
        return True


class Page:
    """The answers of the server."""

    def __init__(self, home: Path, root: Path, stands: Stands, token: str):
        self.home, self.token, self.sight, self.program = home, token, Sight(home, stands), Program(root)
        self.written: str | None = None

    def app(self) -> Starlette:
        routes = [
            Route("/", self.page),
            Route("/overview", self.overview),
            Route("/experiment/{number:int}", self.experiment),
            Route("/events", self.events),
            Route("/program", self.read_program),
            Route("/program", self.write_program, methods=["PUT"]),
            Route("/request", self.request, methods=["POST"]),
        ]
        wrapped = [Middleware(Guarded), Middleware(GZipMiddleware, compresslevel=5)]
        return Starlette(routes=routes, middleware=wrapped, exception_handlers={Refusal: refusal, Failure: failure})

    def page(self, request: Request) -> Response:
        if self.written is None:
            metric = self.sight.overview().get("metric", {}).get("name", "")
            written = live_page(self.home.name, metric, library(self.home.parent))
            self.written = written if metric else None
            return HTMLResponse(written)
        return HTMLResponse(self.written)

    def overview(self, request: Request) -> Response:
        return JSONResponse(self.sight.overview())

    def experiment(self, request: Request) -> Response:
        return JSONResponse(self.sight.experiment(request.path_params["number"]))

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self.pushed(), media_type="text/event-stream")

    async def pushed(self) -> AsyncIterator[str]:
        """What is at work, whenever it has changed; the server ends this when the other side has gone."""
        yield f"event: can\ndata: {json.dumps(kinds())}\n\n"
        before, last = None, 0.0
        while True:
            moment = await run_in_threadpool(self.sight.now)
            if (news := {**moment, "at": 0.0}) != before:
                before, last = news, time.monotonic()
                yield f"event: now\ndata: {json.dumps(moment, ensure_ascii=True)}\n\n"
            elif time.monotonic() - last > QUIET:
                last = time.monotonic()
                yield ": nothing new\n\n"
            await asyncio.sleep(FRESH)

    async def read_program(self, request: Request) -> Response:
        self.must_know(request)
        return JSONResponse(self.program.read())

    async def write_program(self, request: Request) -> Response:
        self.must_know(request)
        said = await body(request)
        text, version = said.get("text"), said.get("version")
        if not isinstance(text, str) or not isinstance(version, str):
            raise Refusal(400, "a text and the version that it was made from are needed")
        return JSONResponse(await run_in_threadpool(self.program.write, text, version, self.other_contract))

    async def request(self, request: Request) -> Response:
        self.must_know(request)
        said = await body(request)
        what = said.pop("what", None)
        if not self.sight.now()["at_work"]:
            raise Refusal(409, f"no loop works on {self.home.name}: there is nobody to ask")
        with self.sight.lock:
            night = self.sight.reader.night
        return JSONResponse({"asked": what, "said": await run_in_threadpool(send, self.home, night, str(what), **said)})

    def other_contract(self, program: Any) -> str:
        with self.sight.lock:
            reader = self.sight.reader
            known = reader.history.program(reader.night.contract) if reader.night.contract else None
        changed = program.incomparable(known) if known else None
        return f"program.md: a change of {changed} needs a new night (--tag)" if changed else ""

    def must_know(self, request: Request) -> None:
        """Raises Refusal for whoever does not know the token."""
        said = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(said.encode(), self.token.encode()):
            raise Refusal(403, "this page may only look: open the URL that was printed, which ends in its token")


async def body(request: Request) -> Json:
    """The JSON object that was sent. Raises Refusal."""
    read = b""
    async for part in request.stream():
        read += part
        if len(read) > LARGEST:
            raise Refusal(413, "that is too long")
    try:
        said = json.loads(read)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Refusal(400, "that is no JSON object")
    return said


def refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return PlainTextResponse(error.text, error.status)


def failure(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 500)


class Guarded:
    """Lets through only what a browser sends for this page itself, and puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        why = foreign(Request(scope))
        answer = PlainTextResponse(why, 403) if why else self.app
        await answer(scope, receive, with_headers)


def foreign(request: Request) -> str:
    """Why a request is not from this page, opened on this machine or through a tunnel to it; "" where it is."""
    host = request.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name not in LOCAL:
        return "this page is for 127.0.0.1 and localhost: from elsewhere, come through a tunnel (ssh -L)"
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "another web page may not ask this one"
    return ""
