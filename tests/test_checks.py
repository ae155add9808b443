"""What is refused before a trial, and what is not, on this repository's own train.py."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.judge.checks import check, fingerprint
from agent.records import Experiment, Proposal, Verdict, VerdictKind

ROOT = Path(__file__).parent.parent
REAL = (ROOT / "train.py").read_text(encoding="utf-8")
PROPOSAL = Proposal(hypothesis="h", category="other", edits=())


def experiment(
    number: int, files: dict[str, str], kind: VerdictKind = "discard", parent: str = "c0", metric: float | None = 1.5
) -> Experiment:
    return Experiment(
        number=number,
        state="published",
        parent=parent,
        commit=f"c{number}",
        files=files,
        proposal=PROPOSAL,
        verdict=Verdict(kind=kind, reason="r", metric=metric),
    )


def judged(after: str, before: str = REAL, history: tuple[Experiment, ...] = ()):
    return check(PROPOSAL, {"train.py": before}, {"train.py": after}, history)


def changed(*names: str, text: str = REAL) -> str:
    """The file with these module-level numbers changed, as a proposer would."""
    for name in names:
        new = re.sub(rf"(?m)^({name}\b[^=\n]*= )([0-9.e-]+)", r"\g<1>3 * \2", text, count=1)
        assert new != text, name
        text = new
    return text


def constants() -> list[str]:
    tree = ast.parse(REAL)
    return [
        n.targets[0].id
        for n in tree.body
        if isinstance(n, ast.Assign)
        and isinstance(n.targets[0], ast.Name)
        and isinstance(n.value, ast.Constant)
        and type(n.value.value) in (int, float)
    ]


@pytest.mark.parametrize("name", constants())
def test_any_one_constant_may_change(name):
    assert judged(changed(name)) is None


def test_comments_docstrings_and_layout_change_nothing_that_runs():
    other = "# a comment\n" + REAL.replace("\n\n\n", "\n\n\n\n")
    other = re.sub(r"(?m)^( *)return ", r"\1# why\n\1return ", other)
    other = re.sub(r'"""[^"]*"""', '"""Another docstring."""', other)
    assert other != REAL and fingerprint({"train.py": other}) == fingerprint({"train.py": REAL})
    kind, reason = judged(other) or ("", "")
    assert kind == "invalid" and "changes nothing that runs" in reason
    assert judged("A = 0.001\n", "A = 1e-3\n") is not None


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_every_change_of_a_number_is_seen_and_every_comment_is_not(data):
    lines = REAL.split("\n")
    at = data.draw(st.sampled_from([i for i, line in enumerate(lines) if re.match(r"[A-Z_]+ = [0-9.]+\b", line)]))
    number = data.draw(st.floats(0, 1e6).filter(lambda x: repr(x) not in lines[at]))
    commented = [*lines[:at], lines[at] + "  # " + data.draw(st.from_regex(r"\A[ -~]*\Z")), *lines[at + 1 :]]
    renumbered = [*lines[:at], re.sub("= .*", f"= {number + 1e7}", lines[at]), *lines[at + 1 :]]
    assert fingerprint({"train.py": "\n".join(commented)}) == fingerprint({"train.py": REAL})
    assert fingerprint({"train.py": "\n".join(renumbered)}) != fingerprint({"train.py": REAL})


def test_what_does_not_parse_is_invalid_with_the_line():
    kind, reason = judged("A = 1\nB = (\n", "A = 1\nB = 2\n") or ("", "")
    assert kind == "invalid" and "line 2" in reason


@pytest.mark.parametrize("kind", ["keep", "discard", "crash", "timeout", "violation"])
def test_the_same_code_again_is_a_duplicate_and_says_how_it_went(kind):
    tried = changed(constants()[0])
    history = (experiment(0, {}, "baseline"), experiment(1, {"train.py": tried}, kind, metric=1.25))
    assert judged(tried + "\n# said otherwise\n", REAL, history) == (
        "duplicate",
        f"same code as experiment 1: {kind}, 1.25; propose something else",
    )
    assert judged(changed(constants()[1]), REAL, history) is None


def test_what_never_ran_is_no_duplicate():
    tried = changed(constants()[0])
    for kind in ("invalid", "duplicate"):
        assert judged(tried, REAL, (experiment(1, {"train.py": tried}, kind, metric=None),)) is None


def test_the_baseline_again_is_a_duplicate():
    kept = changed(constants()[0])
    history = (experiment(0, {"train.py": REAL}, "baseline"), experiment(1, {"train.py": kept}, "keep"))
    assert (judged(REAL, kept, history) or ("",))[0] == "duplicate"


def test_unchanged_files_come_from_the_parents():
    """Each experiment records one of the two files; the same pair is found, a different pair is not."""
    base = {"a.py": "A = 1\n", "b.py": "B = 1\n"}
    history = (
        experiment(0, base, "baseline"),
        experiment(1, {"a.py": "A = 2\n"}, "discard", "c0"),
        experiment(2, {"b.py": "B = 2\n"}, "keep", "c0"),
        experiment(3, {"a.py": "A = 3\n"}, "discard", "c2"),
    )
    now = {"a.py": "A = 1\n", "b.py": "B = 2\n"}
    assert check(PROPOSAL, now, {"a.py": "A = 2\n"}, history) is None  # tried with the other b.py only
    assert (check(PROPOSAL, now, {"a.py": "A = 3\n"}, history) or ("", ""))[1].startswith("same code as experiment 3")
    assert (check(PROPOSAL, now, {"a.py": "A = 2\n", "b.py": "B = 1\n"}, history) or ("", ""))[1].startswith(
        "same code as experiment 1"
    )
    assert (check(PROPOSAL, now, {"b.py": "B = 1\n"}, history) or ("", ""))[1].startswith("same code as experiment 0")


def test_an_unknown_file_is_not_guessed():
    history = (experiment(1, {"a.py": "A = 2\n"}), experiment(2, {"b.py": "B = 2\n"}, "keep", "c0"))
    now = {"a.py": "A = 1\n", "b.py": "B = 2\n"}  # nobody recorded what b.py was in experiment 1
    assert check(PROPOSAL, now, {"a.py": "A = 2\n"}, history) is None


FLAT = """
import torch

DEPTH = 4
WIDTH = 128
LR = 0.1
WARMUP = 0.1
COOLDOWN = 0.3
BATCH = 8
CLIP = 1.0
DROPOUT = 0.0
SPARE = 1


class Model:
    def __init__(self):
        self.sizes = [WIDTH] * DEPTH
        self.drop = DROPOUT


def rate(step):
    return LR * min(step / WARMUP, (1 - step) / COOLDOWN)


def clip(grad):
    return grad.clamp(CLIP)


def batches():
    yield BATCH


def report():
    print(SPARE, DEPTH, WIDTH, LR, WARMUP, COOLDOWN, BATCH, CLIP, DROPOUT)


report()
"""


def test_a_handful_of_unrelated_changes_is_refused_with_a_way_out():
    kind, reason = judged(changed("DEPTH", "LR", "BATCH", "CLIP", "SPARE", text=FLAT), FLAT) or ("", "")
    assert kind == "invalid"
    assert "changes 5 things" in reason and "experiments of their own" in reason and "BATCH" in reason


@pytest.mark.parametrize(
    "names",
    [
        ("DEPTH", "WIDTH", "DROPOUT", "LR"),  # one model, and its rate
        ("LR", "WARMUP", "COOLDOWN", "CLIP", "BATCH"),  # one schedule, and two more
        ("DEPTH", "LR", "BATCH"),
    ],
)
def test_settings_that_work_together_are_one_change(names):
    assert judged(changed(*names, text=FLAT), FLAT) is None


def test_a_new_part_with_all_it_needs_is_one_change():
    attention = "class Attention:\n    def __init__(self):\n        self.x = HEADS, BASE, EPS, SCALE\n\n\n"
    after = FLAT.replace("SPARE = 1", "SPARE = 1\nHEADS = 4\nBASE = 10000.0\nEPS = 1e-6\nSCALE = 2.0")
    after = after.replace("class Model:", attention + "class Model:").replace("DROPOUT\n\n", "Attention()\n\n")
    assert judged(after, FLAT) is None
    everywhere = re.sub(r"(?m)^def (\w+)\((\w*)\):", r"def \1(*, scale=1.0):\n    print(scale)", FLAT)
    assert judged(everywhere, FLAT) is None  # four functions, one new argument


def test_unrelated_rewrites_of_functions_are_refused():
    after = (
        FLAT.replace("clamp(CLIP)", "clip(CLIP)")
        .replace("yield BATCH", "yield 2 * BATCH")
        .replace("self.drop", "self.dropout")
        .replace("min(step", "max(step")
    )
    kind, reason = judged(after, FLAT) or ("", "")
    assert kind == "invalid" and "changes 4 things" in reason


def test_real_changes_of_the_real_file_pass():
    names = constants()
    assert judged(REAL.replace("relu", "silu")) is None
    for a, b in zip(names, names[1:], strict=False):
        assert judged(changed(a, b)) is None


def test_a_mixture_on_the_real_file_is_refused():
    spread = [n for n in ("LOGIT_CAP", "HEAD_LR", "MATRIX_LR", "WARMDOWN", "MOMENTUM") if n in constants()]
    assert len(spread) == 5, "train.py has other constants now: choose five that no function shares"
    assert (judged(changed(*spread)) or ("",))[0] == "invalid"


def test_every_constant_at_once_is_refused():
    kind, reason = judged(changed(*constants())) or ("", "")
    assert kind == "invalid" and f"changes {len(constants())} settings at once" in reason


def test_files_that_are_no_python():
    assert fingerprint({"a.yaml": "a: 1\n"}) == fingerprint({"a.yaml": "a: 1  \n\n"}) != fingerprint({"a.yaml": "a: 2"})
    assert check(PROPOSAL, {"a.yaml": "a: 1\n"}, {"a.yaml": "a: 2\n"}, ()) is None
    assert check(PROPOSAL, {"a.py": "print 1\n"}, {"a.py": "print 2\n"}, ()) is None  # for another Python


@given(st.text(max_size=80), st.text(max_size=80))
@settings(deadline=None)
def test_any_text_gets_an_answer(before, after):
    answer = judged(after, before)
    assert answer is None or answer[0] in ("invalid", "duplicate")
