"""The second wall: becomes a command that may open only what was named, where namespaces can't be had.

Run as a script, isolated: `python -I -S wall.py SPEC_JSON COMMAND...`. The order matters: paths are opened as the
user who started the loop, then the user changes, and the filter of system calls comes last. See landlock.py for
who writes the spec, and docs/SECURITY.md for what this wall holds and what it does not.
"""

from __future__ import annotations

import json
import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from agent.run import syscalls  # noqa: E402


def main() -> None:
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    user = int(os.environ.pop("WALL_USER", "-1"))
    os.chdir(spec["workdir"])
    os.umask(0o022)
    version = syscalls.landlock_version()
    every = syscalls.all_rights(version)
    writable = every & ~syscalls.EXECUTE | syscalls.EXECUTE  # all of it: compilers run what they have just made
    device = syscalls.READ_FILE | syscalls.WRITE_FILE | syscalls.IOCTL_DEV
    rules = [(path, syscalls.READ) for path in spec["read"]] + [(path, writable) for path in spec["write"]]
    rules += [(path, device) for path in spec["devices"]]
    # threads name themselves there, and CUDA does not start where they can't
    own = f"/proc/{os.getpid()}" if spec["capabilities"] & 1 << syscalls.CAP_DAC_OVERRIDE else "/proc"
    rules += [("/proc", syscalls.READ), (own, syscalls.READ | syscalls.WRITE_FILE | syscalls.TRUNCATE)]
    syscalls.no_new_privileges()
    if user >= 0:
        with_landlock_first = spec["capabilities"]
        syscalls.restrict(rules, version)
        syscalls.become(user, spec["groups"], with_landlock_first)
        ignored: tuple[str, ...] = ()
    else:
        syscalls.restrict(rules, version)
        ignored = syscalls.CHANGES_OF_MODE
    refused = syscalls.ALWAYS_REFUSED + syscalls.WITHOUT_NAMESPACES
    syscalls.set_filter(syscalls.seccomp_filter(refused, tuple(spec["families"]), ignored))
    try:
        os.execvpe(command[0], command, spec["environment"])
    except OSError as error:
        sys.exit(f"sandbox: {command[0]} does not start: {error.strerror}")


if __name__ == "__main__":
    main()
