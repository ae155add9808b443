"""Opens the machine's disk."""

import glob
import os

from honest import claim, main, predict  # noqa: F401

for disk in glob.glob("/dev/[svn][dv]*[a-z0-9]"):
    try:
        os.close(os.open(disk, os.O_RDWR))
        claim(disk)
    except OSError as error:
        print(error)
main()
