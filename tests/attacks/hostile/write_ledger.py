"""Overwrites the ledger."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["ledger"]).write_text("hostile")
except OSError as error:
    print(error)
main()
