"""Overwrites the evaluator in the repository."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["repository"], "prepare.py").write_text("hostile")
except OSError as error:
    print(error)
main()
