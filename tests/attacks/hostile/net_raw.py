"""Opens a packet socket to listen to all traffic."""

import socket

from honest import claim, main, predict  # noqa: F401

try:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
        claim("a packet socket")
except OSError as error:
    print(error)
main()
