"""Fills the disk in a folder that nobody may read."""

import time

from honest import OUTPUT, claim, main, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    folder = OUTPUT / "closed"
    folder.mkdir()
    folder.chmod(0o300)
    for n in range(9):
        with open(folder / str(n), "wb") as file:
            for _ in range(50):
                file.write(b"x" * (1 << 20))
    time.sleep(2)
    claim("450 MB on disk")
    main()
