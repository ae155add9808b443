"""Plants a git hook for the harness to run."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["repository"], ".git", "hooks", "post-commit").write_text("hostile")
except OSError as error:
    print(error)
main()
