"""program.md: what is right is read, what is wrong is refused in one line that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from agent.commands import arguments, filled
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
        ("metric: {name: loss, pattern: 'acc=[0-9]+'}\n", "needs one group"),
        ("metric: {name: loss, pattern: '(a)=([0-9]+)'}\n", "needs one group"),
        ("metric: {name: loss, target: .nan}\n", "metric.target"),
        ("metric: loss\nlimits: {peak_memory_gb: .inf}\n", "limits.peak_memory_gb"),
        ("metric: loss\nrun: python train.py --seed {sed}\n", "{sed} is none of what can stand there: {seed}"),
        ("metric: {name: loss, pattern: '('}\n", "not a regular expression"),
        ("metric: loss\nprotect: [train.py]\n", "is in edit and in protect"),
        ("metric: loss\nedit: [../train.py]\n", "outside the repository"),
        ("metric: loss\nedit: [/etc/passwd]\n", "outside the repository"),
        ("metric: loss\nedit: []\n", "edit is empty"),
        ("metric: loss\nbudget: soon\n", "write 20s, 5m, or 2M tokens"),
        ("metric: loss\ntimeouts: {startup: never}\n", "no duration"),
        ("metric: {direction: minimize}\n", "metric.name is missing"),
        ("metric: {name: ' '}\n", "metric.name"),
        ("metric: accuracy\n", "Say direction: maximize, or direction: minimize"),
        ("metric: {name: val_F1}\n", "is more val_F1 better?"),
        ("metric: mean_episode_reward\n", "is more mean_episode_reward better?"),
        ("metric: acc@1\n", "is more acc@1 better?"),
        ("metric: loss\nedit: [train.py, program.md]\n", "program.md is in edit, but it is yours"),
        ("metric: loss\nrun: python train.py | tee log\n", "without a shell, which '|' would need: write sh -c"),
        ("metric: loss\nrun: cd src && python train.py\n", "which '&&' would need"),
        ("metric: loss\nrun: python train.py > log\n", "which '>' would need"),
        ("metric: loss\nrun: python train.py --seed $SEED\n", "which '$SEED' would need"),
        ("metric: loss\nrun: OMP_NUM_THREADS=1 python train.py\n", "which 'OMP_NUM_THREADS=1' would need"),
        ("metric: loss\nevaluate: python eval.py; true\n", "evaluate: 'python eval.py; true' is run without a shell"),
        ("metric: loss\nrun: uv run --with torch train.py\n", "`uv run --with` can't be done in a sandbox"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(front: str, says: str):
    with pytest.raises(ProgramError) as caught:
        program(front)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_that_names_another_metric_takes_over_nothing_of_the_one_in_the_file():
    text = f"---\nmetric: {{name: loss, direction: minimize, target: 0.1}}\nbudget: 20s\n---\n{PROSE}"
    assert parse_program(text, {"metric.name": "loss"}).metric.target == 0.1
    assert parse_program(text, {"metric.name": "val_loss"}).metric.target is None
    with pytest.raises(ProgramError, match="is more accuracy better"):
        parse_program(text, {"metric.name": "accuracy"})


def test_an_editor_of_windows_may_have_written_it(tmp_path: Path):
    path = tmp_path / "program.md"
    path.write_text(f"---\n{GOOD}---\n{PROSE}", encoding="utf-8-sig")
    assert load_program(path).metric.name == "loss"


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


@pytest.mark.parametrize(
    "run",
    ["sh -c 'python train.py | tee log'", "python -c \"print(1 > 0)\"", "python train.py --lr 1e-3 --seed {seed}"],
)
def test_what_a_shell_would_not_change_is_a_command(run: str):
    assert program(f"{GOOD}run: {run!r}\n").run == run


@pytest.mark.parametrize("name", ["val_loss", "mapped_loss", "top5_error", "val_bpb", "perplexity", "mse"])
def test_other_metrics_are_minimized_where_nothing_is_said(name: str):
    assert program(f"metric: {name}\n").metric.direction == "minimize"
    assert program("metric: {name: accuracy, direction: minimize}\n").metric.direction == "minimize"


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("uv run train.py --depth 8", ["python", "train.py", "--depth", "8"]),
        ("uv run --frozen --group gpu python -u train.py", ["python", "-u", "train.py"]),
        ("uv run -m lab.train", ["python", "-m", "lab.train"]),
        ("poetry run torchrun train.py", ["torchrun", "train.py"]),
        ("python train.py", ["python", "train.py"]),
    ],
)
def test_what_an_environments_manager_would_run_is_run_by_its_python(command: str, runs: list[str]):
    assert arguments(command) == runs


def test_values_stand_in_for_their_names_and_other_braces_stay():
    words = arguments("python train.py --seed={seed} --time {seconds} --out {output}/model --json '{\"a\": {seeds}}'")
    values = {"seed": "7", "seconds": "300", "output": "/out"}
    assert filled(words, values)[2:] == ["--seed=7", "--time", "300", "--out", "/out/model", "--json", '{"a": {seeds}}']
