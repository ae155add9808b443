"""Prints bytes that are no text."""

import sys

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    sys.stdout.buffer.write(bytes(range(256)) * 64 + b"\n")
    sys.stdout.flush()
    main()
    raise SystemExit(1)
