"""Proposals read in order from files: a night can be rerun, and a test says what is proposed."""

from __future__ import annotations

from pathlib import Path

from agent.errors import Failure, ProposerError
from agent.propose.reply import reply_text
from agent.protocols import Request
from agent.records import Reply

DIVIDER = "--- reply ---"


class ReplayProposer:
    """A folder of replies in the order of their names, or one file with `--- reply ---` lines between."""

    name = "replay"
    model = ""
    converses = True
    reads = False

    def __init__(self, path: Path):
        """Raises Failure when there is nothing to replay."""
        try:
            if path.is_dir():
                files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
                self.replies = [file.read_text(encoding="utf-8") for file in files]
            else:
                self.replies = split(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"--replay {path} can't be read: {error}") from None
        if not self.replies:
            raise Failure(f"--replay {path} holds no replies: give a folder, or a file divided by {DIVIDER!r}")

    def check(self, request: Request) -> None: ...
    def close(self) -> None: ...

    def most_usd(self, request: Request) -> float | None:
        return 0.0

    def propose(self, request: Request) -> Reply:
        """The next one: counted from the history, so that a restarted night goes on where it was."""
        here = sum(turn.role == "assistant" for turn in request.turns)
        had = sum(call.reply is not None for e in request.history for call in e.calls) + here
        index = had if request.replies is None else request.replies
        if index >= len(self.replies):
            raise ProposerError(f"replay is exhausted after {len(self.replies)} replies", exhausted=True)
        return Reply(text=reply_text(self.replies[index]), proposer=self.name)


def split(text: str) -> list[str]:
    """The documents of one file; empty ones are left out."""
    documents, lines = [], []
    for line in [*text.splitlines(keepends=True), DIVIDER]:
        if line.strip() == DIVIDER:
            documents.append("".join(lines))
            lines = []
        else:
            lines.append(line)
    return [document for document in documents if document.strip()]
