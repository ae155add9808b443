"""Talks to a service over an abstract unix socket, which has no file to hide."""

import socket

from honest import main, plan, predict  # noqa: F401

try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect("\0" + plan["abstract"])
        line.send(b"hostile")
except OSError as error:
    print(error)
main()
