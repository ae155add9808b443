"""Trials on this machine: what happened is told truly, whatever the training command does."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from agent import events as ev
from agent import live
from agent.errors import Failure
from agent.program import Budget, Program
from agent.protocols import Job
from agent.records import Measurement
from agent.run.bubblewrap import Bubblewrap
from agent.run.local import LocalExecutor
from agent.run.sandbox import Unsandboxed, choose_sandbox
from bench.one_trial import run_one

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

    def job(self, train: str, program: Program | None = None, *, slot: int = 0, **files: str) -> Job:
        """A trial of a new experiment with this train.py."""
        self.experiments += 1
        commit = f"c{self.experiments}"
        for name, text in {"train.py": train, "prepare.py": EVALUATE, **files}.items():
            (self.commits / commit).mkdir(parents=True, exist_ok=True)
            (self.commits / commit / name).write_text(text)
        return Job(what="train", experiment=self.experiments, number=0, attempt=1, commit=commit, seed=42, slot=slot,
                   program=program or contract())  # fmt: skip

    def says(self, label: str, text: str) -> bool:
        log = self.home / "logs" / f"{label}.log"
        return log.exists() and text in log.read_text()

    def run(self, train: str, program: Program | None = None) -> Measurement:
        return run_one(self.executor, self.job(train, program), 60)

    def start(self, job: Job) -> queue.SimpleQueue[ev.Event]:
        ended: queue.SimpleQueue[ev.Event] = queue.SimpleQueue()
        self.executor.submit(job, ended.put)
        return ended

    def end_of(self, job: Job) -> ev.Event:
        return self.start(job).get(timeout=60)


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
    lab.executor.close(now=True)


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


def test_the_evaluation_is_told_what_there_is_to_beat(lab):
    told = EVALUATE + "print('beat:', float(os.environ['RESEARCH_INCUMBENT']))\n"
    job = lab.job(GOOD, **{"prepare.py": told}).model_copy(update={"incumbent": 0.8125})
    assert run_one(lab.executor, job, 60).numbers["beat"] == 0.8125


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
        (GOOD + "(output / 'model').write_text('x')", "crash", "there is no val_bpb in the output"),
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
    assert (got.outcome, got.reason) == ("timeout", "killed at 2 s without a progress line")
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
    job = lab.job(GOOD)
    test = job.model_copy(update={"what": "test"})
    assert isinstance(lab.end_of(job), ev.Measured)
    tested = lab.end_of(test)
    assert isinstance(tested, ev.Tested) and tested.figures == {"test_bpb": 0.75, "tokens": 100}
    lab.executor.forget(job.experiment, job.number)
    assert not list(lab.home.glob("outputs/*"))
    tested = lab.end_of(test)
    assert isinstance(tested, ev.Tested) and "no output to test" in tested.reason and not tested.figures


@pytest.mark.parametrize(
    "leave",
    [
        "(output / 'a' / 'b').mkdir(parents=True); (output / 'a' / 'b').chmod(0); (output / 'a').chmod(0)",
        "os.chdir(output)\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')",
        "(output / ('x' * 255)).write_text('')",
        "os.mkfifo(output / 'pipe')",
        "output.chmod(0)",
        "os.symlink('/etc', output / 'link')",
    ],
)
def test_whatever_a_trial_leaves_is_deleted(lab, leave):
    assert lab.run(GOOD + leave).outcome in ("ok", "crash")
    lab.executor.forget(1, 0)
    assert not list(lab.home.glob("outputs/*"))
    assert lab.run(GOOD).outcome == "ok"


def test_a_cancelled_trial_says_so_before_and_after_its_start(lab):
    running = lab.start(lab.job(HEAD + "time.sleep(600)"))
    wait_for(lambda: lab.says("1-0", "step 0"))
    lab.executor.cancel(1, 0, "no more")
    assert isinstance(running.get(timeout=30), ev.TrialCancelled)
    before = lab.start(lab.job(HEAD + "time.sleep(600)"))
    lab.executor.cancel(2, 0, "no more")
    assert isinstance(before.get(timeout=30), ev.TrialCancelled)
    assert lab.run(GOOD).outcome == "ok", "and it can go on"


def test_two_slots_run_at_once_in_folders_of_their_own(tmp_path):
    lab = Lab(tmp_path, slots=2)
    meet = "Path(sys.argv[0]).with_name('here').touch()\n" + "while not Path('{}').exists(): time.sleep(0.01)\n"
    train = [GOOD + meet.format(lab.home / f"slots/{other}/tree/here") for other in (1, 0)]
    both = [lab.start(lab.job(text, slot=slot)) for slot, text in enumerate(train)]
    got = [ended.get(timeout=60) for ended in both]
    assert all(isinstance(event, ev.Measured) and event.measurement.outcome == "ok" for event in got)


def test_how_far_a_trial_is_can_be_read_while_it_runs(lab):
    lab.start(lab.job(HEAD + "step(1, 2.5, 50)\nwhile True: time.sleep(0.1); step(2, 2.5, 50)"))
    (now,) = wait_for(lambda: [job for job in live.read(lab.home) if job.phase == "training" and job.share])
    assert (now.experiment, now.slot, now.share, now.curve[-1][1]) == (1, 0, 0.5, 2.5)
    lab.executor.cancel(1, 0, "seen")
    wait_for(lambda: not live.read(lab.home))


def test_a_worker_that_breaks_is_an_event_and_takes_its_trial_with_it(lab):
    ended = lab.start(lab.job(HEAD + "time.sleep(600)"))
    wait_for(lambda: lab.says("1-0", "step 0"))
    (worker,) = [p for p in workers(lab) if p.children()]  # another one waits
    inside = worker.children(recursive=True)
    worker.send_signal(signal.SIGKILL)
    event = ended.get(timeout=30)
    assert isinstance(event, ev.TrialFailed) and event.reason == "its worker ended with exit code -9"
    assert psutil.wait_procs(inside, timeout=15)[1] == []


def test_a_slot_whose_trial_was_given_up_is_free_for_the_next_one(lab):
    """Its worker hears nothing any more, not even that it should end: stopped, as by a debugger."""
    given_up = lab.job(HEAD + "time.sleep(600)")
    ended = lab.start(given_up)
    wait_for(lambda: lab.says("1-0", "step 0"))
    (worker,) = [p for p in workers(lab) if p.children()]
    inside = worker.children(recursive=True)
    worker.suspend()
    lab.executor.cancel(1, 0, "nothing was heard of it")
    (lab.commits / "c1" / "train.py").write_text(GOOD)
    again = lab.end_of(given_up.model_copy(update={"attempt": 2}))
    assert isinstance(again, ev.Measured) and again.attempt == 2 and again.measurement.metric == 0.75
    assert isinstance(told := ended.get(timeout=1), ev.TrialFailed) and told.attempt == 1, "once, and as what it was"
    assert psutil.wait_procs([worker, *inside], timeout=15)[1] == []
    assert lab.run(GOOD).outcome == "ok"


def test_a_worker_that_can_not_even_start_says_why(lab, monkeypatch):
    job = lab.job(GOOD)
    shutil.rmtree(lab.commits)
    event = lab.end_of(job)
    assert isinstance(event, ev.TrialFailed) and "FileNotFoundError" in event.reason


FAILS = "raise RuntimeError('CUDA error: uncorrectable ECC error encountered')"


def test_a_crash_on_a_machine_that_can_run_nothing_is_a_fault_and_no_verdict(tmp_path):
    """bwrap works until the trial, and then it doesn't: what a sandbox does that stops to start."""
    bwrap = tmp_path / "bwrap"
    bwrap.symlink_to(Bubblewrap().bwrap)
    lab = Lab(tmp_path, sandbox=Bubblewrap(bwrap=bwrap))
    assert lab.run(GOOD).outcome == "ok"
    bwrap.unlink()
    bwrap.symlink_to("/bin/false")
    event = lab.end_of(lab.job(GOOD))
    assert isinstance(event, ev.MachineFault) and event.slot_lost
    assert event.reason.startswith("a program does not run in the sandbox")


def test_what_looks_like_a_failing_gpu_is_a_fault_that_leaves_the_slot(lab):
    event = lab.end_of(lab.job(HEAD + FAILS))
    assert isinstance(event, ev.MachineFault) and not event.slot_lost
    assert "ECC error" in event.reason


def test_a_full_disk_is_a_fault(tmp_path):
    """A file system of 8 MiB, which is less than a trial is begun with."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("this needs the right to mount a small file system")
    lab = Lab(small)
    try:
        event = lab.end_of(lab.job(GOOD))
        assert isinstance(event, ev.MachineFault) and event.slot_lost and "is nearly full" in event.reason
    finally:
        lab.executor.close()  # and the worker that waits there ends
        wait_for(lambda: subprocess.run(["umount", small], stderr=subprocess.DEVNULL).returncode == 0)


def test_a_worker_that_ends_while_it_waits_costs_nothing(lab):
    assert lab.run(GOOD).outcome == "ok"
    (waits,) = wait_for(lambda: workers(lab))
    waits.kill()
    waits.wait()
    assert lab.run(GOOD).outcome == "ok"
    lab.executor.close()
    wait_for(lambda: not workers(lab))


def workers(lab: Lab) -> list[psutil.Process]:
    """The processes that are at work for this night, or wait for something to do."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(lab.home) in str(p.info["cmdline"]) and
            "agent.run.worker" in p.info["cmdline"]]  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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


def test_the_hash_of_the_data_reaches_the_trial_and_its_paths(lab, monkeypatch):
    """What `prepare` told: cli/wiring.py puts it into the environment."""
    monkeypatch.setenv("RESEARCH_DATA", "0123")
    program = contract(data=["data/${RESEARCH_DATA}"])
    write(lab.root / "data" / "0123" / "tokens", "some")
    train = GOOD + "assert open('data/' + os.environ['RESEARCH_DATA'] + '/tokens').read() == 'some'"
    assert lab.run(train, program).outcome == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
@pytest.mark.parametrize("wall", ["bubblewrap", "landlock"])
def test_in_the_sandbox(tmp_path, wall):
    """The same trial in either wall: measured, its held-out data out of sight, no daemon left."""
    lab = Lab(tmp_path, sandbox=choose_sandbox(wall))
    holdout, slept = lab.root / "heldout", str(100_000 + os.getpid())  # a number of seconds that no one else sleeps
    holdout.mkdir(parents=True)
    (holdout / "answer").write_text("0.5")
    evaluate = EVALUATE.replace('(Path(os.environ["RESEARCH_OUTPUT"]) / "model")', f"Path({str(holdout / 'answer')!r})")
    train = (
        GOOD
        + f"""
import subprocess
def denied(path):
    try: open(path)
    except OSError: return True
assert not os.access({str(holdout / 'answer')!r}, os.F_OK) or denied({str(holdout / 'answer')!r})
child = subprocess.Popen(["sleep", {slept!r}], env={{"PATH": os.environ["PATH"]}}, start_new_session=True)
try: open("prepare.py", "a")
except OSError: print("read_only: 1")
"""
    )
    program = contract(holdout=["heldout"])
    got = run_one(lab.executor, lab.job(train, program, **{"prepare.py": evaluate}), 60)
    assert (got.outcome, got.metric, got.numbers.get("read_only")) == ("ok", 0.5, 1), got
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", slept]]
    hang = lab.start(lab.job(HEAD + "time.sleep(600)", program))
    wait_for(lambda: lab.says("2-0", "step 0"))
    lab.executor.close()
    assert isinstance(hang.get(timeout=30), ev.TrialCancelled)
