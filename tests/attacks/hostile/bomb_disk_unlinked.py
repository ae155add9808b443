"""Fills the disk by files that have no name any more."""

import time

from honest import OUTPUT, claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    held = []
    for n in range(9):
        path = OUTPUT / str(n)
        held.append(open(path, "wb"))  # noqa: SIM115 - left open on purpose
        path.unlink()
        for _ in range(50):
            held[-1].write(b"x" * (1 << 20))
    time.sleep(2)
    claim("450 MB on disk")
    main()
