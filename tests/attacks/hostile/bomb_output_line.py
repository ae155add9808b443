"""Prints one line without end."""

import sys

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    for _ in range(100):
        sys.stdout.write("x" * 262144)
    print()
    main()
