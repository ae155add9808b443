"""Repositories in the form of the original autoresearch: program.md is prose alone, the agent edits train.py,
prepare.py holds data and evaluation, and train.py prints `val_bpb: <number>` at its end. They run as they are: what a
front matter would say is taken from the files.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

CACHE = re.compile(r"\.cache['\"/, ]+autoresearch")
KERNELS = re.compile(r"(?m)^\s*(?:from|import) kernels\b|get_kernel\(|huggingface_hub")
PRINTED = re.compile(r"""print\(f?["']\s*val_bpb\s*:""")
DATA = "~/.cache/autoresearch"
HUB = "~/.cache/huggingface/hub"  # not the folder above it, which holds the person's token


def is_original(project: Path) -> bool:
    """Whether program.md has no front matter, and train.py and prepare.py stand beside it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        prose = not (project / "program.md").read_text(encoding="utf-8").startswith("---")
        return prose and all((project / name).is_file() for name in ("train.py", "prepare.py"))
    return False


def defaults(project: Path) -> dict[str, Any]:
    """The contract of such a repository, which flags go over; {} for any other."""
    if not is_original(project):
        return {}
    train, prepare = (text(project / name) for name in ("train.py", "prepare.py"))
    contract: dict[str, Any] = {"edit": ["train.py"], "protect": ["prepare.py"], "run": "python train.py"}
    if (project / "uv.lock").is_file():
        contract["run"] = "uv run train.py"
    if PRINTED.search(train):
        contract["metric"] = {"name": "val_bpb", "direction": "minimize"}
    data = [DATA] if CACHE.search(prepare) else []
    contract["data"] = [*data, *([HUB] if KERNELS.search(train) or KERNELS.search(prepare) else [])]
    return contract


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
