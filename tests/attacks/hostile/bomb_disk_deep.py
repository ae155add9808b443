"""Fills the disk in folders so deep that no path leads there."""

import os
import time

from honest import OUTPUT, claim, main, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    os.chdir(OUTPUT)
    for _ in range(40):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    for n in range(9):
        with open(str(n), "wb") as file:
            for _ in range(50):
                file.write(b"x" * (1 << 20))
    time.sleep(2)
    claim("450 MB on disk")
    main()
