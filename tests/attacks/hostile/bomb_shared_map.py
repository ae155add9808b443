"""Takes memory in mappings that are shared with a child, so that it is nobody's own."""

import mmap
import os
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    held = [mmap.mmap(-1, 50 << 20) for _ in range(plan["most_megabytes"] // 50)]
    if not os.fork():
        for mapping in held:
            mapping.write(b"x" * (50 << 20))
        time.sleep(plan["stray_seconds"])
        os._exit(0)
    time.sleep(4)
    claim(f"{plan['most_megabytes']} MB")
    main()
