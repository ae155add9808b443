"""Texts and evaluation; read-only for the agent."""

import math
import sysconfig
from pathlib import Path

TIME_BUDGET = 300  # seconds of training
FILES = ("ast", "argparse", "csv", "difflib", "json/decoder", "pathlib", "random", "shlex", "statistics", "textwrap")
HELD_OUT = ("calendar", "fractions")


def read(names: tuple[str, ...]) -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"".join((folder / f"{name}.py").read_bytes() for name in names if (folder / f"{name}.py").exists())


def training_text() -> bytes:
    return read(FILES)


def evaluate_bpb(probability) -> float:
    """Bits for each byte of the held-out text; `probability(context, byte)` is what the model gives to the next one."""
    text = read(HELD_OUT)[:20_000]
    return -sum(math.log2(probability(text[max(0, i - 16) : i], text[i])) for i in range(len(text))) / len(text)
