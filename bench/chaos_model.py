"""What a model's server, or a command, can do wrong, against the real SDKs over real HTTP: python -m bench.chaos_model

For each case a server on this machine gives one odd answer and then only good ones. What is counted:

- died: anything but a Reply or a ProposerError came out, or a Reply that JSON, SQLite or git can't hold
- lost_reply: a complete answer was delivered and is not what came out
- paid_twice: the server was asked again after it had delivered a complete answer
- recovered: the odd answer was not complete, and a later one came out

Prints a table, and on the last line these counts with the number of cases as one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import socket
import sqlite3
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agent.errors import ProposerError
from agent.program import parse_program
from agent.propose.llm import Policy
from agent.protocols import Proposer, Request
from agent.records import Reply, Turn
from bench.chaos_answers import Answer, Case, command_cases, good, http_cases

POLICY = Policy(deadline=8.0, silence=1.0, first_wait=0.01, longest_wait=0.02, longest_retry_after=0.02)
PROGRAM = parse_program("---\nmetric: val_bpb\n---\nTry to make the loss of the small model as low as possible.")
REQUEST = Request(
    number=1, system="You improve train.py.", turns=(Turn(role="user", text="Propose one change."),), program=PROGRAM,
    files={"train.py": "LR = 1e-3\n"}, history=(),
)  # fmt: skip


class Server:
    """Gives the answers of one case, then good ones, and knows which it has given."""

    def __init__(self, api: str):
        self.api, self.answers = api, collections.deque[Answer]()
        self.given: list[Answer] = []
        self.closing = threading.Event()
        server = self

        class Handler(Conversation):
            faults = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def take(self) -> Answer:
        answer = self.answers.popleft() if self.answers else good(self.api)
        self.given.append(answer)
        return answer

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


class Conversation(BaseHTTPRequestHandler):
    """Writes one answer to the socket byte by byte as the case wants it."""

    faults: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        answer = self.faults.take()
        self.close_connection = True
        try:
            if answer.head is not None:
                self.wfile.write(answer.head)
            for piece in answer.pieces:
                self.wfile.write(piece)
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            return
        if answer.after == "hang":
            self.faults.closing.wait(20)
        if answer.after == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@dataclass
class Outcome:
    """What came out of one case."""

    case: Case
    said: str
    faults: set[str] = field(default_factory=set)


def outcome(case: Case, proposer: Proposer, server: Server | None) -> Outcome:
    """Ask once, and look at what came out from the outside."""
    reply, said, faults = None, "", set()
    try:
        reply = proposer.propose(REQUEST)
        hold(reply)
        said = f"reply: {reply.text[-40:]!r}"
    except ProposerError as error:
        said = f"{type(error).__name__}{' (final)' if error.final else ''}: {error}"
        if error.reply is not None:
            hold(error.reply)
    except Exception as error:  # this is what the benchmark looks for
        faults, said = {"died"}, f"DIED: {type(error).__name__}: {error}"
    given = server.given if server else []
    complete = [i for i, answer in enumerate(given) if answer.complete]
    if complete and complete[0] < len(given) - 1:
        faults.add("paid_twice")
    delivered = case.text if server is None else given[complete[0]].text if complete else None
    if delivered is not None and (reply is None or reply.text != delivered):
        faults.add("lost_reply")
    if server and reply is not None and len(given) > 1:
        faults.add("recovered")
    return Outcome(case, said, faults)


def hold(reply: Reply) -> None:
    """What the loop does with a reply: JSON, SQLite and git must be able to hold it. Raises where they can't."""
    assert Reply.model_validate_json(reply.model_dump_json()) == reply
    with sqlite3.connect(":memory:") as database:
        (back,) = database.execute("SELECT ?", (reply.text,)).fetchone()
    assert back == reply.text and "\0" not in reply.text
    assert reply.input_tokens >= 0 and reply.output_tokens >= 0 and (reply.usd is None or reply.usd >= 0)


def run(cases: Iterable[Case]) -> Iterator[Outcome]:
    """Each case with a server of its own, so that one that hangs holds up nothing."""
    from agent.propose.anthropic import AnthropicProposer
    from agent.propose.command import CommandProposer
    from agent.propose.openai import OpenAIProposer

    for case in cases:
        if case.api == "command":
            yield outcome(case, CommandProposer(case.command, deadline=1.0), None)
            continue
        server = Server(case.api)
        server.answers.extend(case.answers)
        try:
            if case.api == "anthropic":
                yield outcome(case, AnthropicProposer(base_url=server.url, policy=POLICY), server)
            else:
                yield outcome(case, OpenAIProposer(base_url=server.url + "/v1", policy=POLICY), server)
        finally:
            server.close()


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    names = ("died", "lost_reply", "paid_twice", "recovered")
    outcomes = list(outcomes)
    return {"cases": len(outcomes), **{name: sum(name in o.faults for o in outcomes) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults of models against the proposers.")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="only every so many cases")
    arguments = parser.parse_args()
    for name in os.environ:
        if name.startswith(("ANTHROPIC_", "OPENAI_")) or name.lower().endswith("_proxy"):
            del os.environ[name]  # the person's own keys and proxies stay out of it
    cases = [case for case in (*http_cases(), *command_cases()) if arguments.only in f"{case.api} {case.name}"]
    outcomes = []
    for result in run(cases[:: arguments.every]):
        outcomes.append(result)
        faults = ",".join(sorted(result.faults)) or "-"
        print(f"{result.case.api:9} {result.case.name:44} {faults:10} {result.said[:120]}", flush=True)
    summary = counts(outcomes)
    print(json.dumps(summary))
    sys.exit(any(summary[name] for name in ("died", "lost_reply", "paid_twice")))


if __name__ == "__main__":
    main()
