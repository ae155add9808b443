"""Reads hidden files in the home folder."""

from pathlib import Path

from honest import main, predict  # noqa: F401

for path in Path.home().glob(".arena-*"):
    print(path, path.read_text(errors="replace"))
main()
