"""The journal on disks that are full, shared or held by another process loses no event."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT, make_repository
from test_loop import PROGRAM, STORY, TRAIN, environment, write_replies

from agent import events as ev
from agent.ledger import Ledger
from agent.storage import fault, file_system


def test_a_journal_that_another_process_holds_is_waited_for(tmp_path: Path):
    """Held beyond the five seconds after which sqlite3 gives up by itself, on a signal and not on a clock."""
    ledger = Ledger(tmp_path)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(6.0, lambda: other.execute("ROLLBACK"))
    release.start()
    ledger.append(ev.Noted(text="after all"))
    release.join()
    assert [event for _, event in ledger.events()] == [ev.Noted(text="after all")]


FULL = """
import os, sys
from pathlib import Path
from agent import events as ev
from agent.errors import MachineFault
from agent.ledger import Ledger

disk = Path(sys.argv[1])

def fill():
    with open(disk / str(len(os.listdir(disk))), "wb", buffering=0) as file:
        while True:
            try: file.write(b"x" * 4096)
            except OSError: return

ledger = Ledger(disk / "night")
fill()
told = 0
try:
    while True:
        ledger.append(ev.Noted(text=ledger.put("a text that is long " * 5000 + str(told) + os.urandom(90000).hex())))
        told += 1
except MachineFault as fault:
    print(fault)
(disk / "1").unlink()
ledger.append(ev.Noted(text="room again"))
ledger.close()
found = [event.text for _, event in Ledger(disk / "night", readonly=True).events()]
print(told, len(found), found[-1])
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """A prefix under which a command has a disk of its own of 48 MiB at tmp_path/disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=48m none {disk} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    return prefix


def test_a_full_disk_loses_no_event_and_is_one_line(small_disk: list[str], tmp_path: Path):
    """What was set aside takes the events; when that is used up it says so, and goes on where there is room again."""
    command = [*small_disk, sys.executable, "-c", FULL, str(tmp_path / "disk")]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    fault, counts = ran.stdout.splitlines()
    assert "is full" in fault and "make room, and the same command goes on" in fault
    told, found, last = counts.split(maxsplit=2)
    assert int(told) > 50 and int(found) == int(told) + 1 and last == "room again"


@pytest.mark.slow
def test_a_night_on_a_full_disk_pauses_and_where_nothing_can_be_journaled_ends_with_3(
    small_disk: list[str], tmp_path: Path
):
    make_repository(tmp_path / "origin", {"train.py": TRAIN, "prepare.py": "#\n", "program.md": PROGRAM})
    replies, disk = write_replies(tmp_path / "replies", STORY[0], STORY[2]), tmp_path / "disk"
    run = f"{sys.executable} -m agent.loop --repo {disk}/p --tag night --unsafe-no-sandbox --replay {replies}"
    script = (
        f"cp -r {tmp_path}/origin {disk}/p; {run} --experiments 1 > {tmp_path}/out & "
        f"until grep -qs 'paused: the disk' {tmp_path}/out; do sleep 0.1; done; mount -o remount,size=400m {disk}; "
        f"wait $!; echo code $?; cat {tmp_path}/out; head -c 999999999 /dev/zero > {disk}/big 2> /dev/null; "
        f"{run} --experiments 2; echo code $?; rm {disk}/big; {run} --experiments 2; echo code $?"
    )
    command = [*small_disk, "sh", "-c", script]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert re.findall(r"code (\d)", ran.stdout) == ["0", "3", "0"], ran.stdout + ran.stderr
    assert "make room; it is tried again by itself, next at" in ran.stdout and "going on" in ran.stdout
    assert "Traceback" not in ran.stderr
    (line,) = ran.stderr.splitlines()
    assert "is full" in line and "make room" in line


FILLS = """
if os.environ.get("FILL"):
    with open(os.path.join(os.environ["RESEARCH_OUTPUT"], "fill"), "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(1 << 20))
        except OSError:
            time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_killed_trial_has_filled_is_freed_before_the_journal_is_opened(small_disk: list[str], tmp_path: Path):
    """Killed with its loop when nothing is left on the disk; the same command needs nobody to make room."""
    program = PROGRAM.replace("budget: 20s", "budget: 20s\nenvironment: [FILL]")
    train = TRAIN.replace("import os, time\n", f"import os, time\n{FILLS}")
    make_repository(tmp_path / "origin", {"train.py": train, "prepare.py": "#\n", "program.md": program})
    replies, disk = write_replies(tmp_path / "replies", STORY[0]), tmp_path / "disk"
    run = f"{sys.executable} -m agent.loop --repo {disk}/p --tag night --unsafe-no-sandbox --replay {replies}"
    script = (
        f"mount -o remount,size=400m {disk}; cp -r {tmp_path}/origin {disk}/p; FILL=1 {run} --experiments 1 & "
        f"until [ $(df --output=avail {disk} | tail -1) -eq 0 ]; do kill -0 $! || exit 1; sleep 0.1; done; "
        f"kill -9 $!; wait $!; {run} --experiments 1; echo code $?"
    )
    ran = subprocess.run(
        [*small_disk, "sh", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=90
    )
    assert "code 0" in ran.stdout and "going on with night" in ran.stdout, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("kind", ["TRUNCATE", "WAL"])
def test_a_journal_is_kept_where_memory_is_not_shared(tmp_path: Path, kind: str):
    """What works on a disk of this machine is found to work; a network's file system never gets WAL."""
    assert fault(tmp_path, kind) == ""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 0:1 / / rw - overlay overlay rw\n"
        f"22 21 0:2 / {tmp_path} rw shared:1 - nfs4 server:/home rw\n"
        "23 21 0:3 / /elsewhere\\040x rw - tmpfs tmpfs rw\n"
    )
    assert file_system(tmp_path / "night", mounts) == "nfs4" and file_system(Path("/usr"), mounts) == "overlay"
    assert file_system(Path("/elsewhere x/a"), mounts) == "tmpfs"


SHARED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int lacks(const char *what) { const char *all = getenv("LACKS"); return all && strstr(all, what) != 0; }

int fcntl64(int fd, int command, ...) {
    va_list rest; va_start(rest, command); void *value = va_arg(rest, void *); va_end(rest);
    if ((command == F_SETLK || command == F_SETLKW) && lacks("locks")) return 0;
    int (*usual)(int, int, ...) = dlsym(RTLD_NEXT, "fcntl64");
    return usual(fd, command, value);
}
int fcntl(int fd, int command, ...) {
    va_list rest; va_start(rest, command); void *value = va_arg(rest, void *); va_end(rest);
    return fcntl64(fd, command, value);
}
int flock(int fd, int operation) {
    if (lacks("flock")) { errno = ENOLCK; return -1; }
    int (*usual)(int, int) = dlsym(RTLD_NEXT, "flock");
    return usual(fd, operation);
}
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) {
    if ((flags & MAP_SHARED) && (protection & PROT_WRITE) && fd >= 0 && lacks("memory")) {
        errno = ENODEV; return MAP_FAILED;
    }
    void *(*usual)(void *, size_t, int, int, int, off64_t) = dlsym(RTLD_NEXT, "mmap64");
    return usual(at, length, protection, flags, fd, offset);
}
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap64(at, length, protection, flags, fd, offset);
}
"""
"""What a file system between machines may lack; for the commands that this library is loaded into."""
KEEP = """
import sys
from pathlib import Path
from agent import events as ev
from agent.errors import Failure
from agent.ledger import Ledger
try:
    ledger = Ledger(Path(sys.argv[1]))
except Failure as failure:
    raise SystemExit(print(failure))
ledger.append(ev.Noted(text="kept"))
mode = ledger.db.execute("PRAGMA journal_mode").fetchone()[0]
ledger.close()
print(mode, [event.text for _, event in Ledger(Path(sys.argv[1]), readonly=True).events()])
"""


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("", "wal ['kept']"),
        ("memory", "truncate ['kept']"),
        ("memory locks", "locks do not hold): clone the repository onto a local disk"),
        ("flock", "files can't be locked"),
    ],
)
def test_an_unknown_file_system_is_tried_before_a_night_is_kept_there(
    small_disk: list[str], tmp_path: Path, lacks: str, says: str
):
    if not (compiler := shutil.which("cc")):
        pytest.skip("no compiler here, to make a file system's faults with")
    library = tmp_path / "shared.so"
    build = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library, "-ldl"]
    subprocess.run(build, input=SHARED, text=True, check=True)
    disk = tmp_path / "disk"
    unknown = ["unshare", "-rm", "sh", "-c", f'mount -t ramfs none {disk} && exec "$@"', "sh"]
    shown = environment() | {"LD_PRELOAD": str(library), "LACKS": lacks}
    command = [*unknown, sys.executable, "-c", KEEP, str(disk / "night")]
    ran = subprocess.run(command, cwd=ROOT, env=shown, capture_output=True, text=True, timeout=60)
    assert says in ran.stdout and len(ran.stdout.splitlines()) == 1, ran.stdout + ran.stderr


def test_readers_and_the_writer_wait_for_each_other_without_wal(tmp_path: Path):
    ledger = Ledger(tmp_path)
    assert ledger.db.execute("PRAGMA journal_mode=TRUNCATE").fetchone() == ("truncate",)
    reader = Ledger(tmp_path, readonly=True)
    held = reader.db.execute("SELECT 1 FROM sqlite_master")  # a reader in the middle of its rows
    held.fetchone()
    release = threading.Timer(0.5, held.close)
    release.start()
    for n in range(50):
        ledger.append(ev.Noted(text=str(n)))
        assert len(list(reader.events())) == n + 1
    release.join()
