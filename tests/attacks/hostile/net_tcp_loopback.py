"""Connects to a server on the machine's loopback."""

import socket

from honest import main, plan, predict  # noqa: F401

try:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect(("127.0.0.1", plan["tcp"]))
        line.send(b"hostile")
except OSError as error:
    print(error)
main()
