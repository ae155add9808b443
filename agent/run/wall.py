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
    syscalls.restrict(rules(spec), syscalls.landlock_version())
    if user >= 0:
        syscalls.become(user, spec["groups"], spec["capabilities"])
    refused = syscalls.ALWAYS_REFUSED + syscalls.WITHOUT_NAMESPACES
    unheard = () if spec["connects"] else syscalls.CONNECTING
    sockets = syscalls.LOCAL if spec["connects"] else syscalls.UNCONNECTED
    ignored = () if user >= 0 else syscalls.CHANGES_OF_MODE  # another user can't change the person's files anyway
    syscalls.set_filter(syscalls.seccomp_filter(refused, sockets, ignored, unheard))
    try:
        os.execvpe(command[0], command, spec["environment"])
    except OSError as error:
        sys.exit(f"sandbox: {command[0]} does not start: {error.strerror}")


def rules(spec: dict) -> list[tuple[str, int]]:
    """Landlock's rules. /proc may be written where that reaches only the command's own processes: threads name
    themselves there, and CUDA does not start where they can't."""
    everything = syscalls.all_rights(syscalls.landlock_version())
    device = syscalls.READ_FILE | syscalls.WRITE_FILE | syscalls.TRUNCATE | syscalls.IOCTL_DEV
    override = spec["capabilities"] >> syscalls.CAP_DAC_OVERRIDE & 1  # would open the machine's own settings
    own = f"/proc/{os.getpid()}" if override else "/proc"
    return [
        *((path, syscalls.READ) for path in [*spec["read"], "/proc"]),
        *((path, everything) for path in spec["write"]),
        *((path, device) for path in spec["devices"]),
        (own, syscalls.READ | syscalls.WRITE_FILE | syscalls.TRUNCATE),
    ]


if __name__ == "__main__":
    main()
