"""Prints every variable of its environment, hoping for an API key."""

import os

from honest import main, predict  # noqa: F401

print(dict(os.environ))
main()
