"""Reads the machine's password hashes."""

from honest import claim, main, predict  # noqa: F401

try:
    with open("/etc/shadow") as file:
        claim(f"{len(file.read())} bytes of /etc/shadow")
except OSError as error:
    print(error)
main()
