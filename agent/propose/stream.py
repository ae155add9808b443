"""The one reader of what a model's server sends: bytes -> JSON objects, and their fields as the types they should be.

Servers that call themselves compatible send null, lists, strings or nothing where an API documents an object. Nothing
in here raises for that: a field of another type counts as absent. What does raise is an object that can't be read,
because a part of the reply may have been in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from genai_prices import Usage

from agent.errors import ProposerError
from agent.numeric import number

LINE_END = re.compile(rb"\r\n|\n|\r(?!\n)(?=[\s\S])")  # a CR at the end may be the first half of a CRLF
FIELDS = ("data", "event", "id", "retry", "")  # of server-sent events; "" begins a comment
MOST_BYTES = 64 << 20  # of one answer: a hundred times the longest reply, as events repeat much around each word
MOST_TOKENS = 10**8  # of one call; a larger figure is none
DONE: dict[str, Any] = {}
"""Stands for the end that the server itself has marked; compared by identity."""


@dataclass
class Heard:
    """What one call has said so far."""

    text: str = ""
    stop: str | None = None
    """The API's own word for why the reply ended; None: it is not complete."""
    refusal: str = ""
    usage: Usage = field(default_factory=Usage)
    started: bool = False
    """The model began to answer, so the call may be billed."""


class ErrorEvent(Exception):
    """The server reports an error within its answer; `body` is as an SDK's errors have it."""

    def __init__(self, body: dict[str, Any]):
        super().__init__(str(body.get("error") or body.get("message") or "an error without a message"))
        self.body = body


def events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer, as soon as each is complete, and DONE.

    The answer is a stream of server-sent events, or one JSON document (from a server that does not stream), or one
    JSON document on each line. Events that hold no JSON object are passed over. Raises ErrorEvent, and ProposerError
    where an object can't be read.
    """
    pending: list[str] = []
    name, plain, began = "", False, False  # the event's name; one or more documents, no events; something has come
    for line in _lines(chunks):
        key, _, value = line.partition(":")
        if plain or (key.strip() not in FIELDS and line.lstrip()[:1] in ("{", "[")):
            plain, key, value = plain or not began, "data", line
        elif key == "event":
            name = value.strip()
        elif not line.strip():
            _refuse(pending)
            pending, name = [], ""
        if key != "data":
            continue
        began = True
        pending.append(value.removeprefix(" "))
        if value.strip().startswith("[DONE]"):
            yield DONE
            pending = []
        elif (objects := _parsed("\n".join(pending))) is not None:
            pending = []
            yield from (_checked({"type": name, **event} if name else event) for event in objects)
    if not plain:
        _refuse(pending)
    elif not pending:
        yield DONE


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_of(content: object) -> str:
    """Text that is given as a string, as a block like {"type": "text", "text": ...}, or as a list of these."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and content.get("type", "text") in ("text", "output_text", "text_delta"):
        return text_of(content.get("text"))
    return "".join(text_of(part) for part in content if not isinstance(part, list)) if isinstance(content, list) else ""


def word_of(value: object) -> str | None:
    """A reason that is given as a word; one that is given as anything else that is not empty counts as `stop`."""
    return (value.strip() or None) if isinstance(value, str) else "stop" if value else None


def tokens_of(value: object) -> int | None:
    """A count of tokens; None where the server gives none that can be one."""
    count = number(value)
    return int(count) if count is not None and 0 <= count <= MOST_TOKENS else None


def usage_of(fed: int, said: int, read: int, written: int) -> Usage:
    """The tokens fed, said, and those of the fed ones that a cache gave and took: never more than all together."""
    return Usage(
        input_tokens=max(fed, read + written), output_tokens=said, cache_read_tokens=read, cache_write_tokens=written
    )


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest, size = b"", 0
    for chunk in chunks:
        size += len(chunk)
        if size > MOST_BYTES:
            raise ProposerError(f"the answer is longer than {MOST_BYTES >> 20} MB")
        *lines, rest = LINE_END.split(rest + chunk)
        yield from (line.decode("utf-8", "replace").removeprefix("\ufeff") for line in lines)
    if rest.strip():
        yield rest.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r")


def _parsed(text: str) -> list[dict[str, Any]] | None:
    """The objects of one JSON document, none where it is of another kind; None where it is not complete."""
    if text.lstrip()[:1] not in ("{", "["):
        return []
    if text.rstrip()[-1:] not in ("}", "]"):
        return None
    try:
        document = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return [document] if isinstance(document, dict) else mappings(document)


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    if event.get("error") or event.get("type") == "error":
        raise ErrorEvent(event)
    return event


def _refuse(pending: list[str]) -> None:
    if pending:
        raise ProposerError("a part of the stream can't be read")
