"""One command to its end: its output, its limits, and nothing left of it. Real processes throughout."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.program import Metric
from agent.run.log import TAIL, Lines, Log, clean
from agent.run.process import Cancel, Limit, reap, run_process
from agent.run.progress import Progress, explain_exit, find_metric


@pytest.fixture
def run(tmp_path):
    """Runs Python code to its end; gives how it ended, its lines and its log."""

    def run(code, seconds=30.0, log_size=(1 << 20, 1 << 20), **options):
        lines: list[str] = []
        log = Log(tmp_path / "log", *log_size)
        options = {"limit": Limit(seconds, "too long"), "cancel": Cancel(), "grace": 0.5, **options}
        hear = options.pop("on_line", lambda line: None)
        with log:
            ended = run_process(
                [sys.executable, "-u", "-c", code],
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"]},
                log=log,
                on_line=lambda line: (lines.append(line), hear(line)),
                **options,
            )
        return ended, lines, log

    return run


def wait_for(condition, seconds=20.0):
    """Until a real event has happened; the wait ends with it."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen"
        threading.Event().wait(0.01)
    return value


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid):
    """Whether it has ended; one that was killed is given a moment, since a busy kernel takes one."""
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        threading.Event().wait(0.01)
    return not alive(pid)


def test_output_and_exit_code(run):
    ended, lines, log = run("import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)")
    assert (ended.code, ended.stopped, lines) == (7, "", ["one", "two"])
    assert log.tail == "one\ntwo"


def test_stdout_apart_from_stderr(run, tmp_path):
    ended, lines, log = run("import sys; print('metric'); print('fake', file=sys.stderr)", apart=True)
    assert (ended.code, lines) == (0, ["metric"])
    assert set(log.tail.splitlines()) == {"metric", "fake"}
    assert b"fake" in (tmp_path / "log").read_bytes()


def test_a_command_that_does_not_exist(run, tmp_path):
    log = Log(tmp_path / "log")
    ended = run_process(["no-such-command"], cwd=tmp_path, env={}, log=log, limit=Limit(30, ""), cancel=Cancel())
    assert ended.code == 1
    assert "can't run 'no-such-command': No such file" in log.tail


def test_carriage_returns_are_lines_and_the_tail_keeps_the_last(run):
    _, lines, log = run("print('start'); print('\\r1%\\r2%\\r3%', end='\\r'); print('4%\\r\\nend')")
    assert lines == ["start", "1%", "2%", "3%", "4%", "end"]
    assert log.tail == "start\n4%\nend"


def test_killed_at_the_limit_by_sigterm(run):
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit('bye')); print('up'); signal.pause()"
    limit = Limit(30, "startup")
    ended, lines, _ = run(code, limit=limit, on_line=lambda line: limit.within(0.1, "training"), grace=20)
    assert (ended.code, ended.stopped, lines) == (1, "training", ["up", "bye"])


def test_killed_though_it_ignores_sigterm(run):
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('up'); signal.pause(); signal.pause()"
    ended, lines, _ = run(code, seconds=0.5)
    assert (ended.code, ended.stopped) == (-signal.SIGKILL, "too long")


def test_busy_output_does_not_keep_it_alive(run):
    ended, _, _ = run("while True: print('x' * 1000)", seconds=0.5)
    assert ended.stopped == "too long"


def test_endless_output_is_bounded_on_disk_and_in_memory(run, tmp_path):
    code = "import sys\nfor i in range(40): sys.stdout.write('x' * 1_000_000)\nprint('\\nlast words')"
    ended, lines, log = run(code, log_size=(1000, 1000))
    size = (tmp_path / "log").stat().st_size
    assert ended.code == 0 and 2000 <= size < 3100
    assert (tmp_path / "log").read_bytes().endswith(b"last words\n")
    assert lines[-1] == "last words" and all(len(line) <= 4096 for line in lines)
    assert len(log.tail) <= TAIL


DAEMON = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import os, time; os.fork() and os._exit(0); os.setsid(); "
     "open('daemon.part', 'w').write(str(os.getpid())); os.rename('daemon.part', 'daemon'); time.sleep(600)"],
    start_new_session=True,
)
while not os.path.exists("daemon"): time.sleep(0.01)
"""


@pytest.mark.parametrize("ending", ["", "time.sleep(600)"])
def test_a_daemon_does_not_outlive_the_command(run, tmp_path, ending):
    ended, _, _ = run(DAEMON + ending, seconds=30 if not ending else 1.5)
    assert ended.stopped == ("too long" if ending else "")
    assert gone(int((tmp_path / "daemon").read_text()))


def test_a_child_without_the_mark_is_found_as_a_descendant(run, tmp_path):
    code = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
open("pid", "w").write(str(child.pid))
time.sleep(600)
"""
    ended, _, _ = run(code.replace("env={}", "env={'PATH': os.environ['PATH']}"), seconds=0.8)
    assert ended.stopped == "too long"
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("now", [False, True])
def test_cancel_from_another_thread(run, now):
    cancel, up = Cancel(), threading.Event()
    threading.Thread(target=lambda: (up.wait(20), cancel.ask(now))).start()
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); print('up'); signal.pause()"
    ended, _, _ = run(code, cancel=cancel, on_line=lambda line: up.set(), grace=20)
    assert ended.stopped == "interrupted"
    assert ended.code == 5 or (now and ended.code == -signal.SIGKILL)  # at once is SIGTERM too, and it may be quick
    cancel.close()
    cancel.ask()  # too late, and harmless


def test_a_second_cancel_ends_at_once(run):
    cancel, lines = Cancel(), []
    code = "import signal; signal.signal(15, lambda *_: print('no')); print('up')\nwhile True: signal.pause()"

    def on_line(line):
        lines.append(line)
        cancel.ask(now=line == "no")

    ended, _, _ = run(code, cancel=cancel, on_line=on_line, grace=600)
    assert (ended.stopped, ended.code, lines) == ("interrupted", -signal.SIGKILL, ["up", "no"])


def test_memory_of_the_whole_tree_is_seen(run):
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 200_000_000; print('big', flush=True); input()"],
                         stdin=subprocess.PIPE)
sys.stdin = None; child.wait()
"""
    sampled = threading.Event()
    seen: list[str] = []
    limit = Limit(30, "")
    ended, _, _ = run(
        code,
        limit=limit,
        on_line=seen.append,
        sample=lambda pids: len(pids) > 1 and seen and (sampled.set(), limit.within(0, "seen")),
    )
    assert sampled.is_set() and ended.peak_bytes > 200_000_000


def test_nothing_survives_the_death_of_the_harness(tmp_path):
    """SIGKILL of the program that runs a command: the command dies with it, and `reap` ends its daemon."""
    slot = tmp_path / "slots" / "0"
    slot.mkdir(parents=True)
    harness = f"""
import sys; from pathlib import Path
from agent.run.process import *
run_process([sys.executable, "-c", {DAEMON + "time.sleep(600)"!r}], cwd=Path("."), env=os.environ,
            log=Log(Path("log")), limit=Limit(600, ""), cancel=Cancel(), record=Path("process.json"))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.Popen([sys.executable, "-c", harness], cwd=slot, env=env)
    daemon = int(wait_for(lambda: (slot / "daemon").exists() and (slot / "daemon").read_text()))
    command = json.loads((slot / "process.json").read_text())["pid"]
    assert alive(command) and alive(daemon)
    killed.kill()
    killed.wait()
    if sys.platform == "linux":
        wait_for(lambda: not alive(command))
    assert reap(tmp_path) >= 1
    assert gone(command) and gone(daemon)
    assert not list(slot.glob("process*"))
    assert reap(tmp_path) == 0


def test_reap_spares_a_process_that_only_has_the_same_pid(tmp_path):
    (tmp_path / "slots" / "0").mkdir(parents=True)
    record = tmp_path / "slots" / "0" / "process.json"
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    record.write_text(json.dumps({"mark": "none such", "pid": other.pid, "created": 1.0}))
    try:
        assert reap(tmp_path) == 0 and other.poll() is None and not record.exists()
    finally:
        other.kill()
        other.wait()


@given(st.lists(st.text(alphabet="ab\n\r é\x1b", max_size=20)))
def test_lines_do_not_depend_on_the_chunks(texts):
    whole = "".join(texts).encode() + b"\n"
    one = Lines().feed(whole)
    many, lines = Lines(), []
    for i in range(len(whole)):
        lines += many.feed(whole[i : i + 1])
    assert lines == one


@given(st.text())
def test_cleaned_text_has_no_control_characters(text):
    assert not any(ord(c) < 32 and c != "\t" or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in clean(text))


def test_terminal_sequences_are_removed():
    assert clean("\x1b[31mred\x1b[0m \x1b]0;title\x07x\x1b[2Ky\ta") == "red xy\ta"


@pytest.mark.parametrize(
    ("line", "loss"),
    [
        ("step 00120 (12.0%) | loss: 2.34 | mfu: 30%", 2.34),
        ("iter 100: train loss 2.5, val loss 2.6", 2.5),
        ("epoch 3 loss=0.5", 0.5),
        ("{'loss': 2.5, 'epoch': 0.1}", 2.5),
        ("Epoch 1:  45%|####| 45/100 [00:03<00:02, loss=0.5]", 0.5),
        ("step 3 | train_loss 1e-3", 1e-3),
        ("step 5: val loss 3.0", None),
        ("lossless step 3", None),
        ("loading 45%", None),
    ],
)
def test_progress_lines_of_many_scripts(line, loss):
    progress = Progress(10)
    progress.feed(line)
    assert bool(progress.began) == (loss is not None)
    assert [point[1] for point in progress.curve] == ([] if loss is None else [loss])


def test_the_curve_is_bounded_and_has_the_printed_shares():
    progress = Progress(10)
    for step in range(5000):
        progress.feed(f"step {step} | loss {5000 - step} | {step / 50:.2f}%")
    assert 200 < len(progress.curve) <= 512
    assert progress.curve[0] == (0.0, 5000.0) and progress.curve[-1][0] > 0.99
    assert all(share == pytest.approx((5000 - loss) / 5000, abs=1e-3) for share, loss in progress.curve)


def test_shares_of_an_epoch_are_not_shares_of_the_budget():
    progress = Progress(1e9)
    for share in (10, 90, 10, 90):
        progress.feed(f"epoch 1 ({share}%) loss 2")
    assert all(share < 1e-6 for share, _ in progress.curve)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN"])
def test_a_loss_that_is_no_number(value):
    progress = Progress(10)
    progress.feed(f"step 7 | loss {value}")
    assert "at step 7" in progress.diverged and progress.curve == ()


def test_numbers_are_bounded_and_finite():
    progress = Progress(10)
    for i in range(1000):
        progress.feed(f"n{i}: {i}")
    for line in ("n1: 1.5e3", "bad: nan", "two words: 3", "text: 3 apples"):
        progress.feed(line)
    assert len(progress.numbers) == 200 and progress.numbers["n1"] == 1500


def test_the_metric_is_the_last_one_and_never_nothing():
    loss, accuracy = Metric(name="val_bpb"), Metric(name="accuracy", pattern=r"accuracy=([\d.]+|nan)%?")
    assert find_metric(loss, "val_bpb: 2.0\nstep 1 val_bpb: 9\nval_bpb: 1.25\nend") == 1.25
    assert find_metric(accuracy, "accuracy=0.5 accuracy=0.75") == 0.75
    with pytest.raises(ValueError, match="there is no val_bpb in the output: looked for a line `val_bpb: <number>`"):
        find_metric(loss, "xval_bpb: 2.0")
    with pytest.raises(ValueError, match="val_bpb is nan"):
        find_metric(loss, "val_bpb: 1.0\nval_bpb: nan")
    with pytest.raises(ValueError, match="accuracy is nan"):
        find_metric(accuracy, "accuracy=nan")


@pytest.mark.parametrize(
    ("code", "tail", "reason"),
    [
        (1, "Traceback (most recent call last):\n  File x\nmy.Oops: bad\nmore", "my.Oops: bad"),
        (1, '  File "t.py", line 1\n    x = (\nSyntaxError: never closed', "SyntaxError: never closed"),
        (-11, "step 1", "killed by SIGSEGV"),
        (137, "", "killed by SIGKILL: was the machine short of memory?"),
        (2, "usage: x", "exit code 2: usage: x"),
        (3, "", "exit code 3"),
        (
            1,
            "Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory. Tried",
            "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried",
        ),
        (77, "step 1\nsandbox: 9 files, over the limit", "sandbox: 9 files, over the limit"),
    ],
)
def test_the_reason_of_a_crash(code, tail, reason):
    assert explain_exit(code, tail) == reason
