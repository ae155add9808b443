"""Takes its own memory, /tmp and /dev/shm together, each below its own limit."""

import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    written = 0
    for folder in ("/tmp", "/dev/shm"):
        try:
            with open(os.path.join(folder, os.path.basename(plan["shm_file"])), "wb") as file:
                for _ in range(60):
                    written += file.write(b"x" * (1 << 20)) >> 20
        except OSError as error:
            print(error)
    mine = [b"x" * (10 << 20) for _ in range(35)]
    time.sleep(2)
    if written >= 60:
        claim(f"{written} MB of files and {10 * len(mine)} MB")
    main()
