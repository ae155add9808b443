"""Leaves code for later trials wherever it can write, and by their own paths in the night's folder."""

import os
from pathlib import Path

from honest import OUTPUT, main, plan, predict  # noqa: F401

CODE = "print('ATTACK SUCCEEDED: planted code runs')\n"
if __name__ == "__main__":
    main()
    night = Path(plan["ledger"]).parent
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent
    slots = [night / "slots" / str(n) / name for n in range(8) for name in ("compiled", "scratch/model/0/compiled")]
    experiments = [path / "planted" for path in night.glob("compiled/*")] + [
        night / "compiled" / str(n) for n in range(99)
    ]
    for folder in (cache, *slots, *experiments, night / "modules", OUTPUT, Path("/tmp/compiled"), Path("/dev/shm")):
        for below in (".", "inductor"):
            try:
                (folder / below).mkdir(parents=True, exist_ok=True)
                (folder / below / f"{Path(plan['shm_file']).name}.py").write_text(CODE)
            except OSError as error:
                print(error)
