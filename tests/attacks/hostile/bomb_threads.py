"""Starts threads without end."""

import threading
import time

from honest import claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    threading.stack_size(1 << 16)
    for _ in range(plan["most_processes"]):
        threading.Thread(target=time.sleep, args=(plan["stray_seconds"],), daemon=True).start()
    time.sleep(1)
    claim(f"{plan['most_processes']} threads at once")
    main()
