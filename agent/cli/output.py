"""Standard output and error whose reader may go away: `| head`, a closed terminal, a full disk behind `> log`.

What is printed is for a person to look at; a night is in its journal. So nothing ends because a line can't be shown.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

from agent.errors import Failure


class Surviving:
    """A text stream; from the first failure on, what is written to it goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self.forsake()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.forsake()

    def forsake(self) -> None:
        """Also what is buffered goes nowhere: the interpreter would fail on it at its end."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_data(content: bytes) -> None:
    """For a program and not for a person: what can't be written is said. A reader who goes away (`| head`) has had
    enough. Raises Failure."""
    stream = sys.stdout
    try:
        stream.buffer.write(content)
        stream.buffer.flush()
    except OSError as error:
        if isinstance(stream, Surviving):
            stream.forsake()
        if not isinstance(error, BrokenPipeError):
            raise Failure(f"standard output can't be written ({error.strerror})") from None


def survive() -> None:
    """From here on nothing that is printed can raise. A stream that is not there at all (`>&-`) goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, Surviving):
            setattr(sys, name, Surviving(stream))
