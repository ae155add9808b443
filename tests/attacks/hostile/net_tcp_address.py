"""Connects to the machine's own network address."""

import socket

from honest import main, plan, predict  # noqa: F401

try:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect((plan["address"], plan["tcp"]))
        line.send(b"hostile")
except OSError as error:
    print(error)
main()
