"""The room holds what it must and nothing else; its guard bounds what a trial takes; the probe can fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent.errors import Failure
from agent.run.probe import probe
from agent.run.sandbox import (
    Bubblewrap,
    Container,
    Limits,
    Room,
    Unsandboxed,
    adopt_cache,
    choose_sandbox,
    diagnose,
    gpu_nodes,
    lend_cache,
)

SMALL = Limits(memory_bytes=300 << 20, processes=64, disk_bytes=50 << 20, files=500, scratch_bytes=32 << 20)
LIMITED = Bubblewrap(SMALL)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    for name in ("work", "output", "data/heldout"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "work" / "train.py").write_text("print('hello')\n")
    (tmp_path / "data" / "train").write_text("to be learned")
    (tmp_path / "data" / "heldout" / "val").write_text("to be hidden")
    (tmp_path / "ledger").write_text("not to be seen")
    data = tmp_path / "data"
    return Room(tmp_path / "work", tmp_path / "output", (data,), (data / "heldout",), env={"PATH": os.environ["PATH"]})


def python(code: str, room: Room, sandbox: Bubblewrap = LIMITED, **more) -> subprocess.CompletedProcess[str]:
    argv = sandbox.wrap([sys.executable, "-c", code], room)
    return subprocess.run(argv, cwd=room.workdir, env=dict(room.env), capture_output=True, text=True, **more)


def nested(room: Room) -> Room:
    return Room(room.workdir, room.output, room.data, room.hidden, env=room.env, nested=True)


def test_a_command_runs_in_its_folder_and_tells_how_it_ended(room: Room) -> None:
    ran = python("import os, sys; print(os.getcwd()); sys.exit(7)", room)
    assert (ran.stdout, ran.returncode) == (f"{room.workdir}\n", 7)
    assert python("import os; os.abort()", room).returncode == 128 + signal.SIGABRT


def test_only_what_is_named_is_there(room: Room, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("a key")
    room = Room(room.workdir, room.output, room.data, room.hidden, env={**room.env, "HOME": str(tmp_path / "home")})
    code = """
import os
from pathlib import Path
here = Path.cwd().parent
def there(path): return Path(path).exists()
print(there(here / "data/train"), there(here / "data/heldout/val"), there(here / "ledger"))
print(there("/etc/shadow"), there("/run/docker.sock"), sorted(os.listdir(Path.home())))
print([name for name in os.listdir("/proc") if name.isdigit() and int(name) > 20])
"""
    ran = python(code, room)
    assert ran.stdout == "True False False\nFalse False []\n[]\n", ran.stderr


def test_the_environment_is_what_was_given(room: Room) -> None:
    given = Room(room.workdir, room.output, env={**room.env, "RESEARCH_SEED": "7"})
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    argv = LIMITED.wrap([sys.executable, "-c", code], given)
    ran = subprocess.run(
        argv, cwd=given.workdir, env={**given.env, "API_KEY": "planted"}, capture_output=True, text=True
    )
    environment = json.loads(ran.stdout)
    assert environment["RESEARCH_SEED"] == "7" and "planted" not in ran.stdout
    assert set(environment) - set(given.env) <= {"HOME", "TMPDIR", "USER", "LOGNAME", "PWD", "LC_CTYPE"}


def test_one_folder_is_writable(room: Room) -> None:
    code = """
import sys
for path in sys.argv[1:]:
    try:
        open(path + "/written", "w").write("x")
        print("yes")
    except OSError as error:
        print(error.strerror)
"""
    argv = LIMITED.wrap(
        [sys.executable, "-c", code, str(room.output), str(room.workdir), str(room.data[0]), "/", "/usr"], room
    )
    ran = subprocess.run(argv, cwd=room.workdir, env=dict(room.env), capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["yes"] + ["Read-only file system"] * 4
    assert (room.output / "written").read_text() == "x"


def test_the_evaluator_sees_the_answers_and_its_model_does_not(room: Room) -> None:
    room = nested(room)
    prefix = LIMITED.inner(room)
    assert prefix is not None
    code = """
import json, os, subprocess, sys
prefix, folder = json.loads(sys.argv[1]), sys.argv[2]
print("evaluator", open(folder + "/heldout/val").read(), flush=True)
ready, tell = os.pipe()
model = f'''
import os
print("model sees", open({folder + "/train"!r}).read(), os.listdir({folder + "/heldout"!r}), flush=True)
os.write({tell}, b"logits")
open("/tmp/scratch", "w")
open({str(sys.argv[3]) + "/x"!r}, "w")
'''
ran = subprocess.run([*prefix, sys.executable, "-c", model], pass_fds=[tell], stderr=subprocess.PIPE, text=True)
print(os.read(ready, 9), "Read-only file system" in ran.stderr)
"""
    argv = LIMITED.wrap([sys.executable, "-c", code, json.dumps(prefix), str(room.data[0]), str(room.output)], room)
    ran = subprocess.run(argv, cwd=room.workdir, env=dict(room.env), capture_output=True, text=True)
    expected = "evaluator to be hidden\nmodel sees to be learned []\nb'logits' True\n"
    assert ran.stdout == expected, ran.stderr


def test_libraries_work_in_the_room(room: Room) -> None:
    code = "import getpass, tempfile, numpy; getpass.getuser(); tempfile.mkdtemp(); print(numpy.ones(3).sum())"
    ran = python(code, room)
    assert ran.stdout == "3.0\n", ran.stderr


def test_limits_end_a_trial_and_say_why(room: Room) -> None:
    assert "MemoryError" in python("x = b'x' * (1 << 30)", room).stderr
    # several processes, each below the limit of one; the test would hang if nothing ended them
    memory = python("import os, time\nfor _ in range(6): os.fork()\nx = b'x' * (20 << 20)\ntime.sleep(600)", room)
    assert memory.returncode == 77 and "sandbox: " in memory.stderr and "over the limit" in memory.stderr
    files = "import sys, time\nfor i in range(2000): open(f'{sys.argv[1]}/{i}', 'w').close()\ntime.sleep(600)"
    argv = LIMITED.wrap([sys.executable, "-c", files, str(room.output)], room)
    ran = subprocess.run(argv, cwd=room.workdir, env=dict(room.env), capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (77, "\nsandbox: more than 500 files written; the trial was ended\n")


def test_sigterm_reaches_the_command(room: Room) -> None:
    code = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"saved"))
print("ready", flush=True)
signal.pause()
"""
    argv = LIMITED.wrap([sys.executable, "-c", code], room)
    with subprocess.Popen(argv, cwd=room.workdir, env=dict(room.env), stdout=-1, stderr=-1, text=True) as trial:
        assert trial.stdout and trial.stdout.readline() == "ready\n"
        trial.terminate()
        assert trial.communicate()[1] == "saved\n" and trial.returncode == 1


def test_the_room_closes_when_its_guard_is_killed(room: Room) -> None:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    argv = LIMITED.wrap([sys.executable, "-c", code], room)
    with subprocess.Popen(argv, cwd=room.workdir, env=dict(room.env), stdout=subprocess.PIPE, text=True) as trial:
        assert trial.stdout and trial.stdout.readline() == "ready\n"
        inside = psutil.Process(trial.pid).children(recursive=True)
        assert inside
        trial.kill()
        assert trial.stdout.read() == ""  # end of file: nobody holds the pipe any more
    assert psutil.wait_procs(inside, timeout=10)[1] == []


def test_the_probe_finds_nothing_in_a_sandbox(tmp_path: Path, repository: Path) -> None:
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    (heldout / "val").write_text("x")
    found = probe(LIMITED, repository / ".research" / "x", repository, holdout=[heldout], protected=["prepare.py"])
    assert found == []


def test_the_probe_breaks_out_where_there_is_no_sandbox(tmp_path: Path, repository: Path) -> None:
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    (heldout / "val").write_text("x")
    before = sorted(path for path in repository.rglob("*"))
    home = repository / ".research" / "x"
    found = "\n".join(probe(Unsandboxed(), home, repository, holdout=[heldout], protected=["prepare.py"]))
    for what in (
        f"read {Path.home()}/.probe-",
        f"write {repository}/prepare.py",
        f"create files in {repository}/.git",
        f"list {heldout}",
        "read a key in the environment",
        "TCP",
        "UDP",
        "abstract unix socket",
        "unix socket file",
        "see a process",
        "read a host process",
        "signal a process",
        "outlives the trial",
    ):
        assert what in found
    assert sorted(path for path in repository.rglob("*") if ".research" not in path.parts) == before


def test_a_sandbox_that_can_not_start_fails_the_probe(tmp_path: Path, repository: Path) -> None:
    sandbox = Bubblewrap(SMALL)
    sandbox.bwrap = Path("/bin/false")
    assert "keep the probe from running" in probe(sandbox, tmp_path / "home", repository)[0]


def test_compile_cache_only_grows_and_takes_plain_files_only(tmp_path: Path) -> None:
    kept, private = tmp_path / "kept", tmp_path / "private"
    (private / "inductor").mkdir(parents=True)
    (private / "inductor" / "a.py").write_text("first")
    adopt_cache(private, kept)
    second = tmp_path / "second"
    lend_cache(kept, second)
    assert (second / "inductor" / "a.py").read_text() == "first"
    (second / "inductor" / "a.py").write_text("poisoned")
    (second / "b.py").write_text("new")
    (second / "link").symlink_to("/etc/passwd")
    (second / "folder").symlink_to("/etc")
    adopt_cache(second, kept)
    found = {str(path.relative_to(kept)): path.read_text() for path in kept.rglob("*") if path.is_file()}
    assert found == {"inductor/a.py": "first", "b.py": "new"}
    (second / "big").write_bytes(b"x" * 2000)
    adopt_cache(second, kept, most_bytes=1000)
    assert not (kept / "big").exists()


def test_container_engines_get_the_same_room(room: Room, tmp_path: Path) -> None:
    engine = tmp_path / "podman"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    os.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    argv = Container("podman", "image:1", SMALL).wrap(["python", "train.py"], room)
    for option in (
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        f"--volume={room.workdir}:{room.workdir}:ro",
        f"--volume={room.output}:{room.output}:rw",
        f"--tmpfs={room.hidden[0]}:ro",
        f"--memory={300 << 20}",
        "--pids-limit=64",
    ):
        assert option in argv
    assert argv[-3:] == ["image:1", "python", "train.py"]
    assert not any("docker.sock" in part or "privileged" in part for part in argv)


def test_what_can_not_be_had_is_told_in_one_line() -> None:
    with pytest.raises(Failure, match="--sandbox nonsense is not known"):
        choose_sandbox("nonsense")
    with pytest.raises(Failure, match="docker is not installed|needs an image"):
        choose_sandbox("docker")
    assert "apt install bubblewrap" in diagnose("there is no bwrap: apt install bubblewrap")
    assert "\n" not in diagnose("setting up uid map: Permission denied")
    assert choose_sandbox("none").name == "none" and choose_sandbox("auto").name == "bubblewrap"
    assert gpu_nodes(None) == []
