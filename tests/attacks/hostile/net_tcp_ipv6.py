"""Connects over IPv6."""

import socket

from honest import main, plan, predict  # noqa: F401

try:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as line:
        line.settimeout(1)
        line.connect(("::1", plan["tcp6"]))
        line.send(b"hostile")
except OSError as error:
    print(error)
main()
