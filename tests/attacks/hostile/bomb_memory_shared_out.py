"""Takes memory in many processes, each below the limit of one."""

import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    for _ in range(plan["most_megabytes"] // 100):
        if not os.fork():
            mine = b"x" * (100 << 20)
            time.sleep(plan["stray_seconds"])
            os._exit(len(mine) & 1)
    time.sleep(3)
    claim(f"{plan['most_megabytes']} MB")
    main()
