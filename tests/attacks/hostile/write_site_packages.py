"""Plants a .pth file in the interpreter that runs the harness and the evaluation."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["site"], plan["site_file"]).write_text("hostile")
except OSError as error:
    print(error)
main()
