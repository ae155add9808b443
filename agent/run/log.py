"""What a command printed: as lines while it runs, and bounded for ever after."""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path

LONGEST_LINE = 4096  # bytes; what is longer is cut
TAIL = 4000  # characters of the log that go into a measurement
SHORT = 4096  # bytes of a log that is kept only in short
CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # terminal titles and links
    r"|\x1b\[[0-?]*[ -/]*[@-~]|\x1b."  # colours and cursor moves
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)


def clean(text: str) -> str:
    """Without control characters, terminal sequences and invisible direction marks; tabs stay."""
    return CONTROL.sub("", text)


def shorten(path: Path) -> None:
    """Only the last lines of a log that nobody writes to any more; again and again the same."""
    size = path.stat().st_size if path.exists() else 0
    if size <= 2 * SHORT:
        return
    with path.open("rb") as file:
        file.seek(size - SHORT)
        _, _, lines = file.read().partition(b"\n")
    part = path.with_suffix(".part")
    part.write_bytes(b"[... %d bytes left out ...]\n" % (size - len(lines)) + lines)
    os.replace(part, path)


class Log:
    """What a command printed: raw in a bounded file, and the last lines, cleaned, for records.

    The file gets the first `head` bytes as they come; of the rest the last `tail` bytes when it is closed.
    """

    def __init__(self, path: Path, head: int = 4 << 20, tail: int = 1 << 20):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._left, self._tail, self._last, self._lost = head, tail, bytearray(), 0
        self._lines: deque[str] = deque()
        self._size, self._overwrite = 0, False

    def write(self, chunk: bytes) -> None:
        if self._left:
            self._file.write(chunk[: self._left])
        rest = chunk[self._left :]
        self._left = max(0, self._left - len(chunk))
        self._last += rest
        if len(self._last) > 2 * self._tail:
            self._lost += len(self._last) - self._tail
            del self._last[: -self._tail]

    def line(self, text: str, overwritten: bool = False) -> None:
        """One cleaned line; `overwritten`: it ended in a carriage return, so the next one replaces it."""
        if not text:
            self._overwrite = self._overwrite and overwritten
            return
        if self._overwrite and self._lines:
            self._size -= len(self._lines.pop()) + 1
        self._lines.append(text)
        self._size += len(text) + 1
        self._overwrite = overwritten
        while self._size > TAIL and len(self._lines) > 1:
            self._size -= len(self._lines.popleft()) + 1

    @property
    def tail(self) -> str:
        return "\n".join(self._lines)[-TAIL:]

    def close(self) -> None:
        if self._lost:
            self._file.write(b"\n[... %d bytes left out ...]\n" % self._lost)
        self._file.write(self._last)
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lines:
    """Bytes as they come -> cleaned lines. Splits on newline and carriage return; never holds a long line."""

    def __init__(self):
        self._rest = b""

    def feed(self, chunk: bytes) -> list[tuple[str, bool]]:
        """(line, ended in a carriage return) for each line that this chunk completes."""
        *pieces, rest = re.split(rb"([\r\n])", self._rest + chunk)
        self._rest = rest[:LONGEST_LINE]
        return [
            (clean(text[:LONGEST_LINE].decode(errors="replace")), end == b"\r")
            for text, end in zip(pieces[::2], pieces[1::2], strict=True)
        ]
