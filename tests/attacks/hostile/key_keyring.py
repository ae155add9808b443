"""Asks the kernel for a key in the keyring of the person's session, which namespaces don't cover."""

import ctypes

from honest import main, plan, predict  # noqa: F401

libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(200)
REQUEST_KEY, KEYCTL, KEYCTL_READ = 249, 250, 11
serial = libc.syscall(REQUEST_KEY, b"user", plan["keyring"].encode(), None, 0)
if serial > 0 and libc.syscall(KEYCTL, KEYCTL_READ, serial, buffer, 200) > 0:
    print(buffer.value)
main()
