"""What is left out of a corpus: tables of data, the end of very long files, and text that is there already.

Copies are found whole, by paragraphs, by four lines on end, and nearly equal: MinHash (Broder 1997) of runs of five
words, with bands of locality-sensitive hashing, as is usual for the corpora of language models (Lee et al. 2022).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from dataclasses import dataclass
from itertools import islice

from prepare import UserError

TABLE_LINES = 12  # so many lines of literals on end are a table, and go; a file that is half tables goes whole
LONGEST_LINE = 400  # characters; a longer line of code is data too
COPIED_LINES = 4  # so many lines that stood together before, blank ones not counted, go
PARAGRAPH = 80  # characters, blanks at the ends of lines not counted: what is shorter is an idiom, and may repeat
SHINGLE = 5  # words in the runs that are compared
BANDS, ROWS = 16, 8  # of pairs of texts that share 70% of their runs of words 6 in 10 are found, with 80% 95 in 100
# A line of Python that begins as a string, a number or nothing but brackets does: no name, no keyword, no comment.
LITERAL = re.compile(
    r"""\s*(?:[bBrRuUfF]{0,2}["']|[-+]?\.?\d|[\[\](){},]+\s*(?:[-+bBrRuU"'\d\[\](){},.]|$)|\\?$)"""
)


@dataclass(frozen=True)
class Rules:
    """Which of the rules hold for a source."""

    tables: bool = False
    """Tables of literals go, as is right for Python."""
    most_bytes: int | None = None
    """What one file may count for."""
    copies: bool = False
    """Paragraphs and texts that are nearly there already go, not only whole texts."""
    shortest: int = 1
    """Characters; what is left of a text and shorter is left out."""


class Cleaner:
    """Remembers every text, paragraph and band that it has let pass, as a 64-bit hash: what comes later is the copy."""

    def __init__(self, rules: Rules):
        self.rules = rules
        self.seen: set[int] = set()
        self.fresh: list[int] = []  # of `seen`, what was added since the caller last emptied this
        self.left_out: Counter[str] = Counter()  # rule -> bytes
        if rules.copies:
            try:
                from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]
            except ImportError as missing:
                raise UserError("finding near-copies needs a package: pip install rensa") from missing
            self.min_hash = RMinHash

    def clean(self, text: str) -> str:
        """What is left of a text; nothing where a rule leaves it out whole."""
        rules = self.rules
        if not self._is_new(text.encode()):
            return self._without("copies", text, "")
        if rules.tables:
            text = self._without("tables", text, without_tables(text))
        if rules.most_bytes:
            text = self._without("beyond_the_most", text, beginning(text, rules.most_bytes))
        if rules.copies:
            text = self._without("copies", text, self._without_copied_paragraphs(text))
            if self._is_near(text):
                return self._without("near_copies", text, "")
            text = self._without("copies", text, self._without_copied_lines(text))
        return text if len(text) >= rules.shortest else self._without("too_short", text, "")

    def _without(self, rule: str, before: str, after: str) -> str:
        if lost := len(before.encode()) - len(after.encode()):
            self.left_out[rule] += lost
        return after

    def _is_new(self, raw: bytes, salt: bytes = b"") -> bool:
        number = int.from_bytes(hashlib.blake2b(raw, digest_size=8, salt=salt).digest(), "little")
        if number in self.seen:
            return False
        self.seen.add(number)
        self.fresh.append(number)
        return True

    def _without_copied_paragraphs(self, text: str) -> str:
        """The paragraphs that were nowhere before, each with the blank lines before it."""
        kept = []
        for paragraph in re.split(r"(?<=\n)(?=[ \t]*\n[ \t]*\S)", text):
            bare = "\n".join(line.strip() for line in paragraph.strip().splitlines())
            if len(bare) < PARAGRAPH or self._is_new(bare.encode(), b"paragraph"):
                kept.append(paragraph)
        return "".join(kept)

    def _without_copied_lines(self, text: str) -> str:
        """All lines but those of a block that stood in an earlier text, or earlier in this one."""
        lines = text.splitlines(keepends=True)
        full = [number for number, line in enumerate(lines) if not line.isspace()]
        copied: set[int] = set()
        for first in range(len(full) - COPIED_LINES + 1):
            numbers = full[first : first + COPIED_LINES]
            block = "\n".join(lines[number].strip() for number in numbers)
            if len(block) >= PARAGRAPH and not self._is_new(block.encode(), b"lines"):
                copied.update(numbers)
        return "".join(line for number, line in enumerate(lines) if number not in copied)

    def _is_near(self, text: str) -> bool:
        """Whether a band of its signature was there before. All bands are remembered, also of what is left out."""
        words = text.split()
        if len(words) < 4 * SHINGLE:
            return False
        signature = self.min_hash(BANDS * ROWS, 0)
        offset = (islice(words, n, None) for n in range(SHINGLE))
        signature.update(list({" ".join(run) for run in zip(*offset, strict=False)}))
        digest = struct.pack(f"<{BANDS * ROWS}I", *signature.digest())
        size = 4 * ROWS
        bands = [self._is_new(digest[n * size : (n + 1) * size], b"band %d" % n) for n in range(BANDS)]
        return not all(bands)


def without_tables(text: str) -> str:
    """Python without runs of TABLE_LINES or more lines of literals, or nothing where these are half of it."""
    kept: list[str] = []
    run: list[str] = []
    for line in [*text.splitlines(keepends=True), ""]:
        if line and (LITERAL.match(line) or len(line) > LONGEST_LINE):
            run.append(line)
            continue
        if sum(1 for literal in run if not literal.isspace()) < TABLE_LINES:
            kept += run
        run.clear()
        kept.append(line)
    rest = "".join(kept)
    return rest if 2 * len(rest) > len(text) else ""


def beginning(text: str, most: int) -> str:
    """The whole lines of the first `most` bytes."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: raw.rfind(b"\n", 0, most) + 1].decode()
