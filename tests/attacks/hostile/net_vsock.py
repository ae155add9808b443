"""Opens a vsock, which reaches a virtual machine's host past the network namespace."""

import socket

from honest import claim, main, predict  # noqa: F401

try:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM):
        claim("a vsock")
except OSError as error:
    print(error)
main()
