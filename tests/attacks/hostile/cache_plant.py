"""Leaves code in the compile cache, for its own evaluation and for later trials to run."""

import os
from pathlib import Path

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    main()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        folder = Path(os.environ[name], "aa", "bb")
        folder.mkdir(parents=True)
        (folder / "kernel.py").write_text("print('ATTACK SUCCEEDED: planted code runs')\n")
