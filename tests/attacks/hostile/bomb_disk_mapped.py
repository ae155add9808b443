"""Fills the disk by files that have no name and no descriptor any more, but are mapped."""

import mmap
import time

from honest import OUTPUT, claim, main, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    held = []
    for n in range(9):
        path = OUTPUT / str(n)
        with open(path, "w+b") as file:
            for _ in range(50):
                file.write(b"x" * (1 << 20))
            held.append(mmap.mmap(file.fileno(), 50 << 20))
        path.unlink()
    time.sleep(2)
    claim("450 MB on disk")
    main()
