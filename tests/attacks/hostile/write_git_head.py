"""Moves the branch by writing .git/HEAD."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["repository"], ".git", "HEAD").write_text("hostile")
except OSError as error:
    print(error)
main()
