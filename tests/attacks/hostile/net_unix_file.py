"""Talks to a service over its socket file, as one does with docker.sock."""

import socket

from honest import main, plan, predict  # noqa: F401

try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect(plan["unix"])
        line.send(b"hostile")
except OSError as error:
    print(error)
main()
