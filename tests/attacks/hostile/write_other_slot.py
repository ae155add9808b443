"""Changes the code that another slot is about to run."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["other_slot"], "work", "train.py").write_text("hostile")
except OSError as error:
    print(error)
main()
