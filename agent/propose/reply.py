"""The border to whoever proposes: what is sent there and what comes back, as text that everything behind can hold."""

from __future__ import annotations

import re

from agent.protocols import Request

THOUGHTS = re.compile(r"(?s)\A.*?</think(?:ing)?>[ \t]*(?:\n|\Z)")
EMPTY = "(empty reply)"


def messages(request: Request) -> list[dict[str, str]]:
    """The talk as role and content. APIs refuse a message without text, as one is after a reply that was lost."""
    return [{"role": turn.role, "content": turn.text if turn.text.strip() else EMPTY} for turn in request.turns]


def reply_text(raw: str) -> str:
    """A reply as it is recorded: valid Unicode without NUL, and without the thoughts at its start.

    Some servers send the two halves of a surrogate pair in two events: they are joined. A half without the other, and
    NUL, can't be held by JSON, SQLite or git: U+FFFD takes its place, which no edit may bring in. Open models
    write `<think>...</think>` before the reply, some servers drop its first half; drafts in there are no edits.
    """
    text = raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")
    begins = text.lstrip("\ufeff \t\r\n#*_>`-").lower()
    return text if begins.startswith(("hypothesis", "category")) else THOUGHTS.sub("", text, count=1)
