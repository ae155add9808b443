"""Makes the calls of a proposer in threads of their own, so that no call holds up the loop or a slot."""

from __future__ import annotations

from threading import Thread

from agent.asking import answer
from agent.events import Asked
from agent.protocols import Emit, Proposer, Request


class ThreadCaller:
    """See protocols.Caller. The threads are daemons: a process that ends does not wait for an answer. What was
    reserved for it counts as spent when the night goes on."""

    def __init__(self, proposer: Proposer, fallback: Proposer | None = None):
        self.proposer, self.fallback = proposer, fallback

    def call(self, asked: Asked, request: Request, emit: Emit) -> None:
        proposer = self.fallback if asked.fallback and self.fallback else self.proposer

        def work() -> None:
            emit(answer(proposer, asked, request))

        Thread(target=work, name=f"call {asked.call}", daemon=True).start()

    def close(self) -> None:
        self.proposer.close()
