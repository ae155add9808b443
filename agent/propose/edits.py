"""The reply format: a hypothesis, a category, and edits as SEARCH/REPLACE blocks or whole files.

    Hypothesis: what should get better, and why
    Category: optimizer

    train.py
    <<<<<<< SEARCH
    lines as they are
    =======
    lines as they should be
    >>>>>>> REPLACE

A whole file is a line `Whole file: train.py` and a fenced block below it. A text that itself holds marker lines
takes longer markers (eight or more of each sign), and one that holds fences a longer fence, as in Markdown. Models
vary in what they put around this, and that is understood: headings and emphasis, fences around blocks, CRLF, a path
left out. The block form is the one known from Aider and from git's conflict markers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from agent.errors import EditError
from agent.propose.characters import misleading
from agent.records import Edit, Proposal
from agent.source import syntax_error

CATEGORIES = ("architecture", "optimizer", "schedule", "data", "regularization", "efficiency", "hyperparameter",
              "simplification", "other")  # fmt: skip
LONGEST_REPLY = 400_000  # characters
MOST_EDITS = 100
LONGEST_HYPOTHESIS = 1_000  # characters
NEAREST = 24  # most lines of the file quoted in an error

# Each is matched against a line without the blanks around it.
OPEN = re.compile(r"(<{5,})\s*SEARCH\b[\s:>]*(.*)", re.IGNORECASE)
CLOSE = re.compile(r"(>{5,})(?:\s*REPLACE)?", re.IGNORECASE)
FENCE = re.compile(r"(`{3,}|~{3,})(.*)")
AROUND = r"[\s#*_>`-]*"  # Markdown's headings, emphasis and quotes
FIELD = re.compile(rf"{AROUND}(hypothesis|category|whole[ _-]file){AROUND}(?::[\s*_]*(.*))?", re.IGNORECASE)
LONGEST_PATH = 300  # characters


def parse_reply(text: str) -> Proposal:
    """A proposer's reply -> Proposal; `path` is "" where the reply names none. A missing category is "other".

    Raises EditError: what is missing, in words that a language model can act on.
    """
    if len(text) > LONGEST_REPLY:
        raise EditError(f"the reply has {len(text):,} characters; at most {LONGEST_REPLY:,} are read")
    edits, prose = _edits_and_prose(text.replace("\r\n", "\n").split("\n"))
    hypothesis, category = _fields(prose)
    if not hypothesis:
        raise EditError("the reply has no `Hypothesis:` line; start with `Hypothesis: what should improve, and why`")
    if not edits:
        raise EditError(_why_no_edit(prose))
    return Proposal(hypothesis=hypothesis, category=category, edits=tuple(edits))


def render(proposal: Proposal) -> str:
    """Print a proposal in the reply format; `parse_reply` gives it back, each text ending in a newline."""
    parts = [f"Hypothesis: {' '.join(proposal.hypothesis.split())}\nCategory: {proposal.category}\n"]
    for edit in proposal.edits:
        text = edit.search + edit.replace
        if not edit.search:
            fence = "`" * max(3, 1 + _longest_run("`", text))
            parts.append(f"Whole file: {edit.path}\n{fence}\n{_ended(text)}{fence}\n")
            continue
        size = max(7, 1 + max(_longest_run(sign, text) for sign in "<=>"))
        opening, divider, closing = "<" * size + " SEARCH", "=" * size, ">" * size + " REPLACE"
        blocks = f"{opening}\n{_ended(edit.search)}{divider}\n{_ended(edit.replace)}{closing}\n"
        parts.append(f"`{edit.path}`\n{blocks}")
    return "\n".join(parts)


def apply_edits(proposal: Proposal, files: Mapping[str, str], editable: Sequence[str]) -> dict[str, str]:
    """Apply every edit in order, each to the result of those before: all or none.

    `files`: path -> text now. Returns path -> whole new text of each file that differs; a file keeps its newline
    convention and its final newline or lack of one. Raises EditError with the reason, and the nearest lines.
    """
    now = dict(files)
    for edit in proposal.edits:
        path = _editable(edit.path, editable)
        now[path] = _apply(edit, path, now.get(path))
    changed = {path: text for path, text in now.items() if files.get(path) != text}
    if not changed:
        raise EditError("the edits change nothing: the result is the file as it was; propose a real change")
    for path, text in changed.items():
        if reason := misleading(path, files.get(path, ""), text):
            raise EditError(reason)
        error = syntax_error(text, path) if path.endswith(".py") else ""
        if error and not syntax_error(files.get(path, ""), path):  # else it is written for another Python
            raise EditError(error)
    return changed


# Reading a reply.


def _edits_and_prose(lines: list[str]) -> tuple[list[Edit], list[str]]:
    """Edits in order, and the lines that belong to none."""
    edits: list[Edit] = []
    prose: list[str] = []
    i, floor = 0, 0  # the lines of `prose` from `floor` on stand between the last edit and this line
    while i < len(lines):
        opening, whole = OPEN.fullmatch(lines[i].strip()), _whole_file(lines[i])
        if opening is None and whole is None:
            prose.append(lines[i])
            i += 1
            continue
        if len(edits) == MOST_EDITS:
            raise EditError(f"the reply has more than {MOST_EDITS} edits; propose one change")
        if opening:
            path = _path(opening[2]) or _path_above(prose[floor:]) or (edits[-1].path if edits else "")
            edit, i = _block(lines, i + 1, len(opening[1]), path, len(edits) + 1)
        else:
            text, i = _fenced(lines, i + 1)
            edit = Edit(path=whole or "", search="", replace=text)
        edits.append(edit)
        floor = len(prose)
    return edits, prose


def _block(lines: list[str], start: int, size: int, path: str, number: int) -> tuple[Edit, int]:
    """The block whose SEARCH part begins at `start`, and the index after it; `size`: signs of its opening marker.

    Markers of that size count; only where there are none, others do, so that a model may miscount.
    """
    name = f"block {number} (of {path or 'the file'})"
    next_block = _marker(OPEN, lines, start, size, exactly=True)
    end = _marker(CLOSE, lines[:next_block], start, size)
    if end is None:
        raise EditError(f"{name} has no line {'>' * 7} REPLACE at its end")
    dividers = [i for i in range(start, end) if lines[i].rstrip() == "=" * size]
    dividers = dividers or [i for i in range(start, end) if re.fullmatch("={5,}", lines[i].strip())]
    if not dividers:
        raise EditError(f"{name} has no line ======= between SEARCH and REPLACE")
    if len(dividers) > 1:
        raise EditError(
            f"{name} has more than one line {'=' * size}: where the text itself holds such a line, make all three "
            "markers of the block longer (eight signs)"
        )
    search, replace = _text(lines[start : dividers[0]]), _text(lines[dividers[0] + 1 : end])
    if not search:
        raise EditError(
            f"block {number} has an empty SEARCH part: quote the lines to be replaced (to insert, quote "
            "a neighbouring line and repeat it), or give the whole file after `Whole file: <path>`"
        )
    return Edit(path=path, search=search, replace=replace), end + 1


def _marker(kind: re.Pattern[str], lines: list[str], start: int, size: int, exactly: bool = False) -> int | None:
    """The first line from `start` on that is a marker with `size` signs, else (unless `exactly`) with any number."""
    found = [(i, len(match[1])) for i in range(start, len(lines)) if (match := kind.fullmatch(lines[i].strip()))]
    return next((i for i, length in found if length == size), found[0][0] if found and not exactly else None)


def _fenced(lines: list[str], start: int) -> tuple[str, int]:
    """The block after a `Whole file:` line, which ends at the first line like its fence; and the index after it."""
    while start < len(lines) and not lines[start].strip():
        start += 1
    fence = FENCE.fullmatch(lines[start].strip()) if start < len(lines) else None
    if fence is None:
        raise EditError("put the text of the whole file into a fenced block, right below the line `Whole file:`")
    for end in range(start + 1, len(lines)):
        if lines[end].strip() == fence[1]:
            return _text(lines[start + 1 : end]), end + 1
    raise EditError(f"the whole file's fence {fence[1]} is never closed: the reply was cut off, or lacks that line")


def _whole_file(line: str) -> str | None:
    """The path of a line `Whole file: path`, "" where it is left out; None for any other line."""
    field = FIELD.fullmatch(line)
    named = field and field[2] is not None and field[1].lower().startswith("whole")
    return field[2].strip("`*'\" ") if field and named else None


def _fields(prose: list[str]) -> tuple[str, str]:
    """The hypothesis, one paragraph on one line, and the category."""
    said: dict[str, list[str]] = {}
    key = ""
    for line in prose:
        if match := FIELD.fullmatch(line):
            key = match[1].lower()
            said[key] = [match[2] or ""]
        elif key and (FENCE.fullmatch(line.strip()) or (not line.strip() and any(s.strip() for s in said[key]))):
            key = ""
        elif key and not _path(line):
            said[key].append(line)
    hypothesis = " ".join(" ".join(said.get("hypothesis", [])).split()).strip("*_ ")
    words = re.findall(r"[a-z]+", " ".join(said.get("category", [])).lower())
    known = [name for word in words for name in CATEGORIES if word.rstrip("s") == name.rstrip("s")]
    return hypothesis[:LONGEST_HYPOTHESIS], known[0] if known else "other"


def _path_above(prose: list[str]) -> str:
    """The path on the nearest line above a block; fences and blank lines between are passed over."""
    for line in reversed(prose[-4:]):
        if path := _path(line):
            return path
        if line.strip() and not FENCE.fullmatch(line.strip()):
            return ""
    return ""


def _path(line: str) -> str:
    """The path that a line consists of, whatever Markdown is around it; "" where it is something else."""
    if len(line) > 2 * LONGEST_PATH:
        return ""
    line = re.sub(r"^\s*(?:`{3,}|~{3,})(?:\w*[\s:])?", "", line).strip("#*:> \t")
    named = re.sub(r"^(?:file ?name|file ?path|file|path)[ *]*:", "", line, flags=re.IGNORECASE).strip("* \t")
    path = named.strip("`'\"")
    if path == line and not re.fullmatch(r"[^\s()=,<>|]*(?:\.\w+|/[^\s()=,]+)", path):
        return ""
    return path if len(path) <= LONGEST_PATH and "`" not in path else ""


def _why_no_edit(prose: list[str]) -> str:
    if any(re.match(r"@@ -\d|--- a/|\+\+\+ b/", line) for line in prose):
        return "the reply holds a unified diff; write SEARCH/REPLACE blocks instead, quoting the file's lines exactly"
    if any(FENCE.fullmatch(line.strip()) for line in prose):
        return ("the reply holds code but no edit; put it into SEARCH/REPLACE blocks, each opened by a line "
                "`<<<<<<< SEARCH`, or write `Whole file: <path>` above the block")  # fmt: skip
    return "the reply holds no edit; add a path and a block of `<<<<<<< SEARCH`, `=======`, `>>>>>>> REPLACE` lines"


# Applying an edit.


def _editable(path: str, editable: Sequence[str]) -> str:
    names = ", ".join(editable)
    if not path:
        if len(editable) == 1:
            return editable[0]
        raise EditError(f"an edit names no file: write its path on the line above the block; editable: {names}")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:|~|\\", path):
        raise EditError(f"{path} is outside the repository: name a file relative to its root; editable: {names}")
    if str(pure) not in editable:
        raise EditError(f"{path} is not editable; editable: {names}")
    return str(pure)


def _apply(edit: Edit, path: str, text: str | None) -> str:
    """One edit on one file's text (None: no such file yet) -> its new text."""
    old = re.findall(r"[^\n]*\n|[^\n]+", text or "")
    newline = "\r\n" if sum(line.endswith("\r\n") for line in old) * 2 > len(old) else "\n"
    if not edit.search:
        return _joined([line + newline for line in _lines(edit.replace)], old)
    if text is None:
        raise EditError(f"{path} does not exist yet: give it whole, after a line `Whole file: {path}`")
    have, search, replace = [line.rstrip("\r\n") for line in old], _lines(edit.search), _lines(edit.replace)
    matches = _exact(have, search, replace) or _reindented(have, search, replace)
    if not matches:
        reason = f"{path}: the SEARCH text is not in the file; quote its lines exactly"
        raise EditError(reason + _nearest(have, search, path))
    if len(matches) > 1:
        where = ", ".join(str(at + 1) for at, _, _ in matches[:10])
        raise EditError(f"{path}: the SEARCH text is found {len(matches)} times (at lines {where}); quote "
                        "more lines around the one that is meant, so that it is found once")  # fmt: skip
    at, size, new = matches[0]
    return _joined([*old[:at], *(line + newline for line in new), *old[at + size :]], old)


Match = tuple[int, int, list[str]]  # index of the first line, number of lines, what takes their place


def _exact(have: list[str], search: list[str], replace: list[str]) -> list[Match]:
    size = len(search)
    return [(i, size, replace) for i in range(len(have) - size + 1) if have[i : i + size] == search]


def _reindented(have: list[str], search: list[str], replace: list[str]) -> list[Match]:
    """Equal but for blank lines around, blanks at line ends, and one shift of the indentation, which the replacement
    gets as well."""
    search, replace = _without_blank_ends(search), _without_blank_ends(replace)
    if not search:
        return []
    bare, wanted = [line.strip() for line in have], [line.strip() for line in search]
    places = [i for i in range(len(have) - len(search) + 1) if bare[i : i + len(search)] == wanted]
    shifted = [(i, _shifted(have[i : i + len(search)], search, replace)) for i in places]
    return [(i, len(search), new) for i, new in shifted if new is not None]


def _shifted(have: list[str], search: list[str], replace: list[str]) -> list[str] | None:
    """`replace` with the indentation that takes `search` to `have`, or None where there is no single one."""
    add, drop = _indent(have[0]), _indent(search[0])
    if add.endswith(drop):
        add, drop = add.removesuffix(drop), ""
    elif drop.endswith(add):
        add, drop = "", drop.removesuffix(add)
    filled = [line for line in [*search, *replace] if line.strip()]
    if not all(line.startswith(drop) for line in filled):
        return None

    def shift(line: str) -> str:
        return add + line[len(drop) :] if line.strip() else line

    same = all(shift(s).rstrip() == h.rstrip() for s, h in zip(search, have, strict=True))
    return [shift(line) for line in replace] if same else None


def _nearest(have: list[str], search: list[str], path: str) -> str:
    """The lines of the file that look most like the search text, numbered, for the reason."""
    votes: dict[int, float] = {}
    for i, line in [(i, line) for i, line in enumerate(search) if line.strip()][:12]:
        matcher = difflib.SequenceMatcher(b=line.strip()[:200], autojunk=False)
        for j, other in enumerate(have[:5000]):
            matcher.set_seq1(other.strip()[:200])
            if matcher.real_quick_ratio() > 0.6 and matcher.quick_ratio() > 0.6 and (ratio := matcher.ratio()) > 0.6:
                votes[j - i] = votes.get(j - i, 0.0) + ratio
    if not votes:
        return f"; nothing in {path} looks like it"
    start = max(0, max(votes, key=lambda offset: votes[offset]) - 1)
    shown = range(start, min(len(have), start + min(len(search) + 2, NEAREST)))
    return "\nThe nearest lines of the file:\n" + "\n".join(f"{i + 1:5} | {have[i][:300]}" for i in shown)


def _without_blank_ends(lines: list[str]) -> list[str]:
    filled = [i for i, line in enumerate(lines) if line.strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else []


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in _ended(text).split("\n")[:-1]]


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _joined(lines: list[str], old: list[str]) -> str:
    """Lines -> text, with the last newline present or absent as it was in `old`."""
    text = "".join(lines)
    if old and not old[-1].endswith("\n"):
        text = text.removesuffix("\n").removesuffix("\r")
    return text


def _longest_run(sign: str, text: str) -> int:
    return max((len(run) for run in re.findall(re.escape(sign) + "+", text)), default=0)
