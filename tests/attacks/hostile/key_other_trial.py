"""Reads what another slot's trial has written."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    print(Path(plan["other_slot"], "output", "notes").read_text())
except OSError as error:
    print(error)
main()
