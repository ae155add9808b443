"""The second wall: becomes a command that can open only what was named, where namespaces can't be had.

Run as a script, isolated: `python -I -S wall.py SPEC_JSON COMMAND...`. landlock.py writes the spec; docs/SECURITY.md
says what this wall holds and what it does not.
"""

from __future__ import annotations

import json
import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agent.run import syscalls  # noqa: E402


def main() -> None:
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    user = int(os.environ.get(syscalls.USER, "-1"))
    os.chdir(spec["workdir"])
    os.umask(0o022)
    syscalls.no_new_privileges()
    syscalls.restrict(rules(spec, user), syscalls.landlock_version(), online=spec["online"])
    if user >= 0:
        syscalls.become(user, spec["groups"], spec["capabilities"])
    else:
        syscalls.drop_capabilities()
    refused = syscalls.ALWAYS_REFUSED + syscalls.WITHOUT_NAMESPACES
    refused += () if spec["online"] else syscalls.COUNTED_FOR_A_USER
    unheard = () if spec["connects"] or spec["online"] else syscalls.CONNECTING
    sockets = syscalls.INTERNET if spec["online"] else syscalls.LOCAL if spec["connects"] else syscalls.UNCONNECTED
    # another user can't change the person's files and processes anyway
    ignored, own_only = ((), {}) if user >= 0 else (syscalls.CHANGES_OF_MODE, syscalls.OF_A_PROCESS)
    syscalls.set_filter(syscalls.seccomp_filter(refused, sockets, ignored, unheard, own_only))
    environment = {**os.environ, **spec["environment"]} if spec["online"] else spec["environment"]
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        sys.exit(f"sandbox: {command[0]} does not start: {error.strerror}")


def rules(spec: dict, user: int) -> list[tuple[str, int]]:
    """Landlock's rules. /proc may be written where that reaches only the command's own processes: threads name
    themselves there, and CUDA does not start where they can't."""
    everything = syscalls.all_rights(syscalls.landlock_version())
    device = syscalls.READ_FILE | syscalls.WRITE_FILE | syscalls.TRUNCATE | syscalls.IOCTL_DEV
    # with this capability the machine's own settings were open, and without another user those of other processes
    override = spec["capabilities"] >> syscalls.CAP_DAC_OVERRIDE & 1
    own = "/proc" if user >= 0 and not override else f"/proc/{os.getpid()}"
    read = [os.path.join(folder, name) for folder, names in spec["read"].items() for name in names]
    return [
        *((path, syscalls.READ) for path in [*read, "/proc"]),
        *((path, syscalls.READ_DIR) for path in spec["list"]),
        *((path, everything) for path in spec["write"]),
        *((path, device) for path in spec["devices"]),
        (own, syscalls.READ | syscalls.WRITE_FILE | syscalls.TRUNCATE),
    ]


if __name__ == "__main__":
    main()
