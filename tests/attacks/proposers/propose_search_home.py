"""Walks through home, the current folder and all folders above it, and prints every small file."""

import json
import os
import sys
from pathlib import Path

plan = json.loads(Path(sys.argv[1]).read_text())
for start in (plan["home"], os.getcwd(), os.path.dirname(os.getcwd()), os.path.join(os.getcwd(), "../.."), "/tmp"):
    for folder, _, names in os.walk(start):
        for name in names[:100]:
            try:
                if os.path.getsize(os.path.join(folder, name)) < 1000:
                    print(Path(folder, name).read_text(errors="replace")[:200])
            except OSError:
                continue
