"""Runs a command in a room of its own, beside this one: `python ask_for_room.py FOLDER COMMAND...`

The evaluation puts this before each command that runs code of the model (see model_rooms.py). The command gets this
process's open files; when this process is asked to end (SIGTERM) or is killed, the command and all of its room end,
and after SIGTERM this process exits only when they have. Imports the standard library only.
"""

import array
import json
import os
import select
import signal
import socket
import struct
import sys


def main() -> int:
    folder, argv = sys.argv[1], sys.argv[2:]
    wake, ask = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"x"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as rooms:
        mine = {wake, ask, rooms.fileno()}
        files = [int(name) for name in os.listdir("/proc/self/fd")]
        files = sorted(file for file in files if file not in mine and is_open(file))
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)
        rooms.connect("rooms")
        os.fchdir(here)
        text = json.dumps({"argv": argv, "files": files}).encode()
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        rooms.sendmsg([struct.pack("I", len(text))], passed)
        rooms.sendall(text)
        if wake in select.select([rooms, wake], [], [])[0]:
            rooms.shutdown(socket.SHUT_WR)
        answer = json.loads(rooms.recv(65536) or b'{"error": "the harness has gone"}')
    if "error" in answer:
        print(f"sandbox: no room for the model: {answer['error']}", file=sys.stderr)
        return 127
    return answer["code"] if answer["code"] >= 0 else 128 - answer["code"]


def is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
