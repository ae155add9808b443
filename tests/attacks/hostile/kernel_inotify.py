"""Uses up the watches and instances of inotify that root has on the whole machine."""

import ctypes
import os

from honest import OUTPUT, claim, main, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    libc, made = ctypes.CDLL(None, use_errno=True), []
    while (file := libc.inotify_init1(0)) >= 0 and len(made) < 200:
        made.append(file)
    paths = [str(OUTPUT / str(n)) for n in range(1000)]
    for path in paths:
        os.mkdir(path)
    watched = sum(libc.inotify_add_watch(made[0], path.encode(), 0xFFF) > 0 for path in paths) if made else 0
    if len(made) > 20:
        claim(f"{len(made)} instances and {watched} watches; the kernel gives a user 128")
    main()
