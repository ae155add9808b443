"""What the kernel is asked for by bare system calls: filters of system calls (seccomp), Landlock, capabilities.

Imports the standard library only, because the scripts that stand between this program and code under test
(guard.py, wall.py) run isolated from every installed package. Sources: seccomp(2), landlock(7), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct

# Names in the environment by which guard.py and wall.py are told what belongs to one start.
FILES = "OVERNIGHT_FILES"  # `from:to from:to`: open files, and the numbers they shall have
USER = "OVERNIGHT_USER_ID"  # whom to become, chosen by the guard
PARENT = "OVERNIGHT_PARENT"  # the process with which to end
USERS = range(64100, 65000)  # user ids for rooms without namespaces, below the 65,536 that most containers map
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT = 1, 8, 38, 36, 47
PR_SET_SECUREBITS, NO_SETUID_FIXUP = 28, 4
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name -> number on (x86_64, aarch64); None: that machine has no such call
NUMBERS = {
    "socket": (41, 198), "connect": (42, 203),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "open_by_handle_at": (304, 265),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262), "io_setup": (206, 0),
    "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setaffinity": (203, 122),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
# No use in training, and not contained by namespaces: kernel keyrings, tracing of the kernel, its modules, and
# rings of requests (which would pass by every filter of calls). Shared memory and messages of System V belong to no
# process, so nobody could count them.
ALWAYS_REFUSED = (
    "add_key", "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
    "open_by_handle_at", "shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop", "msgget", "msgsnd",
    "msgrcv", "msgctl", "mq_open",
)  # fmt: skip
# Of these the kernel gives out so many to a user, or to the machine, and a room may be root's: watches of files, and
# requests for asynchronous reading. A program that proposes may watch its settings.
COUNTED_FOR_A_USER = ("inotify_init", "inotify_init1", "fanotify_init", "io_setup")
# What namespaces contain, refused where there are none.
WITHOUT_NAMESPACES = (
    "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "fsopen", "open_tree", "move_mount",
)  # fmt: skip
# CUDA does not start unless it can make and name a socket of its own (AF_UNIX, SOCK_SEQPACKET), and is told of every
# other that nobody listens there. Unlike one for datagrams such a socket reaches nobody unless it can be connected.
CONNECTING = ("connect",)
# Changes of a file's mode and owner, which Landlock does not see: done as if, where the user id is the person's.
CHANGES_OF_MODE = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat",
    "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
)  # fmt: skip
# Settings of any process of the same user: call -> which argument names the process, where 0 is the caller itself.
OF_A_PROCESS = {
    "prlimit64": 0, "setpriority": 1, "ioprio_set": 1, "sched_setparam": 0, "sched_setscheduler": 0,
    "sched_setattr": 0, "sched_setaffinity": 0,
}  # fmt: skip
# (family, type) of the sockets that may be made; type None: any
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, SOCK_SEQPACKET = 1, 2, 10, 16, 5
INTERNET = ((AF_INET, None), (AF_INET6, None), (AF_NETLINK, None))  # no AF_UNIX: an engine or a keyring listens there
INSIDE_A_NETWORK_NAMESPACE = ((AF_UNIX, None), (AF_INET, None), (AF_INET6, None), (AF_NETLINK, None))
UNCONNECTED = ((AF_UNIX, SOCK_SEQPACKET),)
LOCAL = ((AF_UNIX, None),)
Sockets = tuple[tuple[int, "int | None"], ...]


def number_of(call: str) -> int | None:
    """The system call's number on this machine."""
    return NUMBERS[call][0 if platform.machine() == "x86_64" else 1]


def seccomp_filter(
    refused: tuple[str, ...],
    sockets: Sockets,
    ignored: tuple[str, ...] = (),
    unheard: tuple[str, ...] = (),
    own_only: dict[str, int] | None = None,
) -> bytes:
    """A classic BPF program (seccomp(2)): EPERM for the `refused` calls and for sockets that are not among `sockets`;
    the `ignored` calls do nothing and say that they did; the `unheard` ones are told ECONNREFUSED; those in `own_only`
    pass where the argument of that index is 0. Empty on a machine whose numbers are not known."""
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        return b""

    def step(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, k)

    load, equal, at_least, mask, give = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, refuse, ignore, kill = 0x7FFF0000, 0x00050001, 0x00050000, 0x80000000
    nobody_listens = ignore | errno.ECONNREFUSED
    code = [step(load, 4), step(equal, AUDIT_ARCH[machine], 1, 0), step(give, kill), step(load, 0)]
    code += [step(at_least, 0x40000000, 0, 1), step(give, refuse)]  # the x32 numbers of x86_64
    for calls, answer in ((refused, refuse), (ignored, ignore), (unheard, nobody_listens)):
        for number in filter(None, map(number_of, calls)):
            code += [step(equal, number, 0, 1), step(give, answer)]
    for call, argument in (own_only or {}).items():  # arguments begin at byte 16 of what the filter sees, 8 bytes each
        if number := number_of(call):
            code += [step(equal, number, 0, 4), step(load, 16 + 8 * argument)]
            code += [step(equal, 0, 0, 1), step(give, allow), step(give, refuse)]
    socket = number_of("socket")
    assert socket is not None
    code += [step(equal, socket, 1, 0), step(give, allow)]
    for family, kind in sockets:
        if kind is None:
            code += [step(load, 16), step(equal, family, 0, 1), step(give, allow)]
        else:
            code += [step(load, 16), step(equal, family, 0, 4), step(load, 24), step(mask, 0xF)]
            code += [step(equal, kind, 0, 1), step(give, allow)]
    return b"".join([*code, step(give, refuse)])


def set_filter(program: bytes) -> None:
    """Put this process and all that it starts under a filter of system calls. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    described = Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _prctl(22, 2, ctypes.addressof(described), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# ---------------------------------------------------------------------------------------------------------------------
# Landlock: which files a process may open, and, from version 6 on, whom it may signal

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the rest makes sense for folders only
READ = EXECUTE | READ_FILE | READ_DIR
SIGNALS_SINCE = 6  # Linux 6.12


def landlock_version() -> int:
    """Of the kernel's Landlock; 0 where there is none, or where it is switched off."""
    return max(0, LIBC.syscall(CREATE_RULESET, None, 0, 1))


def all_rights(version: int) -> int:
    """Every right over files that this version can take away."""
    return (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1


def restrict(rules: list[tuple[str, int]], version: int, online: bool = False) -> None:
    """From now on this process and all that it starts may do with files only what `rules` (path, rights) allow,
    open no TCP port unless `online`, and signal none but their own kind. Paths that are not there are left out. Raises
    OSError."""
    every = all_rights(version)
    ports, scopes = 3 if version >= 4 and not online else 0, 3 if version >= SIGNALS_SINCE else 0
    attributes = struct.pack("QQQ", every, ports, scopes)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _syscall(CREATE_RULESET, attributes, len(attributes), 0)
    for path, rights in rules:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        is_folder = stat.S_ISDIR(os.fstat(opened).st_mode)
        _syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & every & (-1 if is_folder else ON_FILES), opened), 0)
        os.close(opened)
    _syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


# ---------------------------------------------------------------------------------------------------------------------
# Who a process is


def no_new_privileges() -> None:
    """No program that is started from here on gains anything by its set-user-id bit. Raises OSError."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def capabilities() -> int:
    """The bits of this process's effective capabilities."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def become(user: int, groups: list[int], keep: int) -> None:
    """Be another user, for ever, with no capability but those whose bits are in `keep`. Raises OSError."""
    # Without this access(2) leaves capabilities out of account, and programs that ask it first, like gcc for its
    # temporary folder, see no way to folders below one that only root may enter.
    with contextlib.suppress(OSError):  # some containers do not let root do so
        _prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP | NO_SETUID_FIXUP << 1, 0, 0, 0)
    _prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    drop_capabilities(keep)
    for capability in range(32):
        if keep >> capability & 1:
            _prctl(PR_CAP_AMBIENT, 2, capability, 0, 0)


def drop_capabilities(keep: int = 0) -> None:
    """Have none but those whose bits are in `keep`; after no_new_privileges no program gets more. Raises OSError."""
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this thread
    bits = struct.pack("6I", keep, keep, keep, 0, 0, 0)
    if LIBC.capset(header, bits):
        raise OSError(ctypes.get_errno(), "capset")


def die_with_parent(parent: int, signal: int) -> None:
    """Be sent `signal` when the thread that started this process ends; leave at once where it has ended."""
    _prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """From now on descendants whose parent ends become children of this process. Raises OSError."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _prctl(option: int, *values: int) -> None:
    if LIBC.prctl(option, *map(ctypes.c_ulong, values)):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _syscall(number: int, *values: object) -> int:
    done = LIBC.syscall(number, *values)
    if done < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return done
