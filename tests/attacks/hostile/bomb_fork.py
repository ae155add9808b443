"""Forks without end."""

import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    count = 0
    while count < plan["most_processes"]:
        count += 1
        if not os.fork():
            time.sleep(plan["stray_seconds"])
            os._exit(0)
    claim(f"{count} processes at once")
    main()
