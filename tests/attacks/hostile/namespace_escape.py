"""Makes a user namespace of its own to become root in it and mount things."""

import ctypes

from honest import claim, main, predict  # noqa: F401

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0:
    claim("a namespace")
main()
