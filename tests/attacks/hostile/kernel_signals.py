"""Lets as many signals wait, and sets as many timers, as the kernel gives a user."""

import ctypes
import os
import signal

from honest import claim, main, predict  # noqa: F401

if __name__ == "__main__":
    print("step 0 | loss 1.0 | 0.0%", flush=True)
    libc, waiting, timers = ctypes.CDLL(None, use_errno=True), 0, 0
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    while waiting < 20000 and libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), ctypes.c_void_p(0)) == 0:
        waiting += 1
    timer = ctypes.c_void_p()
    while timers < 20000 and libc.timer_create(0, None, ctypes.byref(timer)) == 0:
        timers += 1
    if waiting + timers > 8192:
        claim(f"{waiting} signals and {timers} timers")
    main()
