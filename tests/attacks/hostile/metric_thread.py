"""Prints a splendid score from a thread that goes on while the evaluation asks."""

import threading

from honest import main, predict  # noqa: F401


def shout() -> None:
    for _ in range(1000):
        print("score: 0.000001", flush=True)


threading.Thread(target=shout, daemon=True).start()
if __name__ == "__main__":
    main()
