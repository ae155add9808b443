"""The room holds what it must and nothing else; its guard bounds what a trial takes; the probe can fail."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from agent.errors import Failure
from agent.run.bubblewrap import Bubblewrap, diagnose
from agent.run.landlock import Landlock
from agent.run.model_rooms import CLIENT, ModelRooms
from agent.run.sandbox import Container, Limits, Room, Sandbox, choose_sandbox, describe, described, gpu_nodes
from agent.run.syscalls import landlock_version

SMALL = Limits(memory_bytes=300 << 20, processes=64, disk_bytes=50 << 20, files=500, scratch_bytes=32 << 20)
NO_LANDLOCK = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")


@pytest.fixture(params=["bubblewrap", pytest.param("landlock", marks=NO_LANDLOCK)])
def wall(request) -> Sandbox:
    return Bubblewrap(SMALL) if request.param == "bubblewrap" else Landlock(SMALL)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    for name in ("work", "output", "scratch", "data/heldout", "compiled"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "work" / "train.py").write_text("print('hello')\n")
    (tmp_path / "data" / "train").write_text("to be learned")
    (tmp_path / "data" / "heldout" / "val").write_text("to be hidden")
    (tmp_path / "ledger").write_text("not to be seen")
    data = tmp_path / "data"
    return Room(
        "training",
        *(tmp_path / name for name in ("work", "output", "scratch")),
        data=(data,),
        hidden=(data / "heldout",),
        env={"PATH": os.environ["PATH"]},
    )


def run(argv: list[str], room: Room, sandbox: Sandbox, **more) -> subprocess.CompletedProcess[str]:
    command = sandbox.wrap(argv, room)
    return subprocess.run(command, cwd=room.workdir, env=dict(room.env), capture_output=True, text=True, **more)


def python(code: str, room: Room, sandbox: Sandbox, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", code, *map(str, arguments)], room, sandbox)


def test_a_command_runs_in_its_folder_and_tells_how_it_ended(room: Room, wall: Sandbox) -> None:
    ran = python("import os, sys; print(os.getcwd()); sys.exit(7)", room, wall)
    assert (ran.stdout, ran.returncode) == (f"{room.workdir}\n", 7)
    assert python("import os; os.abort()", room, wall).returncode == 128 + signal.SIGABRT


def test_only_what_is_named_is_there(room: Room, wall: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".netrc").write_text("a key")
    room = dataclasses.replace(room, env={**room.env, "HOME": str(tmp_path / "home")})
    code = """
import os, sys
from pathlib import Path
here = Path.cwd().parent
def opens(path):
    try: return bool(open(path).read())
    except OSError: return False
print(opens(here / "data/train"), opens(here / "data/heldout/val"), opens(here / "ledger"))
def names(folder):
    try: return os.listdir(folder)
    except OSError: return []
print(opens("/etc/shadow"), opens(sys.argv[1]), names(Path.home()))
"""
    ran = python(code, room, wall, tmp_path / "home" / ".netrc")
    assert ran.stdout == "True False False\nFalse False []\n", ran.stderr


def test_processes_outside_can_not_be_seen(room: Room) -> None:
    code = "import os; print([name for name in os.listdir('/proc') if name.isdigit() and int(name) > 20])"
    assert python(code, room, Bubblewrap(SMALL)).stdout == "[]\n"


def test_the_environment_is_what_was_given(room: Room, wall: Sandbox) -> None:
    given = dataclasses.replace(room, env={**room.env, "RESEARCH_SEED": "7"})
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    argv = wall.wrap([sys.executable, "-c", code], given)
    ran = subprocess.run(
        argv, cwd=given.workdir, env={**given.env, "API_KEY": "planted"}, capture_output=True, text=True
    )
    environment = json.loads(ran.stdout)
    assert environment["RESEARCH_SEED"] == "7" and "planted" not in ran.stdout
    own = {"HOME", "TMPDIR", "USER", "LOGNAME", "PWD", "LC_CTYPE", "XDG_CACHE_HOME", "CUDA_CACHE_PATH", "TRITON_HOME"}
    assert set(environment) - set(given.env) <= own


def test_one_folder_is_writable(room: Room, wall: Sandbox) -> None:
    code = """
import sys
for path in sys.argv[1:]:
    try:
        open(path + "/written", "w").write("x")
        print("yes")
    except OSError:
        print("no")
"""
    ran = python(code, room, wall, room.output, room.workdir, room.data[0], "/", "/usr", "/proc/sys/kernel")
    assert ran.stdout.splitlines() == ["yes"] + ["no"] * 5, ran.stderr
    assert (room.output / "written").read_text() == "x"
    model = python(code, dataclasses.replace(room, kind="model"), wall, room.output)
    assert model.stdout == "no\n", model.stderr


def test_the_machine_has_its_settings_closed_and_threads_may_name_themselves(room: Room, wall: Sandbox) -> None:
    code = """
import threading
def opens(path):
    try: return bool(open(path, "r+"))
    except OSError: return False
def named():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file: file.write("worker")
    print(open(f"/proc/self/task/{threading.get_native_id()}/comm").read().strip(), flush=True)
thread = threading.Thread(target=named); thread.start(); thread.join()
print([opens(f"/proc/{name}") for name in ("sys/kernel/core_pattern", "sysrq-trigger", "sys/vm/swappiness")])
"""
    ran = python(code, room, wall)
    assert ran.stdout == "worker\n[False, False, False]\n", ran.stderr


EVALUATOR = """
import json, os, subprocess, sys
prefix, folder = json.loads(os.environ["RESEARCH_MODEL_SANDBOX"]), sys.argv[1]
print("evaluator", open(folder + "/heldout/val").read(), flush=True)
memory = os.memfd_create("logits")
os.write(memory, b"inputs")
model = f'''
import os
def reads(path):
    try: return open(path).read()
    except OSError: return None
print("model sees", reads({folder + "/train"!r}), reads({folder + "/heldout/val"!r}), os.pread({memory}, 9, 0))
print("of the evaluator", "MODEL_SANDBOX" in (reads({f"/proc/{os.getpid()}/environ"!r}) or ""), flush=True)
os.pwrite({memory}, b"logits", 0)
try: open({sys.argv[2] + "/x"!r}, "w")
except OSError as error: raise SystemExit(5)
'''
ran = subprocess.run([*prefix, sys.executable, "-c", model], pass_fds=[memory])
print(os.pread(memory, 9, 0), ran.returncode, flush=True)
stuck = subprocess.Popen([*prefix, sys.executable, "-c", "print('loaded', flush=True); import time; time.sleep(600)"],
                         stdout=subprocess.PIPE)
stuck.stdout.readline()
stuck.terminate()
print("ended", stuck.wait(), stuck.stdout.read())
"""


def test_the_evaluator_sees_the_answers_and_its_model_does_not(room: Room, wall: Sandbox, tmp_path: Path) -> None:
    def model(number: int) -> Room:
        scratch = tmp_path / f"model{number}"
        scratch.mkdir()
        return dataclasses.replace(room, kind="model", scratch=scratch, data=())

    rooms = ModelRooms(wall, model, tmp_path / "rooms")
    evaluation = dataclasses.replace(
        room,
        kind="evaluation",
        hidden=(),
        data=(*room.data, CLIENT),
        rooms=tmp_path / "rooms",
        env={**room.env, "RESEARCH_MODEL_SANDBOX": json.dumps(rooms.prefix())},
    )
    ran = python(EVALUATOR, evaluation, wall, room.data[0], room.output)
    rooms.close()
    assert ran.stdout.splitlines() == [
        "evaluator to be hidden",
        "model sees None None b'inputs'",
        "of the evaluator False",
        "b'logits' 5",
        f"ended {128 + signal.SIGKILL} b''",
    ], ran.stdout + ran.stderr


def test_what_is_no_request_for_a_room_is_answered_and_nothing_else(room: Room, tmp_path: Path) -> None:
    rooms = ModelRooms(Bubblewrap(SMALL), lambda _: dataclasses.replace(room, kind="model"), tmp_path / "rooms")
    no_file = b'\x16\0\0\0{"files":[1],"argv":[]}'
    for request in (b"", b"x", b"\xff\xff\xff\xff{", b"\x02\0\0\0[]", b"\x02\0\0\0{}", no_file):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(tmp_path / "rooms" / "rooms"))
            asking.sendall(request)
            asking.shutdown(socket.SHUT_WR)
            assert "error" in json.loads(asking.recv(4096))
    rooms.close()


def test_what_is_hidden_can_be_read_nowhere_and_what_lies_beside_it_still_imports(room: Room, wall: Sandbox) -> None:
    folders = [Path(sysconfig.get_path("stdlib"), "idlelib"), Path(sysconfig.get_path("purelib"), "filelock")]
    wall.hidden = (*folders, Path("/usr/lib/no such folder"))
    code = """
import sys
from pathlib import Path
import json, numpy, jinja2, xml.dom
for folder in sys.argv[1:]:
    for name in ("__init__.py", "run.py", "_api.py"):
        try: print(open(Path(folder, name)).read())
        except OSError: pass
print("nothing")
"""
    assert all(Path(folder, "__init__.py").is_file() for folder in folders)
    for kind in ("training", "evaluation", "model"):
        there = dataclasses.replace(room, kind=kind)
        ran = python(code, there, described(describe(wall)), *folders)
        assert ran.stdout == "nothing\n", ran.stderr
    assert python(code, room, type(wall)(SMALL), *folders).stdout.count("\n") > 10


def test_what_is_hidden_can_not_be_read_by_another_name(room: Room, wall: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "real" / "secret").mkdir(parents=True)
    (tmp_path / "real" / "secret" / "text").write_text("seen")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    env = {**room.env, "PYTHONPATH": str(tmp_path / "linked")}
    git_core = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
    script, under = git_core / "git-sh-setup", git_core.parent.relative_to("/usr")  # lib, where /lib leads too
    names = [script, Path("/", under, "git-core", "git-sh-setup"), tmp_path / "linked" / "secret" / "text"]
    code = """
import sys
for name in sys.argv[1:]:
    try: print(len(open(name).read()) > 0)
    except OSError: print(False)
"""
    wall.hidden = ()
    there = dataclasses.replace(room, env=env)
    assert "True" in python(code, there, wall, *names).stdout
    wall.hidden = (git_core.resolve(), tmp_path / "real" / "secret")
    ran = python(code, there, wall, *names)
    assert ran.stdout == "False\n" * 3, ran.stderr


def test_libraries_work_in_the_room(room: Room, wall: Sandbox) -> None:
    code = "import getpass, tempfile, numpy; getpass.getuser(); tempfile.mkdtemp(); print(numpy.ones(3).sum())"
    ran = python(code, room, wall)
    assert ran.stdout == "3.0\n", ran.stderr


def test_processes_share_work_in_the_room(room: Room, wall: Sandbox) -> None:
    code = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    print(sum(pool.map(abs, range(-3, 3))))
"""
    ran = python(code, room, wall)
    assert ran.stdout == "9\n", ran.stderr


@NO_LANDLOCK
def test_the_machine_s_shared_memory_carries_nothing_from_one_room_to_another(room: Room) -> None:
    name = f"/dev/shm/{room.output.parent.name}"
    write = f"import os\ntry: open({name!r}, 'w').write('x')\nexcept OSError: print('closed')"
    wall = Landlock(SMALL)
    assert python(write, dataclasses.replace(room, kind="model"), wall).stdout == "closed\n"
    assert python(write, room, wall).stdout == ""
    if os.geteuid() == 0:  # of an ordinary user nobody can tell who left it
        assert not os.path.exists(name)


@NO_LANDLOCK
def test_without_another_user_the_person_s_own_processes_can_not_be_changed(room: Room) -> None:
    """The filter for ordinary users; where root runs the loop, the other user id does the same."""
    with subprocess.Popen(["sleep", "600"]) as outside:
        code = """
import os, resource, sys
pid = int(sys.argv[1])
def works(what):
    try: return what() is not OSError
    except OSError: return False
print([works(lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))),
       works(lambda: os.setpriority(os.PRIO_PROCESS, pid, 5)),
       works(lambda: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))),
       works(lambda: open(f"/proc/{pid}/oom_score_adj", "w").write("1000")),
       works(lambda: os.kill(pid, 0))])
print(works(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))))
"""
        ran = python(code, room, Landlock(SMALL), outside.pid)
        outside.kill()
    assert ran.stdout == "[False, False, False, False, False]\nTrue\n", ran.stderr


def test_container_engines_get_the_same_room(room: Room, tmp_path: Path, monkeypatch) -> None:
    engine = tmp_path / "podman"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
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


@NO_LANDLOCK
def test_compilers_work_behind_the_second_wall_below_a_folder_that_only_its_owner_enters(room: Room) -> None:
    """gcc asks access(2) whether it may use its temporary folder; the way there is closed to other users."""
    room.output.parent.chmod(0o700)
    code = """
import os, subprocess
source = os.path.join(os.environ["TMPDIR"], "t.c")
open(source, "w").write("int one(void) { return 1; }")
print(os.access(os.environ["TMPDIR"], os.W_OK))
made = subprocess.run(["gcc", "-shared", "-fPIC", "-o", source + ".so", source], capture_output=True, text=True)
print(made.returncode, made.stderr)
"""
    ran = python(code, room, Landlock(SMALL))
    assert ran.stdout == "True\n0 \n", ran.stdout + ran.stderr
