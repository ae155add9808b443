"""A local server that speaks the wire formats of Anthropic (/v1/messages) and OpenAI (/v1/chat/completions).

It answers from a script, one step per request, so that the real SDKs run against real HTTP:

    python tests/server.py --port 0 --replies FOLDER

prints the port. In FOLDER each file is one step, in the order of the names: `.json` holds the fields of Step,
anything else is the text of a reply. After the last step every request is refused with 400.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 40  # characters of a text per event


@dataclass(frozen=True)
class Step:
    """How one request is answered."""

    text: str = ""
    status: int = 200
    """Other than 200: an error response, with `kind` and `message`."""
    kind: str = "invalid_request_error"
    message: str = "the test says so"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """The reply ends at the limit of its tokens."""
    refuse: bool = False
    hang: bool = False
    """No answer until the server is closed."""
    ping: bool = False
    """Keep-alives and nothing else, until the server is closed or the client hangs up."""
    drop: str = ""
    """`before` or `middle` of the answer, or at its `end`, the connection is lost."""
    late_error: bool = False
    """The error comes inside the stream, half way through the text."""
    usage: bool = True
    """Whether the figures are sent."""
    input_tokens: int = 1000
    output_tokens: int = 200
    cache_read: int = 0
    cache_write: int = 0


class ModelServer:
    """`with ModelServer([Step("hello")]) as server:` serves at server.url until the block ends."""

    def __init__(self, steps: Sequence[Step | str] = (), port: int = 0, models: Sequence[str] | None = None):
        self.models = models
        """The names in the list of models; None: there is no such list."""
        self.steps = [Step(step) if isinstance(step, str) else step for step in steps]
        self.requests: list[dict[str, Any]] = []
        """Every request so far: `path`, `headers` (lower-case names) and `body`."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    @property
    def url(self) -> str:
        """For Anthropic's SDK; OpenAI's wants url + "/v1"."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def prompts(self) -> list[str]:
        """The last user message of each request."""
        return [flat(request["body"]["messages"][-1]["content"]) for request in self.requests]

    def __enter__(self) -> ModelServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def take(self, request: dict[str, Any]) -> Step:
        """Record a request, and say how to answer it."""
        with self._lock:
            self.requests.append(request)
            if len(self.requests) > len(self.steps):
                return Step(status=400, message=f"the script has only {len(self.steps)} steps")
            return self.steps[len(self.requests) - 1]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(Conversation):
            models = server

        return Handler


class Conversation(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    models: ModelServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        step = self.models.take({"path": self.path, "headers": headers, "body": body})
        if self.path not in ("/v1/messages", "/v1/chat/completions"):
            step = Step(status=404, kind="not_found_error", message=f"no such path: {self.path}")
        try:
            self._answer(step, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has hung up

    def do_GET(self) -> None:
        listed = [{"id": name, "object": "model"} for name in self.models.models or ()]
        if self.path == "/v1/models" and self.models.models is not None:
            self._send_json(200, {"object": "list", "data": listed}, {})
        else:
            self._send_json(404, {"error": {"message": "no such path"}}, {})

    def _answer(self, step: Step, body: dict[str, Any]) -> None:
        if step.hang:
            self.models.closing.wait()
        if step.hang or step.drop == "before":
            self._lose()
        elif step.status != 200 and not step.late_error:
            self._send_json(step.status, self._error(step), step.headers)
        else:
            events = anthropic_events(step, body) if self._anthropic else openai_events(step, body)
            self._stream(step, list(events))

    @property
    def _anthropic(self) -> bool:
        return self.path == "/v1/messages"

    def _error(self, step: Step) -> dict[str, Any]:
        if self._anthropic:
            return {"type": "error", "error": {"type": step.kind, "message": step.message}}
        return {"error": {"message": step.message, "type": step.kind, "param": None, "code": step.kind}}

    def _stream(self, step: Step, events: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if step.ping:
            while not self.models.closing.wait(0.02):
                self._chunk("event: ping\ndata: {}\n\n" if self._anthropic else ": keep-alive\n\n")
        if step.drop == "middle" or step.late_error or step.drop == "end":
            events = events[: len(events) // 2]
        for event in events:
            name = f"event: {event['type']}\n" if self._anthropic else ""
            self._chunk(f"{name}data: {json.dumps(event)}\n\n")
        if step.drop == "middle" or step.ping:
            return self._lose()
        if step.late_error:
            self._chunk(("event: error\n" if self._anthropic else "") + f"data: {json.dumps(self._error(step))}\n\n")
        elif not self._anthropic and step.drop != "end":
            self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send_json(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _lose(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the tests look at `requests`."""


def pieces(text: str) -> list[str]:
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]


def flat(content: Any) -> str:
    """The text of a message, which may be a list of blocks."""
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def anthropic_events(step: Step, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """https://docs.anthropic.com/en/docs/build-with-claude/streaming"""
    fed = {
        "input_tokens": step.input_tokens,
        "cache_read_input_tokens": step.cache_read,
        "cache_creation_input_tokens": step.cache_write,
    }
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {**fed, "output_tokens": 1}}
    yield {"type": "message_start", "message": message}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    thought = {"type": "thinking_delta", "thinking": "not part of the reply"}
    yield {"type": "content_block_delta", "index": 0, "delta": thought}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}}
    yield {"type": "ping"}
    for piece in pieces(step.text):
        yield {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": piece}}
    yield {"type": "content_block_stop", "index": 1}
    reason = "refusal" if step.refuse else "max_tokens" if step.cut else "end_turn"
    details = {"type": "refusal", "category": "cyber", "explanation": None} if step.refuse else None
    delta = {"stop_reason": reason, "stop_sequence": None, "stop_details": details}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": step.output_tokens}}
    yield {"type": "message_stop"}


def openai_events(step: Step, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """https://platform.openai.com/docs/api-reference/chat-streaming"""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**base, "choices": [choice], "usage": None}

    yield chunk({"role": "assistant", "content": ""})
    for piece in pieces(step.text):
        yield chunk({"refusal": piece} if step.refuse else {"content": piece})
    yield chunk({}, "length" if step.cut else "stop")
    if step.usage and body.get("stream_options", {}).get("include_usage"):
        fed = step.input_tokens + step.cache_read + step.cache_write
        usage: dict[str, Any] = {"prompt_tokens": fed, "completion_tokens": step.output_tokens}
        usage["total_tokens"] = fed + step.output_tokens
        usage["prompt_tokens_details"] = {"cached_tokens": step.cache_read}
        yield {**base, "choices": [], "usage": usage}


def read_steps(folder: Path) -> list[Step]:
    """The files of a folder as steps."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [Step(**json.loads(f.read_text())) if f.suffix == ".json" else Step(f.read_text()) for f in files]


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted language model server for tests and demonstrations.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--replies", type=Path, required=True, help="a folder, one file per step")
    arguments = parser.parse_args()
    with (
        ModelServer(read_steps(arguments.replies), arguments.port) as server,
        contextlib.suppress(KeyboardInterrupt),
    ):
        print(server.port, flush=True)
        server.closing.wait()


if __name__ == "__main__":
    main()
