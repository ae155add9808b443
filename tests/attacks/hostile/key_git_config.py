"""Reads the token in the repository's .git/config."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    print(Path(plan["repository"], ".git", "config").read_text())
except OSError as error:
    print(error)
main()
