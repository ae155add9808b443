"""Forks without end, every child too."""

import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    for _ in range(plan["most_processes"].bit_length()):
        os.fork()
    time.sleep(2)
    claim(f"{plan['most_processes']} processes at once")
