"""Replies as models write them, against files as they are: this repository's own train.py first of all."""

import ast
import contextlib
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from agent.errors import EditError
from agent.propose.edits import CATEGORIES, LONGEST_REPLY, apply_edits, parse_reply, render
from agent.records import Edit, Proposal

ROOT = Path(__file__).parent.parent
REAL = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("train.py", "prepare.py", "agent/ledger.py")}
HEAD = "Hypothesis: a lower rate helps\nCategory: optimizer\n\n"
FILE = "import math\n\nLR = 0.1\nDEPTH = 4\n\n\ndef f(x):\n    if x:\n        return x * LR\n    return 0\n"
FILES = {"train.py": FILE}


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"


def applied(reply: str, files=FILES, editable=("train.py",)) -> str:
    return apply_edits(parse_reply(reply), files, editable)["train.py"]


WANTED = FILE.replace("LR = 0.1", "LR = 0.05")
BLOCK = block("LR = 0.1", "LR = 0.05")


@pytest.mark.parametrize(
    "reply",
    [
        HEAD + "train.py\n" + BLOCK,
        HEAD + "train.py\n```\n" + BLOCK + "```\n",
        HEAD + "train.py\n```python\n" + BLOCK + "```\nThis should help.\n",
        HEAD + "```python\ntrain.py\n" + BLOCK + "```\n",
        HEAD + "```python train.py\n" + BLOCK + "```",
        HEAD + "```python:train.py\n" + BLOCK + "```",
        HEAD + "`train.py`\n\n" + BLOCK,
        HEAD + "### `train.py`:\n" + BLOCK,
        HEAD + "**train.py**\n" + BLOCK,
        HEAD + "path: train.py\n" + BLOCK,
        HEAD + "**File:** `train.py`\n" + BLOCK,
        HEAD + "# ./train.py\n" + BLOCK,
        HEAD + BLOCK,
        HEAD + "Here is the edit.\n\n" + BLOCK,
        HEAD + BLOCK.replace("SEARCH", "SEARCH train.py"),
        HEAD + "train.py\n" + BLOCK.replace("\n", "   \n"),
        (HEAD + "train.py\n" + BLOCK).replace("\n", "\r\n"),
        HEAD + "train.py\n" + BLOCK.replace("<" * 7, "<" * 6).replace("=" * 7, "=" * 8).replace(">" * 7, ">" * 9),
        HEAD + "train.py\n" + BLOCK.replace(" REPLACE", ""),
        "**Hypothesis:** a lower rate helps\n**Category:** Optimizer\n\n" + BLOCK,
        "## Hypothesis\n\na lower rate\nhelps\n\n## Category\n\noptimizer\n\n### train.py\n" + BLOCK,
        "Sure!\n\nHypothesis: a lower\nrate helps\nCategory: optimizers / schedule\ntrain.py\n" + BLOCK,
        HEAD + "Whole file: train.py\n```python\n" + WANTED + "```\nThat is all.\n",
        HEAD + "**Whole file:** `train.py`\n\n~~~\n" + WANTED + "~~~",
    ],
)
def test_forms_that_models_write_all_give_the_same_change(reply):
    proposal = parse_reply(reply)
    assert proposal.hypothesis == "a lower rate helps"
    assert proposal.category == "optimizer"
    assert applied(reply).replace(" \n", "\n").replace("   \n", "\n").split() == WANTED.split()
    assert "LR = 0.05\n" in applied(reply).replace("   \n", "\n")


def test_several_blocks_and_a_path_said_once():
    reply = HEAD + "train.py\n" + BLOCK + "\n" + block("DEPTH = 4", "DEPTH = 5\nWIDTH = 8")
    other = {"train.py": FILE, "model.py": "A = 1\n"}
    assert applied(reply, other, ("train.py", "model.py")) == WANTED.replace("DEPTH = 4", "DEPTH = 5\nWIDTH = 8")


def test_several_files_all_or_none():
    files = {"train.py": FILE, "model.py": "A = 1\n"}
    good = HEAD + "train.py\n" + BLOCK + "model.py\n" + block("A = 1", "A = 2")
    both = apply_edits(parse_reply(good), files, ["train.py", "model.py"])
    assert both == {"train.py": WANTED, "model.py": "A = 2\n"}
    with pytest.raises(EditError, match="model.py: the SEARCH text is not in the file"):
        apply_edits(parse_reply(good.replace("A = 1", "B = 1")), files, ["train.py", "model.py"])


def test_a_hypothesis_may_take_several_lines_and_a_missing_category_is_other():
    proposal = parse_reply("Hypothesis: first\n  second line\n\nSome talk.\n\ntrain.py\n" + BLOCK)
    assert (proposal.hypothesis, proposal.category) == ("first second line", "other")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("train.py\n" + BLOCK, "no `Hypothesis:` line"),
        (HEAD, "no edit"),
        ("", "no `Hypothesis:` line"),
        (HEAD + "```python\nLR = 0.05\n```", "code but no edit"),
        (HEAD + "```diff\n@@ -3 +3 @@\n-LR = 0.1\n+LR = 0.05\n```", "unified diff"),
        (HEAD + "train.py\n<<<<<<< SEARCH\nLR = 0.1\n=======\nLR =", "block 1 .*no line >>>>>>> REPLACE"),
        (HEAD + BLOCK + "<<<<<<< SEARCH\nA\n" + BLOCK, "block 2 .*no line >>>>>>> REPLACE"),
        (HEAD + "train.py\n<<<<<<< SEARCH\nLR = 0.1\n>>>>>>> REPLACE", "no line ======="),
        (HEAD + "train.py\n<<<<<<< SEARCH\n=======\nB = 1\n>>>>>>> REPLACE", "empty SEARCH"),
        (HEAD + "Whole file: train.py\n```python\nLR = 1\n", "never closed"),
        (HEAD + BLOCK + "x" * LONGEST_REPLY, "at most 400,000"),
        (HEAD + "Whole file: train.py\n" + WANTED, "fenced block"),
        (HEAD + block("A\n=======\nB", "A"), "more than one line ======="),
        (HEAD + BLOCK * 101, "more than 100"),
    ],
)
def test_what_is_missing_is_said(reply, said):
    with pytest.raises(EditError, match=said):
        parse_reply(reply)


@pytest.mark.parametrize(
    ("search", "replace", "said"),
    [
        ("LR = 0.2", "LR = 0.3", r"not in the file(.|\n)*3 \| LR = 0.1"),
        ("    return 0\nnothing like it", "", r"not in the file(.|\n)*10 \|     return 0"),
        ("LR", "RATE", "not in the file"),
        ("LR = 0.1", "LR = 0.1", "change nothing"),
        ("def f(x):", "def f(x:", r"line 7: .*\n    def f\(x:"),
        ("LR = 0.1", "return 3", "line 3: 'return' outside function"),
        ("LR = 0.1", "LR = 0.2\x00", r"line 3: U\+0000"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_with_the_reason(search, replace, said):
    with pytest.raises(EditError, match=said):
        applied(HEAD + "train.py\n" + block(search, replace))


def test_a_text_found_twice_is_refused_with_the_lines():
    with pytest.raises(EditError, match=r"found 2 times \(at lines 2, 4\)"):
        applied(HEAD + block("b = 1", "b = 2"), {"train.py": "a = 1\nb = 1\nc = 1\nb = 1\n"})
    with pytest.raises(EditError, match=r"found 2 times \(at lines 2, 4\)"):
        applied(HEAD + block("b = 1", "b = 2"), {"train.py": "if 1:\n  b = 1\nif 2:\n  b = 1\n"})


@pytest.mark.parametrize("path", ["/etc/passwd", "../train.py", "a/../../x.py", "C:\\x.py", "~/x.py", "prepare.py"])
def test_only_editable_files_inside_the_repository(path):
    with pytest.raises(EditError, match="editable: train.py"):
        applied(HEAD + f"path: {path}\n" + BLOCK)
    with pytest.raises(EditError, match="editable: train.py"):
        applied(HEAD + f"Whole file: {path}\n```\nx = 1\n```\n")


def test_no_path_with_two_editable_files_is_refused():
    with pytest.raises(EditError, match="names no file.*train.py, model.py"):
        apply_edits(parse_reply(HEAD + BLOCK), FILES, ["train.py", "model.py"])


def test_indentation_and_blanks_may_differ_and_the_replacement_follows():
    reply = HEAD + block("if x:\n    return x * LR\nreturn 0", "if x:\n    return x * LR * 2\n\nreturn 1")
    assert applied(reply) == FILE.replace("x * LR\n    return 0", "x * LR * 2\n\n    return 1")
    deeper = HEAD + block("\n            return x * LR  \n", "\n            y = x\n            return y * LR\n")
    assert applied(deeper) == FILE.replace("        return x * LR\n", "        y = x\n        return y * LR\n")
    tabs = {"train.py": "def f(x):\n\tif x:\n\t\treturn 1\n"}
    assert applied(HEAD + block("    if x:", "    if not x:"), tabs) == "def f(x):\n\tif not x:\n\t\treturn 1\n"


def test_uneven_indentation_is_not_guessed():
    with pytest.raises(EditError, match="not in the file"):
        applied(HEAD + block("if x:\nreturn x * LR", "if x:\nreturn x"))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_newlines_and_the_end_of_the_file_stay_as_they_were(newline, end):
    text = ("A = 1\nB = 2\nC = 3" + end).replace("\n", newline)
    want = ("A = 1\nB = 5\nD = 6\nC = 4" + end).replace("\n", newline)
    reply = HEAD + block("B = 2", "B = 5\nD = 6") + block("C = 3", "C = 4")
    assert applied(reply, {"train.py": text}) == want
    whole = HEAD + "Whole file: train.py\n```\nA = 1\nB = 5\nD = 6\nC = 4\n```\n"
    assert applied(whole, {"train.py": text}) == want


def test_files_that_hold_markers_and_fences():
    """Longer markers and fences hold shorter ones; without them nothing is guessed."""
    text = '"""\nTitle\n=======\ntext\n"""\nA = 1\n'
    longer = "<<<<<<<< SEARCH\nTitle\n=======\n========\nNew\n=======\n>>>>>>>> REPLACE\n"
    assert applied(HEAD + longer, {"train.py": text}) == text.replace("Title", "New")
    indented = HEAD + block("A = 1", 'A = """\n    Title\n    =======\n"""')
    assert applied(indented, {"train.py": "A = 1\n"}) == 'A = """\n    Title\n    =======\n"""\n'
    fences = '"""Use:\n```\ncode\n```\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n"""\nA = 2\n'
    chatty = HEAD + "Whole file: train.py\n````python\n" + fences + "````\nTry it:\n```\npython train.py\n```\n"
    assert applied(chatty) == fences


def test_a_long_line_is_read_in_time():
    """Patterns that try every way to divide a run of blanks would take hours here."""
    for sign in (" ", "#", "`", ">", "_", "- "):
        line = sign * 50_000 + "x"
        with pytest.raises(EditError):
            parse_reply(f"Hypothesis: h\n{line}\n<<<<<<< SEARCH\n{line}\n>>>>>>>{line}\n")


def test_a_new_editable_file_is_given_whole():
    reply = parse_reply(HEAD + "Whole file: model.py\n```\nA = 1\n```\n")
    assert apply_edits(reply, FILES, ["train.py", "model.py"]) == {"model.py": "A = 1\n"}
    with pytest.raises(EditError, match="does not exist yet"):
        apply_edits(parse_reply(HEAD + "model.py\n" + BLOCK), FILES, ["train.py", "model.py"])


def test_a_file_this_python_cannot_read_may_still_be_edited():
    assert applied(HEAD + BLOCK, {"train.py": "print 1\nLR = 0.1\n"}) == "print 1\nLR = 0.05\n"


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("LR = 0.1  # \u202e1.0 = RL", r"line 3: U\+202E \(RIGHT-TO-LEFT OVERRIDE\)"),
        ("LR = 0.1  # \x1b[2K\x1b[1ALR = 0.05", r"U\+001B"),
        ("LR = 0.1  # quiet\rLR = 0.05", r"U\+000D"),
        ("LR = 0.1\nif LR:\x0c\n    pass", r"line 4: U\+000C"),
        ('NAME = "a\u200bb"', r"U\+200B \(ZERO WIDTH SPACE\)"),
        ('NAME = "a\u200db"', r"U\+200D"),
        ("NAME = '\ufeff'", r"U\+FEFF"),
        ("# damaged: \ufffd", r"U\+FFFD"),
        ("LR = 0.1\nL\u0420 = 9  # Cyrillic", r"line 4: the name `L\u0420` holds U\+0420"),
        ("LR = 0.1\n\uff45val = 9  # fullwidth, Python reads eval", "write names in ASCII"),
        ("LR = 0.1\nprint(f'{x.\u0430}')", "write names in ASCII"),
        ("LR = 0.1\ndef f(\u0441=1): pass", "write names in ASCII"),
    ],
)
def test_characters_that_mislead_a_reviewer_are_refused(new, said):
    with pytest.raises(EditError, match=said):
        applied(HEAD + block("LR = 0.1", new))


def test_strings_and_comments_may_be_in_any_language_and_old_names_stay():
    for said in ("größer", "学习率", "תודה", "می\u200cخواهم", "👩\u200d🔬", "café\u00a0", "e\u0301"):
        new = f'LR = 0.1  # {said}\nNAME = "{said}"'
        assert applied(HEAD + block("LR = 0.1", new)) == FILE.replace("LR = 0.1", new)
    old = {"train.py": "\u03c3 = 1\x0c\nLR = 0.1\n"}
    assert applied(HEAD + block("LR = 0.1", "LR = 2 * \u03c3"), old) == "\u03c3 = 1\x0c\nLR = 2 * \u03c3\n"
    with pytest.raises(EditError, match="000C"):
        applied(HEAD + block("LR = 0.1", "LR = 0.2\x0c"), old)


# Properties.

HARD = [
    "",
    "    ",
    "a = 1",
    "  a = 1",
    "```",
    "~~~",
    "=" * 7,
    "=" * 8,
    "<" * 7 + " SEARCH",
    ">" * 7 + " REPLACE",
    "train.py",
    "Hypothesis: x",
    "Category: y",
    "Whole file: z.py",
    "</think>",
    "a\tb",
    "x\x0cy",
    "\u2028",
]
line = st.sampled_from(HARD) | st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20)
texts = st.lists(line, max_size=12).map(lambda lines: "".join(x + "\n" for x in lines))
edits = st.builds(Edit, path=st.sampled_from(["train.py", "a/b c.py", "Makefile"]), search=texts, replace=texts)
proposals = st.builds(
    Proposal,
    hypothesis=st.just("smaller is better"),
    category=st.sampled_from(CATEGORIES),
    edits=st.lists(edits, min_size=1, max_size=4).map(tuple),
)


@given(proposals)
@settings(deadline=None)
def test_render_and_parse_are_inverse(proposal):
    assert parse_reply(render(proposal)) == proposal


@given(st.data(), st.sampled_from(sorted(REAL)), st.booleans())
@settings(deadline=None, max_examples=150)
def test_any_range_of_a_real_file_can_be_replaced(data, name, by_hand):
    """What is cut from a real file and put into a reply, by `render` or as a model does, gives the intended file."""
    lines = REAL[name].split("\n")[:-1]
    start = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(start + 1, min(len(lines), start + 30)))
    while "\n".join(lines).count("\n".join(lines[start:end])) > 1:
        start, end = max(0, start - 1), min(len(lines), end + 1)
    new = [f"# {x}" for x in lines[start:end]] + data.draw(st.sampled_from([[], ["", "# more"], ["# ======="]]))
    want = "\n".join([*lines[:start], *new, *lines[end:]]) + "\n"
    search, replace = "\n".join(lines[start:end]), "\n".join(new)
    edit = Edit(path="train.txt", search=search + "\n", replace=replace + "\n")  # .txt: need not compile
    made = Proposal(hypothesis="h", category="other", edits=(edit,))
    reply = HEAD + "train.txt\n```python\n" + block(search, replace) + "```" if by_hand else render(made)
    assert apply_edits(parse_reply(reply), {"train.txt": REAL[name]}, ["train.txt"]) == {"train.txt": want}


@given(texts.filter(bool), st.data())
@settings(deadline=None)
def test_any_unique_range_of_any_file_gives_exactly_the_intended_file(text, data):
    lines = text.split("\n")[:-1]
    start = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(start + 1, len(lines)))
    cut, new = lines[start:end], data.draw(st.lists(st.sampled_from(HARD[:4]), max_size=3))
    assume(sum(lines[i : i + len(cut)] == cut for i in range(len(lines))) == 1 and new != cut)
    edit = Edit(path="a.txt", search="\n".join([*cut, ""]), replace="\n".join([*new, ""]) if new else "")
    reply = render(Proposal(hypothesis="h", category="other", edits=(edit,)))
    want = "".join(x + "\n" for x in [*lines[:start], *new, *lines[end:]])
    assert apply_edits(parse_reply(reply), {"a.txt": text}, ["a.txt"]) == {"a.txt": want}


@pytest.mark.parametrize("name", sorted(REAL))
def test_every_statement_of_a_real_file_can_be_deleted_or_doubled(name):
    lines = REAL[name].split("\n")[:-1]
    for node in ast.parse(REAL[name]).body[1:]:  # a docstring twice is no valid Python before __future__
        cut = lines[node.lineno - 1 : node.end_lineno]
        if sum(lines[i : i + len(cut)] == cut for i in range(len(lines))) > 1:
            continue
        reply = HEAD + name + "\n" + block("\n".join(cut), "\n".join(cut + cut))
        want = "\n".join(lines[: node.lineno - 1] + cut + cut + lines[node.end_lineno or 0 :]) + "\n"
        assert apply_edits(parse_reply(reply), {name: REAL[name]}, [name]) == {name: want}


@given(st.lists(line | st.sampled_from(["<<<<<<<", "=======", "<<<<<<< SEARCH", ">>>>>>> REPLACE"]), max_size=30))
@settings(deadline=None)
@example(["Hypothesis: a", "<<<<<<< SEARCH", "\x00", "=======", "\x00", ">>>>>>> REPLACE"])
def test_malformed_text_raises_edit_errors_only(lines):
    with contextlib.suppress(EditError):
        apply_edits(parse_reply("Hypothesis: h\n" + "\n".join(lines)), FILES, ["train.py"])


@given(st.text(max_size=400))
def test_noise_raises_edit_errors_only(text):
    with contextlib.suppress(EditError):
        apply_edits(parse_reply(text), FILES, ["train.py"])


def test_the_files_used_above_are_the_repository_s_own():
    assert "torch" in REAL["train.py"] and len(REAL["train.py"].splitlines()) > 50
