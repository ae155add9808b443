"""Fills a file without a name, which lies in memory and is mapped by no process."""

import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    held = [os.memfd_create(str(n)) for n in range(plan["most_megabytes"] // 100)]
    for file in held:
        for _ in range(100):
            os.write(file, b"x" * (1 << 20))
    time.sleep(2)
    claim(f"{plan['most_megabytes']} MB")
    main()
