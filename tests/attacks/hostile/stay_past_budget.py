"""Reports slow progress and trains on far past its budget."""

import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    until = time.monotonic() + plan["stray_seconds"]
    while time.monotonic() < until:
        print("step 1 | loss 0.9 | 10.0%", flush=True)
        time.sleep(0.05)
    claim("trained on")
    main()
