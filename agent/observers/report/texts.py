"""Many long texts in little room, and a payload as one piece of text that a page can hold.

Prompts repeat most of their lines, so every distinct line is written once. A text is then a list of runs of lines:
[first, count, first, count, ...]; lines are numbered in the order in which they first appear, so that what is copied
from an earlier text is a few runs.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any


class Texts:
    """Collects texts; page.js reads them back."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.runs: list[list[int]] = []
        self.known: dict[str, int] = {}

    def add(self, text: str) -> int | None:
        """The text's number; None where it is empty."""
        if not text:
            return None
        if text not in self.known:
            self.known[text] = len(self.runs)
            self.runs.append(self.split(text))
        return self.known[text]

    def split(self, text: str) -> list[int]:
        runs: list[int] = []
        for line in text.split("\n"):
            number = self.lines.setdefault(line, len(self.lines))
            if runs and number == runs[-2] + runs[-1]:
                runs[-1] += 1
            else:
                runs += [number, 1]
        return runs

    def packed(self) -> dict[str, Any]:
        return {"lines": list(self.lines), "runs": self.runs}


def text_of(packed: Mapping[str, Any], number: int) -> str:
    """The text with this number: what page.js does too."""
    runs, lines = packed["runs"][number], packed["lines"]
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return "\n".join(line for first, count in pairs for line in lines[first : first + count])


def pack(value: object) -> str:
    """JSON, compressed, in letters that need no escaping in HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()


def unpack(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))
