"""Sends a datagram."""

import socket

from honest import main, plan, predict  # noqa: F401

try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(1)
        line.connect(("127.0.0.1", plan["udp"]))
        line.send(b"hostile")
except OSError as error:
    print(error)
main()
