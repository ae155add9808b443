"""Changes the training data for all later trials."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["data"], "points.json").write_text("hostile")
except OSError as error:
    print(error)
main()
