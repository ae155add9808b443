"""Trials on this machine: what happened is told truly, whatever the training command does."""

import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from agent.errors import Failure
from agent.program import Budget, Program
from agent.records import Measurement, Trial
from agent.run.local import LocalExecutor
from agent.run.sandbox import Unsandboxed, choose_sandbox

HEAD = """
import os, sys, time, signal
from pathlib import Path
output = Path(os.environ["RESEARCH_OUTPUT"])
def step(n, loss, share): print(f"step {n} | loss {loss} | {share}%", flush=True)
step(0, 4.0, 0)
"""
GOOD = HEAD + "step(1, 2.0, 50)\n(output / 'model').write_text('0.75')\nprint('peak_vram_mb: 2048')\n"
EVALUATE = """
import os, sys
from pathlib import Path
split = sys.argv[1]
model = (Path(os.environ["RESEARCH_OUTPUT"]) / "model").read_text()
if model == "cheat":
    print("looking")
    print("violation: it saw the future")
    sys.exit(3)
print("working", file=sys.stderr)
print(f"{split}_bpb: {model}")
print("tokens: 100")
"""


class Lab:
    """A repository of plain folders, one per commit, and an executor on it."""

    def __init__(self, folder: Path, **options):
        self.root, self.home = folder / "repo", folder / "repo" / ".research" / "test"
        self.commits = folder / "commits"
        sandbox = options.pop("sandbox", Unsandboxed())
        self.executor = LocalExecutor(self.home, self.export, sandbox, "cpu", root=self.root, **options)
        self.experiments = 0

    def export(self, commit: str, folder: Path) -> None:
        shutil.copytree(self.commits / commit, folder, dirs_exist_ok=True)

    def trial(self, train: str, **files: str) -> Trial:
        self.experiments += 1
        commit = f"c{self.experiments}"
        for name, text in {"train.py": train, "prepare.py": EVALUATE, **files}.items():
            (self.commits / commit).mkdir(parents=True, exist_ok=True)
            (self.commits / commit / name).write_text(text)
        return Trial(experiment=self.experiments, number=0, commit=commit, seed=42)

    def says(self, label: str, text: str) -> bool:
        log = self.home / "logs" / f"{label}.log"
        return log.exists() and text in log.read_text()

    def run(self, train: str, program: Program | None = None) -> Measurement:
        return self.executor.submit(self.trial(train), program or contract()).result(timeout=60)


def contract(**changes) -> Program:
    fields = {
        "metric": {"name": "val_bpb"},
        "protect": ["prepare.py"],
        "evaluate": "python prepare.py val",
        "test": "python prepare.py test",
        "budget": "20s",
    }
    return Program.model_validate({**fields, **changes})


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.executor.stop(now=True)


def wait_for(condition, seconds=20.0):
    """Until a real event has happened; the wait ends with it."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen"
        threading.Event().wait(0.01)
    return value


def test_a_trial_is_measured_by_the_evaluation(lab):
    print_own = "print('val_bpb: 0.0001')\nprint('num_steps: 2')\n"
    got = lab.run(GOOD + print_own)
    assert (got.outcome, got.reason, got.metric) == ("ok", "", 0.75)
    assert got.numbers == {"peak_vram_mb": 2048, "num_steps": 2, "tokens": 100}
    assert got.curve == ((0.0, 4.0), (0.5, 2.0))
    assert got.startup_seconds > 0 and got.training_seconds >= 0 and got.evaluation_seconds > 0
    assert got.peak_memory_gb is not None and got.peak_memory_gb >= 2
    assert "working" in got.log_tail and "step 1" in got.log_tail
    assert "step 1" in (lab.home / "logs" / "1-0.log").read_text()
    assert Measurement.model_validate_json(got.model_dump_json()) == got


def test_without_an_evaluation_the_log_is_read_by_pattern(lab):
    metric = {"name": "accuracy", "direction": "maximize", "pattern": r"accuracy=([\d.]+)"}
    program = contract(metric=metric, evaluate=None, protect=[])
    got = lab.run("print('epoch 1: accuracy=0.25')\nprint('epoch 2: accuracy=0.5')", program)
    assert (got.outcome, got.metric) == ("ok", 0.5)


@pytest.mark.parametrize(
    ("train", "outcome", "reason"),
    [
        (HEAD + "raise ValueError('no such layer')", "crash", "ValueError: no such layer"),
        ("import nothing_of_the_kind", "crash", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        (HEAD + "sys.exit(9)", "crash", "exit code 9: step 0 | loss 4.0 | 0%"),
        (HEAD + "os.kill(os.getpid(), signal.SIGSEGV)", "crash", "killed by SIGSEGV"),
        (HEAD + "x = bytearray(1 << 60)", "crash", "out of memory: MemoryError"),
        (HEAD + "step(3, float('nan'), 10); time.sleep(600)", "crash", "the training loss is nan at step 3"),
        (GOOD + "(output / 'model').write_text('nan')", "crash", "val_bpb is nan"),
        (GOOD + "(output / 'model').write_text('x')", "crash", "no val_bpb in the output"),
        (HEAD, "crash", "evaluation: FileNotFoundError"),
        (GOOD + "(output / 'model').write_text('cheat')", "violation", "it saw the future"),
        (GOOD + "open('prepare.py', 'a').write('#')", "violation", "prepare.py is protected"),
        (GOOD + "os.remove('prepare.py')", "violation", "prepare.py is protected"),
    ],
)
def test_what_went_wrong_is_said_in_one_line(lab, train, outcome, reason):
    got = lab.run(train)
    assert (got.outcome, got.metric) == (outcome, None)
    assert got.reason.startswith(reason) and "\n" not in got.reason
    assert not list(lab.home.glob("outputs/*")), "a failed trial keeps no output"
    assert lab.run(GOOD).metric == 0.75, "the next trial is unharmed"


def test_a_hang_in_startup_is_ended(lab):
    program = contract(timeouts={"startup": "2s"})
    assert lab.run(GOOD, program).outcome == "ok"  # now it is known to print progress
    got = lab.run("import time; time.sleep(600)", program)
    assert (got.outcome, got.reason) == ("timeout", "no progress line within 2 s of the start")
    assert lab.run("pass", program).reason.startswith("it prints no progress lines")


def test_a_hang_in_training_is_ended_and_its_output_goes_on_being_bounded(tmp_path):
    lab = Lab(tmp_path, slack=1)
    got = lab.run(HEAD + "while True: print('x' * 100)", contract(budget="0.1s"))
    assert got.outcome == "timeout" and "budget of 0.1s" in got.reason
    assert got.training_seconds > 1 and len(got.log_tail) <= 4000


def test_training_past_its_budget_is_refused(tmp_path):
    lab = Lab(tmp_path, slack=6)
    train = "import time\nstart = time.monotonic()\n" + GOOD
    train += "while time.monotonic() < start + 7.5: signal.sigtimedwait([], 0.1)\n"
    got = lab.run(train, contract(budget="0.1s"))
    assert got.outcome == "violation" and "its budget is 0.1s" in got.reason


def test_an_evaluation_that_hangs_is_ended(lab):
    program = contract(evaluate="sleep 600", timeouts={"evaluation": "0.5s"})
    got = lab.run(GOOD, program)
    assert (got.outcome, got.reason) == ("timeout", "the evaluation took longer than 0.5 s")


def test_the_environment_is_an_allow_list(tmp_path, lab, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "planted-secret")
    monkeypatch.setenv("MY_FLAG", "seen")
    train = GOOD + "(output / 'env').write_text(chr(10).join(f'{k}={v}' for k, v in os.environ.items()))"
    program = contract(environment=["MY_FLAG"], budget="2M tokens within 30s")
    assert lab.run(train, program).outcome == "ok"
    env = dict(line.partition("=")[::2] for line in (lab.home / "outputs/1-0/env").read_text().splitlines())
    assert "planted-secret" not in str(env) and env["MY_FLAG"] == "seen"
    assert env["RESEARCH_SEED"] == "42" and float(env["RESEARCH_BUDGET_SECONDS"]) == 30
    assert env["RESEARCH_BUDGET_TOKENS"] == "2000000" and Budget.parse("2M tokens").tokens == 2_000_000
    assert env["PATH"].startswith(str(Path(sys.executable).parent))
    allowed = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "MY_FLAG", "PWD", "SHLVL"}
    prefixes = ("LC_", "RESEARCH_", "PYTHON", "CUDA", "TORCH", "TRITON", "OMP_", "GOMP_", "MKL_", "OPENBLAS_", "XDG_")
    assert [k for k in env if k not in allowed and not k.startswith((*prefixes, "VIRTUAL_", "CONDA_", "LD_"))] == []


def test_the_test_split_is_scored_on_the_kept_output_until_it_is_forgotten(lab):
    program, trial = contract(), lab.trial(GOOD)
    assert lab.executor.submit(trial, program).result(60).outcome == "ok"
    assert lab.executor.test(trial, program).result(60) == {"test_bpb": 0.75, "tokens": 100}
    lab.executor.forget(trial.experiment)
    assert not list(lab.home.glob("outputs/*"))
    with pytest.raises(Failure, match="no output to test"):
        lab.executor.test(trial, program).result(60)


def test_outputs_that_were_made_undeletable_are_deleted(lab):
    train = GOOD + "(output / 'a' / 'b').mkdir(parents=True); (output / 'a' / 'b').chmod(0); (output / 'a').chmod(0)"
    assert lab.run(train).outcome == "ok"
    lab.executor.forget(1)
    assert not list(lab.home.glob("outputs/*"))


def test_stop_interrupts_what_runs_and_what_waits(lab):
    running = lab.executor.submit(lab.trial(HEAD + "time.sleep(600)"), contract())
    waiting = lab.executor.submit(lab.trial(GOOD), contract())
    wait_for(lambda: lab.says("1-0", "step 0"))
    lab.executor.stop()
    assert [f.result(30).outcome for f in (running, waiting)] == ["interrupted", "interrupted"]
    assert not (lab.home / "logs/2-0.log").read_bytes(), "what was waiting never started"
    assert lab.run(GOOD).outcome == "ok", "and it can go on"


def test_two_slots_run_at_once_in_folders_of_their_own(tmp_path):
    lab = Lab(tmp_path, slots=2)
    meet = "Path(sys.argv[0]).with_name('here').touch()\n" + "while not Path('{}').exists(): time.sleep(0.01)\n"
    both = [lab.trial(GOOD + meet.format(lab.home / f"slots/{other}/tree/here")) for other in (1, 0)]
    got = [future.result(60) for future in [lab.executor.submit(trial, contract()) for trial in both]]
    assert [m.outcome for m in got] == ["ok", "ok"]


def test_relative_data_is_found_and_missing_data_is_told_at_the_start(lab):
    program = contract(data=["data/train"], holdout=["data/heldout"])
    with pytest.raises(Failure, match="data/train does not exist"):
        lab.executor.check(program)
    for name in program.data + program.holdout:
        (lab.root / name).mkdir(parents=True)
        (lab.root / name / "tokens").write_text(name)
    lab.executor.check(program)
    train = GOOD + "assert open('data/train/tokens').read() == 'data/train'"
    assert lab.run(train, program).outcome == "ok"
    with pytest.raises(Failure, match="is no command line"):
        lab.executor.check(contract(run="python 'train.py"))


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
def test_in_the_sandbox(tmp_path):
    """The same trial in the default sandbox: measured, its held-out data out of sight, no daemon left."""
    lab = Lab(tmp_path, sandbox=choose_sandbox("auto"))
    holdout = lab.root / "heldout"
    holdout.mkdir(parents=True)
    (holdout / "answer").write_text("0.5")
    evaluate = EVALUATE.replace('(Path(os.environ["RESEARCH_OUTPUT"]) / "model")', f"Path({str(holdout / 'answer')!r})")
    train = (
        GOOD
        + f"""
import subprocess
assert not Path({str(holdout)!r}).exists()
child = subprocess.Popen(["sleep", "4242"], env={{"PATH": os.environ["PATH"]}}, start_new_session=True)
try: open("prepare.py", "a")
except OSError: print("read_only: 1")
"""
    )
    program = contract(holdout=["heldout"])
    got = lab.executor.submit(lab.trial(train, **{"prepare.py": evaluate}), program).result(60)
    assert (got.outcome, got.metric, got.numbers.get("read_only")) == ("ok", 0.5, 1), got
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "4242"]]
    hang = lab.executor.submit(lab.trial(HEAD + "time.sleep(600)"), program)
    wait_for(lambda: lab.says("2-0", "step 0"))
    lab.executor.stop()
    assert hang.result(30).outcome == "interrupted"
