"""Characters by which an edit shows a reviewer something else than what runs. The rule, for what an edit brings in:

1. No character that is invisible, or that changes how others are shown: controls but newline and tab (ESC, carriage
   returns, NUL), direction marks, zero-width characters, line separators, code points without a meaning, and U+FFFD,
   which stands where a text was damaged. Joiners (U+200C, U+200D) may stand between characters that are not ASCII,
   as in the scripts and emoji that need them.
2. Names in Python are written in ASCII: other alphabets have letters that look the same.

Strings and comments may be in any language. What a file held before, it may go on holding.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import unicodedata
from collections import Counter
from collections.abc import Iterator

from agent.source import read_python

UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # general categories of Unicode
JOINED = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")


def misleading(path: str, before: str, after: str) -> str:
    """Why the new text of a file must not be shown to a reviewer as it is; "" where nothing speaks against it."""
    known = Counter(character for _, character in _unshown(before))
    for line, character in _unshown(after):
        known[character] -= 1
        if known[character] < 0:
            return f"{path}, line {line}: {_named(character)} can't be seen, or hides other text: leave it out"
    if not path.endswith(".py") or after.isascii():
        return ""
    old = {name for _, name in _names(before)}
    for line, name in _names(after):
        if not name.isascii() and name not in old:
            letter = next(c for c in name if not c.isascii())
            return (f"{path}, line {line}: the name `{name}` holds {_named(letter)}: write names in ASCII; strings and "
                    "comments may be in any language")  # fmt: skip
    return ""


def _named(character: str) -> str:
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'a control or unassigned character')})"


def _unshown(text: str) -> Iterator[tuple[int, str]]:
    """(line, character) of each character that rule 1 is about."""
    if text.isascii() and text.replace("\r\n", "\n").replace("\n", "").replace("\t", "").isprintable():
        return
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        for character in JOINED.sub("", line):
            if character == "\ufffd" or (character != "\t" and unicodedata.category(character) in UNSHOWN):
                yield number, character


def _names(text: str) -> Iterator[tuple[int, str]]:
    """(line, name) as written, and as Python reads them within f-strings, which were no tokens before 3.12."""
    tree = read_python(text).tree
    if tree is None or text.isascii():
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant):
            values = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
            yield from ((getattr(node, "lineno", 1), value) for value in values)
