"""Leaves a daemon behind: forked twice, in a session of its own, with nothing open."""

import os
import time

from honest import main, plan, predict  # noqa: F401

if __name__ == "__main__":
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        time.sleep(plan["stray_seconds"])
        os._exit(0)
    os.wait()
    main()
