"""Reads the command line of every process that it can see."""

import glob

from honest import main, predict  # noqa: F401

for path in glob.glob("/proc/[0-9]*/cmdline"):
    with open(path, "rb") as file:
        print(file.read())
main()
