"""Plants a start-up file in the home folder."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["home_file"]).write_text("hostile")
except OSError as error:
    print(error)
main()
