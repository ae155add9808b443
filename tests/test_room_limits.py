"""What a room may take of the machine, and that nothing of it stays."""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
from test_sandbox import SMALL, python, room, wall  # noqa: F401 - fixtures

from agent.run.bubblewrap import Bubblewrap
from agent.run.sandbox import Room, Sandbox


def test_limits_end_a_trial_and_say_why(room: Room, wall: Sandbox) -> None:
    assert "MemoryError" in python("x = b'x' * (1 << 30)", room, wall).stderr
    # several processes, each below the limit of one; the test would hang if nothing ended them
    many = "import os, time\nfor _ in range(6): os.fork()\nx = b'x' * (20 << 20)\ntime.sleep(600)"
    memory = python(many, room, wall)
    assert memory.returncode == 77 and "sandbox: " in memory.stderr and "over the limit" in memory.stderr
    files = "import sys, time\nfor i in range(2000): open(f'{sys.argv[1]}/{i}', 'w').close()\ntime.sleep(600)"
    ran = python(files, room, wall, room.output)
    assert (ran.returncode, ran.stderr) == (77, "\nsandbox: more than 500 files written; the trial was ended\n")


def test_what_is_written_into_the_compile_cache_counts(room: Room, wall: Sandbox) -> None:
    room = dataclasses.replace(room, compiled=room.output.with_name("compiled"))
    write = (
        "import sys, time\nfor i in range(60): open(f'{sys.argv[1]}/{i}', 'wb').write(bytes(1 << 20))\ntime.sleep(600)"
    )
    ran = python(write, room, wall, wall.compiled(room))
    assert ran.returncode == 77 and "over the limit" in ran.stderr


MEMORY = {
    "written into files without a name": """
for file in [os.memfd_create("x") for _ in range(8)]: os.write(file, bytes(40 << 20))
""",
    "in files without a name, a page of each mapped": """
held = []
for _ in range(32):
    file = os.memfd_create("x"); os.write(file, bytes(10 << 20)); held.append(mmap.mmap(file, 4096)); os.close(file)
""",
    "shared with children": """
held = mmap.mmap(-1, 320 << 20)
for _ in range(4):
    if not os.fork():
        for _ in range(320): held.write(bytes(1 << 20))
        time.sleep(600)
""",
    "its own and of /dev/shm together": """
open(sys.argv[2], "wb").write(bytes(30 << 20)); held = b"x" * (250 << 20); more = b"x" * (16 << 20)
""",
}


@pytest.mark.parametrize("where", MEMORY)
def test_memory_counts_wherever_it_lies(room: Room, wall: Sandbox, where: str) -> None:
    code = f"import mmap, os, sys, time\n{MEMORY[where]}\ntime.sleep(20)"
    ran = python(code, room, wall, room.output, f"/dev/shm/overnight-{os.getpid()}-{room.output.parent.name}")
    assert ran.returncode == 77 and "GB of memory, over the limit of 0.3 GB" in ran.stderr, ran.stderr


DISK = {
    "deleted and open": "held = [open(f'{out}/{n}', 'wb', 0) for n in range(6)]\n"
    "for n, file in enumerate(held): os.unlink(f'{out}/{n}'); file.write(bytes(10 << 20))",
    "deleted and mapped": "path = out + '/x'; file = open(path, 'w+b'); file.write(bytes(49 << 20)); file.flush()\n"
    "held = mmap.mmap(file.fileno(), 0); os.unlink(path); file.close()\nopen(path, 'wb').write(bytes(9 << 20))",
    "deeper than any path": "os.chdir(out)\nfor _ in range(30): os.mkdir('d' * 250); os.chdir('d' * 250)\n"
    "for n in range(6): open(str(n), 'wb').write(bytes(10 << 20))",
    "very deep": "os.chdir(out)\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')",
}


@pytest.mark.parametrize("where", DISK)
def test_what_is_written_counts_wherever_it_lies(room: Room, wall: Sandbox, where: str) -> None:
    code = f"import mmap, os, sys, time\nout = sys.argv[1]\n{DISK[where]}\ntime.sleep(20)"
    ran = python(code, room, wall, room.output)
    says = "nested more than 64 deep|more than 500 files" if where == "very deep" else "GB written, over the limit"
    assert ran.returncode == 77 and re.search(says, ran.stderr), ran.stderr
    subprocess.run(["rm", "-rf", "--", room.output], check=True)  # pytest does not get so deep


def test_what_is_read_does_not_count_as_memory(room: Room, wall: Sandbox) -> None:
    (room.data[0] / "large").write_bytes(bytes(400 << 20))
    code = """
import mmap, sys, time
file = open(sys.argv[1] + "/large", "rb")
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
print(sum(mapped[::4096]))
time.sleep(0.5)
"""
    ran = python(code, room, wall, room.data[0])
    assert (ran.stdout, ran.returncode) == ("0\n", 0), ran.stderr


KERNEL = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.inotify_init1(0), libc.mq_open(b"/x", 0o102, 0o600, None))
print(libc.shmget(0, 4096, 0o1600), libc.msgget(0, 0o1600))
"""


def test_what_the_kernel_counts_for_a_user_is_not_given_out(room: Room, wall: Sandbox) -> None:
    assert python(KERNEL, room, wall).stdout == "-1 -1\n-1 -1\n"


STAYS = """
import os, sys, time
for _ in range(3):
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        os.close(1); os.close(2)
        open(sys.argv[1] + f"/{os.getpid()}", "w").close()
        time.sleep(600)
while len(os.listdir(sys.argv[1])) < 3: time.sleep(0.01)
print("ready", flush=True)
if sys.argv[2] == "stay": time.sleep(600)
"""


@pytest.mark.parametrize("how", ["ends", "hung up", "its parent dies"])
def test_nothing_outlives_the_room(room: Room, wall: Sandbox, how: str) -> None:
    argv = wall.wrap([sys.executable, "-c", STAYS, str(room.output), "go" if how == "ends" else "stay"], room)
    parent = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    with subprocess.Popen(
        [sys.executable, "-c", parent, *argv] if how == "its parent dies" else argv,
        cwd=room.workdir,
        env=dict(room.env),
        stdout=subprocess.PIPE,
        text=True,
    ) as trial:
        assert trial.stdout and trial.stdout.readline() == "ready\n"
        inside = [] if how == "ends" else psutil.Process(trial.pid).children(recursive=True)
        if how == "hung up":
            trial.send_signal(signal.SIGHUP)
        elif how == "its parent dies":
            trial.kill()
        trial.wait(20)
    assert psutil.wait_procs(inside, timeout=20)[1] == []
    named = [
        process for process in psutil.process_iter(["cmdline"]) if str(room.output) in (process.info["cmdline"] or [])
    ]
    assert psutil.wait_procs(named, timeout=10)[1] == []


def test_sigterm_reaches_the_command(room: Room, wall: Sandbox) -> None:
    code = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"saved"))
print("ready", flush=True)
signal.pause()
"""
    argv = wall.wrap([sys.executable, "-c", code], room)
    with subprocess.Popen(argv, cwd=room.workdir, env=dict(room.env), stdout=-1, stderr=-1, text=True) as trial:
        assert trial.stdout and trial.stdout.readline() == "ready\n"
        trial.terminate()
        assert trial.communicate()[1] == "saved\n" and trial.returncode == 1


def test_the_room_closes_when_its_guard_is_killed(room: Room) -> None:
    code = "import time; print('ready', flush=True); time.sleep(600)"
    argv = Bubblewrap(SMALL).wrap([sys.executable, "-c", code], room)
    with subprocess.Popen(argv, cwd=room.workdir, env=dict(room.env), stdout=subprocess.PIPE, text=True) as trial:
        assert trial.stdout and trial.stdout.readline() == "ready\n"
        inside = psutil.Process(trial.pid).children(recursive=True)
        assert inside
        trial.kill()
        assert trial.stdout.read() == ""  # end of file: nobody holds the pipe any more
    assert psutil.wait_procs(inside, timeout=10)[1] == []
