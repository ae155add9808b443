"""The reply format: a hypothesis, a category, and edits as SEARCH/REPLACE blocks or whole files.

    Hypothesis: what should get better, and why
    Category: optimizer

    train.py
    <<<<<<< SEARCH
    lines as they are
    =======
    lines as they should be
    >>>>>>> REPLACE

A whole file is a line `Whole file: train.py` and a fenced block below it. Text that itself holds marker lines
takes longer markers (eight or more of each sign), as fences in Markdown do. Models vary, so what can be
understood is: Markdown around paths and headings, fences around blocks, CRLF, a path left out. The block form is
the one known from Aider and from git's conflict markers.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from agent.errors import EditError
from agent.records import Edit, Proposal

CATEGORIES = ("architecture", "optimizer", "schedule", "data", "regularization", "efficiency", "hyperparameter",
              "simplification", "other")  # fmt: skip
LONGEST_REPLY = 400_000  # characters
MOST_EDITS = 100
LONGEST_HYPOTHESIS = 1_000  # characters
NEAREST = 24  # most lines of the file quoted in an error

OPEN = re.compile(r"\s*(<{5,})\s*SEARCH\b[\s:>]*(.*)", re.IGNORECASE)
CLOSE = re.compile(r"\s*(>{5,})\s*REPLACE\s*", re.IGNORECASE)
FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
DECORATION = r"[\s#*_>`-]*"
FIELD = re.compile(rf"{DECORATION}(hypothesis|category|whole[ _-]file){DECORATION}(?::[\s*_]*(.*))?", re.IGNORECASE)


def parse_reply(text: str) -> Proposal:
    """A proposer's reply -> Proposal; `path` is "" where the reply names none. A missing category is "other".

    Raises EditError: what is missing, in words that a language model can act on.
    """
    if len(text) > LONGEST_REPLY:
        raise EditError(f"the reply has {len(text):,} characters; at most {LONGEST_REPLY:,} are read")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise EditError("the reply holds characters that are not valid Unicode (lone surrogates)")
    edits, prose = _scan(_answer(text.replace("\r\n", "\n").split("\n")))
    hypothesis, category = _fields(prose)
    if not hypothesis:
        raise EditError("the reply has no `Hypothesis:` line; start with `Hypothesis: what should improve, and why`")
    if not edits:
        raise EditError(_why_no_edit(prose))
    return Proposal(hypothesis=hypothesis, category=category, edits=tuple(edits))


def render(proposal: Proposal) -> str:
    """Print a proposal in the reply format; `parse_reply` gives it back, each text ending in a newline."""
    parts = [f"Hypothesis: {' '.join(proposal.hypothesis.split())}\nCategory: {proposal.category}\n"]
    longest_fence = max((_longest_run("`", edit.search + edit.replace) for edit in proposal.edits), default=0)
    for number, edit in enumerate(proposal.edits):
        search, replace = _ended(edit.search), _ended(edit.replace)
        if not search:
            fence = "`" * (max(3, 1 + longest_fence) + number)  # no two alike, and like nothing inside
            parts.append(f"Whole file: {edit.path}\n{fence}\n{replace}{fence}\n")
            continue
        size = max(7, 1 + max(_longest_run(sign, search + replace) for sign in "<=>"))
        path = edit.path if not edit.path or _path(edit.path) == edit.path else f"path: `{edit.path}`"
        parts.append(f"{path}\n{'<' * size} SEARCH\n{search}{'=' * size}\n{replace}{'>' * size} REPLACE\n")
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
        error = syntax_error(text, path) if path.endswith(".py") else ""
        if error and not syntax_error(files.get(path, ""), path):  # else it is written for another Python
            raise EditError(error)
    return changed


def syntax_error(text: str, path: str) -> str:
    """Where and why Python text does not compile, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = "".join(text.split("\n")[(error.lineno or 1) - 1 : error.lineno or 1]).strip()[:200]
        return f"{path} would not be valid Python: line {error.lineno}: {error.msg}\n    {line}".rstrip()
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return f"{path} would not be valid Python: {error or type(error).__name__}"
    return ""


# Reading a reply.


def _answer(lines: list[str]) -> list[str]:
    """What follows the thoughts that some servers leave at a reply's start: drafts in there are no edits."""
    start = next((i for i, line in enumerate(lines) if line.strip()), 0)
    end = next((i for i, line in enumerate(lines) if re.search(r"</think(ing)?>\s*$", line)), None)
    return lines if end is None or FIELD.fullmatch(lines[start]) else lines[end + 1 :]


def _scan(lines: list[str]) -> tuple[list[Edit], list[str]]:
    """Edits in order, and the lines that belong to none."""
    edits: list[Edit] = []
    prose: list[str] = []
    i, floor = 0, 0
    while i < len(lines):
        if opening := OPEN.fullmatch(lines[i]):
            path = _path(opening[2]) or _path_above(prose[floor:]) or (edits[-1].path if edits else "")
            if len(edits) == MOST_EDITS:
                raise EditError(f"the reply has more than {MOST_EDITS} edits; propose one change")
            edit, i = _block(lines, i, path, len(edits) + 1)
            edits.append(edit)
            floor = len(prose)
        elif (path := _whole_file(lines[i])) is not None:
            text, i = _whole(lines, i + 1)
            edits.append(Edit(path=path, search="", replace=text))
            floor = len(prose)
        else:
            prose.append(lines[i])
            i += 1
    return edits, prose


def _block(lines: list[str], start: int, path: str, number: int) -> tuple[Edit, int]:
    """The SEARCH/REPLACE block that opens at `start`, and the index of the line after it."""
    opening = OPEN.fullmatch(lines[start])
    size = len(opening[1]) if opening else 7
    stop = start + 1
    while stop < len(lines) and not ((again := OPEN.fullmatch(lines[stop])) and len(again[1]) == size):
        stop += 1
    body = lines[start + 1 : stop]
    ends = {i: len(match[1]) for i, line in enumerate(body) if (match := CLOSE.fullmatch(line))}
    bare = [i for i, line in enumerate(body) if re.fullmatch(r"\s*>{5,}\s*", line)]
    exact = [i for i, length in ends.items() if length == size]
    if not (candidates := exact or list(ends) or bare):
        raise EditError(f"block {number} (of {path or 'the file'}) has no line {'>' * 7} REPLACE at its end")
    body = body[: candidates[0]]
    # Of several dividers the first is taken here; with the file at hand, _splits tries the others.
    dividers = [i for i, line in enumerate(body) if line.rstrip() == "=" * size]
    dividers = dividers or [i for i, line in enumerate(body) if re.fullmatch(r"\s*={5,}\s*", line)]
    if not dividers:
        raise EditError(f"block {number} (of {path or 'the file'}) has no line ======= between SEARCH and REPLACE")
    search, replace = _text(body[: dividers[0]]), _text(body[dividers[0] + 1 :])
    if not search:
        raise EditError(
            f"block {number} has an empty SEARCH part: quote the lines to be replaced (to insert, quote "
            "a neighbouring line and repeat it), or give the whole file after `Whole file: <path>`"
        )
    return Edit(path=path, search=search, replace=replace), start + 1 + candidates[0] + 1


def _whole(lines: list[str], start: int) -> tuple[str, int]:
    """The fenced text after a `Whole file:` line, and the index after it. Without a fence: all that follows.

    A file may hold fences too. The end is the first closing fence that leaves Python that compiles, else the last.
    """
    while start < len(lines) and not lines[start].strip():
        start += 1
    fence = FENCE.fullmatch(lines[start]) if start < len(lines) else None
    if fence is None:
        return _text(lines[start:]).rstrip("\n") + "\n", len(lines)
    ends: list[int] = []
    for i in range(start + 1, len(lines)):
        if lines[i].strip() == fence[1]:
            ends.append(i)
        elif ends and _whole_file(lines[i]) is not None:
            break
    if not ends:
        raise EditError(f"the whole file's fence {fence[1]} is never closed: the reply was cut off, or lacks that line")
    for end in ends[:20] if len(ends) > 1 else []:
        if not syntax_error(_text(lines[start + 1 : end]), "file"):
            return _text(lines[start + 1 : end]), end + 1
    return _text(lines[start + 1 : ends[-1]]), ends[-1] + 1


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
        elif key and (FENCE.fullmatch(line) or (not line.strip() and any(s.strip() for s in said[key]))):
            key = ""
        elif key and not _path(line):
            said[key].append(line)
    hypothesis = " ".join(" ".join(said.get("hypothesis", [])).split()).strip("*_ ")
    words = re.findall(r"[a-z]+", " ".join(said.get("category", [])).lower().replace("isation", "ization"))
    known = [name for word in words for name in CATEGORIES if word.rstrip("s") == name.rstrip("s")]
    return hypothesis[:LONGEST_HYPOTHESIS], known[0] if known else "other"


def _path_above(prose: list[str]) -> str:
    """The path on the nearest line above a block; fences and blank lines between are passed over."""
    for line in reversed(prose[-4:]):
        if path := _path(line):
            return path
        if line.strip() and not FENCE.fullmatch(line):
            return ""
    return ""


def _path(line: str) -> str:
    """The path that a line consists of, whatever Markdown is around it; "" where it is something else."""
    line = re.sub(r"^\s*(`{3,}|~{3,})\s*\w*(?=[\s:])[\s:]*|^\s*(`{3,}|~{3,})", "", line)
    named = re.sub(r"^\W*(?:file ?name|file ?path|file|path)\W*[:=]", "", line, flags=re.IGNORECASE)
    bare = named.strip().strip("#*:> ").strip()
    path = bare.strip("`'\"")
    if len(path) > 300 or not path or "`" in path:
        return ""
    if path != bare or named != line:
        return path
    return path if re.fullmatch(r"[^\s()=,]*(?:\.\w+|/[^\s()=,]+)", path) and path[0] not in "<>|" else ""


def _why_no_edit(prose: list[str]) -> str:
    if any(re.match(r"@@ -\d|--- a/|\+\+\+ b/", line) for line in prose):
        return "the reply holds a unified diff; write SEARCH/REPLACE blocks instead, quoting the file's lines exactly"
    if any(FENCE.fullmatch(line) for line in prose):
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
    crlf = sum(line.endswith("\r\n") for line in old) * 2 > len(old)
    if not edit.search:
        return _join(_lines(edit.replace), old, crlf)
    if text is None:
        raise EditError(f"{path} does not exist yet: give it whole, after a line `Whole file: {path}`")
    have = [line.rstrip("\r\n") for line in old]
    for find in (_exact, _tolerant):
        for search, replace in _splits(edit):
            matches = find(have, search, replace)
            if len(matches) > 1:
                where = ", ".join(str(at + 1) for at, _, _ in matches[:10])
                raise EditError(f"{path}: the SEARCH text is found {len(matches)} times (at lines {where}); quote "
                                "more lines around the one that is meant, so that it is found once")  # fmt: skip
            if matches:
                at, size, new = matches[0]
                nl = "\r\n" if crlf else "\n"
                return _join([*old[:at], *(line + nl for line in new), *old[at + size :]], old, crlf)
    raise EditError(f"{path}: the SEARCH text is not in the file; quote its lines exactly" + _nearest(have, edit, path))


Match = tuple[int, int, list[str]]  # index of the first line, number of lines, what takes their place


def _splits(edit: Edit) -> list[tuple[list[str], list[str]]]:
    """(search, replace) as lines; where `replace` holds a line like the divider, every other way to divide, too.

    The longest search that is in the file is the right one: it quotes a divider that the file itself holds.
    """
    search, replace = _lines(edit.search), _lines(edit.replace)
    at = [i for i, line in enumerate(replace) if line.rstrip() == "=" * 7][:20]
    others = [([*search, "=" * 7, *replace[:i]], replace[i + 1 :]) for i in reversed(at)]
    return [*others, (search, replace)]


def _exact(have: list[str], search: list[str], replace: list[str]) -> list[Match]:
    size = len(search)
    return [(i, size, replace) for i in range(len(have) - size + 1) if have[i : i + size] == search]


def _tolerant(have: list[str], search: list[str], replace: list[str]) -> list[Match]:
    """Equal but for blanks at line ends and one shift of the indentation, which the replacement gets as well."""
    if not any(line.strip() for line in search):
        return []
    if not (search[0].strip() and search[-1].strip()):  # blank lines around the text, which the file may lack
        search, replace = _unpadded(search), _unpadded(replace)
    found: list[Match] = []
    bare, wanted = [line.strip() for line in have], [line.strip() for line in search]
    for i in range(len(have) - len(search) + 1):
        if bare[i : i + len(search)] == wanted:
            new = _shifted(have[i : i + len(search)], search, replace)
            if new is not None:
                found.append((i, len(search), new))
    return found


def _shifted(have: list[str], search: list[str], replace: list[str]) -> list[str] | None:
    """`replace` with the indentation that takes `search` to `have`, or None where there is no single one."""
    add, drop = _indent(have[0]), _indent(search[0])
    if add.endswith(drop):
        add, drop = add.removesuffix(drop), ""
    elif drop.endswith(add):
        add, drop = "", drop.removesuffix(add)

    def shift(line: str) -> str | None:
        if not line.strip():
            return line
        return add + line[len(drop) :] if line.startswith(drop) else None

    if any(shift(s) is None or (shift(s) or "").rstrip() != h.rstrip() for s, h in zip(search, have, strict=True)):
        return None
    new = [shift(line) for line in replace]
    return None if None in new else [line for line in new if line is not None]


def _nearest(have: list[str], edit: Edit, path: str) -> str:
    """The lines of the file that look most like the search text, numbered, for the reason."""
    search = _lines(edit.search)
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


def _unpadded(lines: list[str]) -> list[str]:
    full = [i for i, line in enumerate(lines) if line.strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in _ended(text).split("\n")[:-1]]


def _text(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def _join(lines: list[str], old: list[str], crlf: bool) -> str:
    """Lines -> text, with the last newline present or absent as it was in `old`."""
    nl = "\r\n" if crlf else "\n"
    text = "".join(line if line.endswith("\n") else line + nl for line in lines)
    if old and not old[-1].endswith("\n"):
        text = text.removesuffix("\n").removesuffix("\r")
    return text


def _longest_run(sign: str, text: str) -> int:
    return max((len(run) for run in re.findall(re.escape(sign) + "+", text)), default=0)
