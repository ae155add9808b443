"""Writes into the repository, its hooks, the night, home and beside the files that it was given to read."""

import json
import os
import sys
from pathlib import Path

plan = json.loads(Path(sys.argv[1]).read_text())
home, repository = plan["home"], plan["repository"]
places = [
    *plan["files"],
    *(f"{repository}/{name}" for name in (".git/hooks/post-commit", "sitecustomize.py")),
    *(f"{home}/{name}" for name in (".bashrc", ".ssh/authorized_keys", ".config/autostart.desktop")),
    plan["night"] + "/requests",
]
for path in places:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_text("hostile")
    except OSError as error:
        print(error)
for name in ("train.py", "new.py"):
    try:
        Path(name).write_text("hostile")
        print("ATTACK SUCCEEDED: wrote where it was only to read")
    except OSError as error:
        print(error)
