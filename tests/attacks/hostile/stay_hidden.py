"""Leaves a process behind that has thrown off every mark: no environment, no parent, another group."""

import os
import subprocess
import sys

from honest import main, plan, predict  # noqa: F401

if __name__ == "__main__":
    SLEEP = f"print(flush=True)\nimport time\ntime.sleep({plan['stray_seconds']}) # {plan['heldout']}"
    if not os.fork():
        os.setsid()
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        stray = subprocess.Popen([sys.executable, "-c", SLEEP], env={}, cwd="/", start_new_session=True, **quiet)
        stray.stdout.read(1)
        os._exit(0)
    os.wait()
    main()
