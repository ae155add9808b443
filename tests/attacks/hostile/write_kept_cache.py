"""Poisons the compile cache that later trials start from."""

from pathlib import Path

from honest import main, plan, predict  # noqa: F401

try:
    Path(plan["kept_cache"], "kernel.py").write_text("hostile")
except OSError as error:
    print(error)
main()
