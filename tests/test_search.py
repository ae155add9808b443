"""The search proposer: what it may touch, that it never repeats itself, and that it finds a better value."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ProposerError
from agent.program import parse_program
from agent.propose.edits import apply_edits, parse_reply
from agent.propose.search import SearchProposer, changed, constants
from agent.protocols import Request
from agent.records import Call, Experiment, Reply, Turn, Verdict

PROGRAM = parse_program("---\nmetric: loss\n---\nMake the loss of this small model as low as possible.")
TRAIN = '''"""Trains.

LR = 1e-3  # only an example
"""
import os

LR = 1e-3  # peak rate
BATCH_SIZE = 32
WIDTH: int = 384
DEPTH = 4
DROPOUT = 0.0
BETAS = (0.9, 0.95)  # AdamW's
CLIP = -1.5
TOKENS = 524_288
USE_BIAS = False
ACTIVATION = "gelu"  # what the blocks use
SEED = 1337
TIME_BUDGET = 300
DATA_PATH = "corpus"
NAME = "model"
SCALE = WIDTH * 2
if os.environ.get("CUDA"):
    DEPTH = 12
lower = 3


def block(x):
    LOCAL = 3
    if ACTIVATION == "gelu":
        return x
    assert ACTIVATION in ("relu", "silu")
    return x * LOCAL
'''


def ask(text: str, history: list[Experiment], seed: int = 0, turns: tuple[Turn, ...] = ()) -> tuple[Reply, str]:
    """The reply of the next proposal, and the text it leads to."""
    request = Request(
        number=len(history),
        system="",
        turns=(Turn(role="user", text="Propose."), *turns),
        program=PROGRAM,
        files={"train.py": text},
        history=tuple(history),
    )
    reply = SearchProposer(seed).propose(request)
    return reply, apply_edits(parse_reply(reply.text), {"train.py": text}, ["train.py"])["train.py"]


def values(text: str) -> dict[str, object]:
    return {c.name: c.value for c in constants("train.py", text)}


class Night:
    """A loop without training: `loss` measures the constants; None is a crash."""

    def __init__(self, text: str, loss: Callable[[dict], float | None], seed: int = 0):
        self.text, self.loss, self.seed = text, loss, seed
        self.best = loss(values(text)) or 0.0
        kept = Verdict(kind="baseline", reason="", metric=self.best)
        self.history = [Experiment(number=0, state="published", parent="c0", commit="c0", verdict=kept)]
        self.incumbent = "c0"

    def step(self) -> None:
        reply, new = ask(self.text, self.history, self.seed)
        number = len(self.history)
        loss = self.loss(values(new))
        kind = "crash" if loss is None else "keep" if loss < self.best else "discard"
        call = Call(turn=0, kind="first", question="", reserved_usd=0.0, reply=reply)
        experiment = Experiment(
            number=number,
            state="published",
            parent=self.incumbent,
            commit=f"c{number}",
            proposal=parse_reply(reply.text),
            files={"train.py": new},
            verdict=Verdict(kind=kind, reason="", metric=loss),
            calls=(call,),
        )
        self.history.append(experiment)
        if kind == "keep" and loss is not None:
            self.text, self.best, self.incumbent = new, loss, f"c{number}"


def test_it_finds_what_may_be_tuned_and_leaves_the_rest_alone() -> None:
    found = {c.name: c for c in constants("train.py", TRAIN)}
    tunable = {name for name, c in found.items() if len(c.grid) > 1}
    assert tunable == {
        "LR", "BATCH_SIZE", "WIDTH", "DROPOUT", "BETAS[0]", "BETAS[1]", "CLIP", "TOKENS", "USE_BIAS", "ACTIVATION"
    }  # fmt: skip
    assert set(found["ACTIVATION"].grid) == {"gelu", "relu", "silu"}
    assert constants("train.py", "this is no Python") == [] and constants("notes.md", "LR = 1") == []


def test_a_number_keeps_its_kind() -> None:
    grids = {c.name: c.grid for c in constants("train.py", TRAIN)}
    assert grids["BATCH_SIZE"] == (8, 16, 32, 64, 128)
    assert all(isinstance(v, int) and v % 128 == 0 for v in grids["WIDTH"])
    assert all(isinstance(v, float) and 0 < v < 1 for v in grids["BETAS[1]"])
    assert all(v < 0 for v in grids["CLIP"]) and list(grids["CLIP"]) == sorted(grids["CLIP"])
    assert min(grids["LR"]) == pytest.approx(2.5e-4) and max(grids["LR"]) == pytest.approx(4e-3)
    assert set(grids["USE_BIAS"]) == {True, False}


def test_one_constant_changes_and_its_comment_stays() -> None:
    reply, new = ask(TRAIN, [])
    before, after = TRAIN.split("\n"), new.split("\n")
    different = [(old, now) for old, now in zip(before, after, strict=True) if old != now]
    assert len(different) == 1
    old, now = different[0]
    assert old == "LR = 1e-3  # peak rate" and now.startswith("LR = 0.00") and now.endswith("  # peak rate")
    assert "Hypothesis: LR from 1e-3 to 0.00" in reply.text
    assert (reply.proposer, reply.usd) == ("search", 0.0)


def test_a_line_that_stands_twice_is_still_met_once() -> None:
    twice = 'NOTE = """\nRATE = 0.5\n"""\nRATE = 0.5\nEPS = 0.1\n'
    _, new = ask(twice, [])
    assert new.startswith('NOTE = """\nRATE = 0.5\n"""\nRATE = 0.') and new != twice
    night = Night(twice, lambda v: 1.0)
    for _ in range(2):
        night.step()
    assert "EPS from" in night.history[2].label


def test_a_file_with_windows_line_ends_stays_one() -> None:
    _, new = ask("LR = 0.1\r\nprint(LR)\r\n", [])
    assert new.count("\r\n") == 2 and new != "LR = 0.1\r\nprint(LR)\r\n"


def test_the_same_history_gives_the_same_proposal_and_another_seed_another() -> None:
    night = Night(TRAIN, lambda v: abs(math.log(v["LR"] / 3e-3)) + v["DROPOUT"])
    for _ in range(14):
        night.step()
    again = [ask(night.text, night.history)[0].text for _ in range(2)]
    assert again[0] == again[1]
    assert len({ask(night.text, night.history, seed)[0].text for seed in range(8)}) > 1


def test_every_constant_is_tried_once_first_and_nothing_twice() -> None:
    night = Night(TRAIN, lambda v: 1.0)
    for _ in range(40):
        night.step()
    tried = [e.files["train.py"] for e in night.history[1:]]
    assert len(set(tried)) == 40
    first = [min(set(values(TRAIN).items()) - set(values(text).items()))[0] for text in tried[:10]]
    assert len(set(first)) == 10
    assert first[:3] == ["LR", "WIDTH", "BATCH_SIZE"]


def test_it_comes_down_to_a_better_loss() -> None:
    def loss(v: dict) -> float:
        return 1 + 0.1 * math.log(v["LR"] / 4e-3) ** 2 + 0.05 * math.log(v["WIDTH"] / 768) ** 2 + 0.3 * v["DROPOUT"]

    for seed in range(3):
        night = Night(TRAIN, loss, seed)
        start = night.best
        for _ in range(40):
            night.step()
        assert night.best - 1 < 0.25 * (start - 1)


def test_nothing_beyond_a_crash_is_tried() -> None:
    night = Night("BATCH_ROWS = 64\nEPS = 0.001\n", lambda v: None if v["BATCH_ROWS"] > 64 else 1.0)
    crashes = 0
    for _ in range(12):
        night.step()
        crashes += night.history[-1].verdict.kind == "crash"  # type: ignore[union-attr]
    assert crashes <= 2


def test_a_reply_that_came_back_is_not_given_again() -> None:
    first, _ = ask("RATE = 0.5\n", [])
    turns = (Turn(role="assistant", text=first.text), Turn(role="user", text="It crashed."))
    second, _ = ask("RATE = 0.5\n", [], turns=turns)
    assert first.text != second.text


def test_the_end_of_the_search_is_told() -> None:
    with pytest.raises(ProposerError, match="LEARNING_RATE = 1e-3") as caught:
        ask("print('no constants')\n", [])
    assert caught.value.exhausted
    night = Night("USE_BIAS = True\n", lambda v: 1.0)
    night.step()
    with pytest.raises(ProposerError, match="tried all") as caught:
        night.step()
    assert caught.value.exhausted


NUMBERS = st.one_of(
    st.integers(-(10**7), 10**7),
    st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda x: abs(x) < 1e12),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, st.sampled_from(["", "  # größer ist besser", "  # LR = 3"])), min_size=1, max_size=5),
    st.integers(0, 5),
)
def test_any_constants_give_a_proposal_that_changes_one_of_them(lines: list, seed: int) -> None:
    text = "".join(f"KNOB_{'ABCDE'[i]} = {value!r}{comment}\n" for i, (value, comment) in enumerate(lines))
    _, new = ask(text, [], seed)
    before, after = values(text), values(new)
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 1 and list(before) == list(after)
    assert type(before[changed[0]]) is type(after[changed[0]])
    assert [line.partition("#")[2] for line in text.split("\n")] == [line.partition("#")[2] for line in new.split("\n")]


def test_the_side_of_if_cuda_that_runs_here_is_the_one_that_is_tuned() -> None:
    text = "CUDA = False\nDEPTH = 2\nWIDTH = 64\nif CUDA:\n    DEPTH = 8\n    if fast():\n        WIDTH = 128\n"
    for cuda, expected in ((False, {"DEPTH": 2, "WIDTH": 64}), (True, {"DEPTH": 8})):
        found = {c.name: c.value for c in constants("train.py", text, cuda) if not isinstance(c.value, bool)}
        assert found == expected


def test_a_constant_under_if_cuda_is_changed_in_its_own_line_and_seen_as_tried() -> None:
    text = "DEPTH = 2\nif CUDA:\n    DEPTH = 8\n"
    request = Request(
        number=1,
        system="",
        turns=(Turn(role="user", text="Propose."),),
        program=PROGRAM,
        files={"train.py": text},
        history=(),
    )
    proposal = parse_reply(SearchProposer(device="cuda").propose(request).text)
    changed_text = apply_edits(proposal, {"train.py": text}, ["train.py"])["train.py"]
    assert changed_text.startswith("DEPTH = 2\nif CUDA:\n    DEPTH = ") and changed_text != text
    change = changed(proposal)
    assert change is not None and change[1] == 8
