"""What is left out of a corpus: tables of data, the end of very long files, and text that is there already.

Copies are found whole, by paragraphs, by four lines on end, and nearly equal: MinHash (Broder 1997) of runs of five
words, with bands of locality-sensitive hashing, as is usual for the corpora of language models (Lee et al. 2022).
"""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

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
    """Remembers every text, paragraph and band that it has let pass, as a 64-bit hash: what comes later is the copy.

    What is costly, the hashes, is made by processes on all cores, for many texts at once; what is copied is then
    decided text by text, in order, so that the result is the same however many processes there are.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.seen: set[int] = set()
        self.fresh: list[int] = []  # of `seen`, what was added since the caller last emptied this
        self.left_out: Counter[str] = Counter()  # rule -> bytes
        if rules.copies and importlib.util.find_spec("rensa") is None:
            raise UserError("finding near-copies needs a package: pip install rensa")
        fork, cores = multiprocessing.get_context("fork"), len(os.sched_getaffinity(0))
        self.processes = ProcessPoolExecutor(cores, fork, signal.signal, (signal.SIGINT, signal.SIG_IGN))

    def close(self) -> None:
        """End the processes. To be called after errors too: Python's own end of a pool can fail."""
        self.processes.shutdown(cancel_futures=True)

    def clean(self, texts: list[str]) -> list[str]:
        """What is left of each text; nothing where a rule leaves it out whole."""
        whole = [text if self._is_new(hash_of(text)) else self._without("copies", text, "") for text in texts]
        rules = [self.rules] * len(texts)
        parts = [self._without_copied_paragraphs(*got) for got in self._each(paragraphs_of, whole, rules)]
        if self.rules.copies:
            parts = [self._without_copied_lines(*got) for got in self._each(lines_of, parts)]
        shortest = self.rules.shortest
        return [text if len(text) >= shortest else self._without("too_short", text, "") for text in parts]

    def _each(self, work: Callable[..., Any], *texts: list[Any]) -> Iterator[Any]:
        at_once = 1 + len(texts[0]) // (4 * len(os.sched_getaffinity(0)))
        return self.processes.map(work, *texts, chunksize=at_once)

    def _without(self, rule: str, before: str, after: str) -> str:
        if lost := len(before.encode()) - len(after.encode()):
            self.left_out[rule] += lost
        return after

    def _is_new(self, number: int) -> bool:
        if number in self.seen:
            return False
        self.seen.add(number)
        self.fresh.append(number)
        return True

    def _without_copied_paragraphs(self, lost: dict[str, int], paragraphs: list[tuple[str, int]]) -> str:
        """The paragraphs (each with its hash, or 0 where it is too short for one) that were nowhere before."""
        self.left_out.update(lost)
        kept = [text for text, number in paragraphs if number == 0 or self._is_new(number)]
        return self._without("copies", "".join(text for text, _ in paragraphs), "".join(kept))

    def _without_copied_lines(self, text: str, bands: list[int], blocks: np.ndarray, full: np.ndarray) -> str:
        """All lines but those of a block that stood in an earlier text, or earlier in this one; nothing where a band
        was there before. All bands are remembered, also of what is left out."""
        if not all([self._is_new(band) for band in bands]):
            return self._without("near_copies", text, "")
        found = [first for first, block in enumerate(blocks.tolist()) if block and not self._is_new(block)]
        copied = {number for first in found for number in full[first : first + COPIED_LINES].tolist()}
        lines = text.splitlines(keepends=True)
        return self._without("copies", text, "".join(line for n, line in enumerate(lines) if n not in copied))


def hash_of(text: str | bytes, salt: bytes = b"") -> int:
    raw = text.encode() if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8, salt=salt).digest(), "little")


def paragraphs_of(text: str, rules: Rules) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """The bytes that the rules for single texts leave out, and the paragraphs of the rest with their hashes, each with
    the blank lines before it."""
    lost = {}
    size = len(text.encode())
    if rules.tables:
        text = without_tables(text)
        lost["tables"], size = size - len(text.encode()), len(text.encode())
    if rules.most_bytes:
        text = beginning(text, rules.most_bytes)
        lost["beyond_the_most"] = size - len(text.encode())
    if not rules.copies:
        return lost, [(text, 0)]
    paragraphs = []
    for paragraph in re.split(r"(?<=\n)(?=[ \t]*\n[ \t]*\S)", text):
        bare = "\n".join(line.strip() for line in paragraph.strip().splitlines())
        paragraphs.append((paragraph, hash_of(bare, b"paragraph") if len(bare) >= PARAGRAPH else 0))
    return {rule: bytes_ for rule, bytes_ in lost.items() if bytes_}, paragraphs


def lines_of(text: str) -> tuple[str, list[int], np.ndarray, np.ndarray]:
    """The text, the hashes of its bands, one of the block of lines that begins at each of its lines that aren't blank
    (0 where it is too short), and the numbers of these lines."""
    lines = text.splitlines(keepends=True)
    full = [number for number, line in enumerate(lines) if not line.isspace()]
    blocks = np.zeros(max(0, len(full) - COPIED_LINES + 1), dtype=np.uint64)
    for first in range(len(blocks)):
        block = "\n".join(lines[number].strip() for number in full[first : first + COPIED_LINES])
        if len(block) >= PARAGRAPH:
            blocks[first] = hash_of(block, b"lines")
    return text, bands_of(text), blocks, np.array(full, dtype=np.int32)


def bands_of(text: str) -> list[int]:
    """Hashes of the bands of a text's signature; none of a very short one."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    words = text.split()
    if len(words) < 4 * SHINGLE:
        return []
    signature = RMinHash(BANDS * ROWS, 0)
    offset = (islice(words, n, None) for n in range(SHINGLE))
    signature.update(list({" ".join(run) for run in zip(*offset, strict=False)}))
    digest = struct.pack(f"<{BANDS * ROWS}I", *signature.digest())
    size = 4 * ROWS
    return [hash_of(digest[n * size : (n + 1) * size], b"band %d" % n) for n in range(BANDS)]


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
