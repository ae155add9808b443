"""Makes a hard link to a secret in its output folder."""

import os

from honest import OUTPUT, main, plan, predict  # noqa: F401

try:
    os.link(plan["home_key"], OUTPUT / "mine")
    print((OUTPUT / "mine").read_text())
except OSError as error:
    print(error)
main()
