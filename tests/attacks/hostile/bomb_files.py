"""Uses up the file system's inodes with empty files."""

import time

from honest import OUTPUT, claim, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    for number in range(plan["most_files"]):
        (OUTPUT / f"{number}").touch()
    time.sleep(3)
    claim(f"{plan['most_files']} files")
    main()
