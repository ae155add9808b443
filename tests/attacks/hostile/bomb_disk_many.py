"""Writes many files, each below the limit of one."""

import time

from honest import OUTPUT, claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    for number in range(plan["most_megabytes"] // 20):
        (OUTPUT / f"part{number}").write_bytes(b"x" * (20 << 20))
    time.sleep(3)
    claim(f"{plan['most_megabytes']} MB")
    main()
