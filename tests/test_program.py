"""program.md: what is right is read, what is wrong is refused in one line that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ProgramError
from agent.program import Budget, Program, load_program, parse_program

PROSE = "\n# Direction\nLower the loss by changing the schedule, and leave the data alone.\n"
GOOD = "metric: {name: loss}\nedit: [train.py]\nbudget: 20s\n"


def program(front: str, prose: str = PROSE) -> Program:
    return parse_program(f"---\n{front}---\n{prose}")


def test_this_repositorys_own_program_is_read():
    own = load_program(ROOT / "program.md")
    assert own.metric.name == "val_bpb"
    assert own.budget_on("cpu").tokens and own.budget_on("cuda").tokens is None
    assert "bits per byte" in own.direction


@pytest.mark.parametrize(
    ("front", "says"),
    [
        ("budget: 5m\n", "names no metric"),
        ("metrik: {name: loss}\n", "did you mean 'metric'"),
        ("metric: {name: loss\n", "is not YAML"),
        ("- a\n- b\n", "names no metric"),
        (GOOD + "budgit: 5m\n", "unknown key 'budgit'; did you mean 'budget'"),
        ("metric: {name: loss, dirction: minimize}\n", "did you mean 'direction'"),
        ("metric: {name: loss, direction: down}\n", "'minimize' or 'maximize'"),
        ("metric: {name: loss, pattern: 'acc=[0-9]+'}\n", "needs a group"),
        ("metric: {name: loss, pattern: '('}\n", "not a regular expression"),
        ("metric: loss\nprotect: [train.py]\n", "is in edit and in protect"),
        ("metric: loss\nedit: [../train.py]\n", "outside the repository"),
        ("metric: loss\nedit: [/etc/passwd]\n", "outside the repository"),
        ("metric: loss\nedit: []\n", "edit is empty"),
        ("metric: loss\nbudget: soon\n", "write 20s, 5m, or 2M tokens"),
        ("metric: loss\ntimeouts: {startup: never}\n", "no duration"),
        ("metric: {direction: minimize}\n", "metric.name is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(front: str, says: str):
    with pytest.raises(ProgramError) as caught:
        program(front)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prose", ["", "# Direction\n", "improve the model", "# Goal\nmake it better\n"])
def test_a_vague_goal_is_refused_with_what_to_write(prose: str):
    with pytest.raises(ProgramError, match="too vague.*write what to try"):
        program(GOOD, prose)


def test_a_missing_file_points_to_init(tmp_path: Path):
    with pytest.raises(ProgramError, match="python -m agent init"):
        load_program(tmp_path / "program.md")


def test_flags_lie_over_the_front_matter_and_can_replace_it():
    flags = {"metric.name": "accuracy", "metric.direction": "maximize", "run": "python fit.py", "edit": ["fit.py"]}
    bare = parse_program(PROSE, flags)
    assert (bare.metric.name, bare.metric.direction, bare.edit) == ("accuracy", "maximize", ("fit.py",))
    over = parse_program(f"---\n{GOOD}---\n{PROSE}", {"budget": "2M tokens within 90s", "metric.target": 0.5})
    assert over.metric.name == "loss" and over.metric.target == 0.5
    assert over.budget_on("cpu") == Budget(seconds=90, tokens=2_000_000)


def test_a_contract_with_one_device_says_so_on_the_other():
    with pytest.raises(ProgramError, match="no budget for cuda"):
        program("metric: loss\nbudget: {cpu: 20s}\n").budget_on("cuda")


@pytest.mark.parametrize(
    ("change", "field"),
    [("metric: {name: other}\nbudget: 20s\n", "metric"), ("metric: {name: loss}\nbudget: 30s\n", "budget")],
)
def test_a_night_has_one_race(change: str, field: str):
    assert program(change).incomparable(program(GOOD)) == field
    assert program(GOOD + "reruns: 2\n", PROSE + "More words.").incomparable(program(GOOD)) is None
    assert program("metric: {name: loss, target: 0.1}\nbudget: 20s\n").incomparable(program(GOOD)) is None


@given(st.floats(0.01, 1e5), st.sampled_from("smh"))
def test_durations_survive_writing(amount: float, unit: str):
    budget = Budget.parse(f"{amount:.4f}{unit}")
    assert budget.seconds == pytest.approx(float(f"{amount:.4f}") * {"s": 1, "m": 60, "h": 3600}[unit])


@given(st.text(max_size=300))
def test_any_text_is_a_program_or_a_one_line_refusal(text: str):
    try:
        parse_program(text)
    except ProgramError as error:
        assert "\n" not in str(error)


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=5)), max_size=4))
def test_any_front_matter_is_a_program_or_a_one_line_refusal(front: dict):
    import yaml

    try:
        parse_program(f"---\n{yaml.safe_dump(front)}---\n{PROSE}")
    except ProgramError as error:
        assert "\n" not in str(error)
