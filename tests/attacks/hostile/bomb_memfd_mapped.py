"""Fills files without a name, keeps one page of each mapped and no descriptor."""

import mmap
import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    held = []
    for n in range(plan["most_megabytes"] // 10):
        file = os.memfd_create(str(n))
        os.write(file, b"x" * (10 << 20))
        held.append(mmap.mmap(file, 4096))
        os.close(file)
    time.sleep(2)
    claim(f"{plan['most_megabytes']} MB")
    main()
