"""The half of the research target that nobody edits: what train.py is given (data, seed, budget), and two commands.

    python prepare.py                        the corpus that needs no download: the Python source on this machine
    python prepare.py --source tinystories   or climbmix, fineweb-edu, or a folder or glob of text, Parquet, JSONL
    python prepare.py evaluate               the validation loss of the model that train.py saved (evaluation.py)

train.py imports this file for `TrainData` and `Budget`, and must offer one thing itself: `load_model(path, device)`,
which returns a callable from tokens (B, T) to logits (B, T, V).

Environment: RESEARCH_SEED, RESEARCH_BUDGET_SECONDS, RESEARCH_BUDGET_TOKENS, RESEARCH_OUTPUT, RESEARCH_DATA (the
data_hash of the prepared data to use; without it the last prepared), RESEARCH_FEED (set where the data comes by stdin,
from `python prepare.py feed`, and lies nowhere to be read), RESEARCH_MODEL_SANDBOX (a JSON list put before the
commands that run the model), RESEARCH_INCUMBENT (the bits per byte to beat: by them the evaluation chooses how deep it
probes), RESEARCH_LOAD_SECONDS (in which a model must be loaded and have answered once), OVERNIGHT_CACHE (an absolute
path).
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
if __name__ == "__main__":  # a json.py that appears beside this file must not become our json
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or ".") not in (HERE, os.getcwd())]
    sys.modules["prepare"] = sys.modules["__main__"]  # what the files beside it import is this very module

import argparse
import contextlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


def refuse(reason: str) -> NoReturn:
    """End with one line and exit code 2: where a setting makes no sense, while nothing can catch an error yet."""
    print(f"{os.path.basename(sys.argv[0])}: {reason}", file=sys.stderr)
    sys.exit(2)


def setting(name: str, kind: Callable[[str], float], least: float, example: str) -> Any:
    """The number in an environment variable, or None where there is none."""
    if not (text := os.environ.get(name)):
        return None
    with contextlib.suppress(ValueError):
        if least <= (value := kind(text)) < math.inf:
            return value
    refuse(f"{name}={text}: needs a number of at least {least:g}, like {example}")


def absolute(name: str, otherwise: Path) -> Path:
    """The folder in an environment variable, which trials in other folders have to find too."""
    path = Path(os.environ.get(name) or otherwise).expanduser()
    return path if path.is_absolute() else refuse(f"{name}={path}: needs an absolute path, like {path.absolute()}")


CACHE = absolute("OVERNIGHT_CACHE", Path.home() / ".cache" / "overnight")
TRAIN, HELDOUT = CACHE / "train", CACHE / "heldout"  # what training may read, and what it may not
OUTPUT = absolute("RESEARCH_OUTPUT", CACHE / "out")
CHECKPOINT, TRAINED_ON = OUTPUT / "model.safetensors", OUTPUT / "trained_on"
SEED: int = setting("RESEARCH_SEED", int, 0, "1") or 0
SECONDS: float | None = setting("RESEARCH_BUDGET_SECONDS", float, 0.001, "300")
TOKENS: int | None = setting("RESEARCH_BUDGET_TOKENS", int, 1, "96000")
LOAD_SECONDS: float | None = setting("RESEARCH_LOAD_SECONDS", float, 0.001, "30")

# What a model is measured on, by device: (vocabulary, context in tokens).
SHAPE = {"cpu": (2048, 256), "cuda": (8192, 2048)}
DEFAULT_TOKENS = 262_144  # on a CPU, where wall time is noise: about 20 s of training on two cores
DEFAULT_SECONDS = 300.0  # on a GPU


class UserError(Exception):
    """Something the person can put right: printed as one line, exit code 2."""


def device_name() -> str:
    """`cuda` where torch sees a GPU, else `cpu`."""
    if not any(os.path.exists(f"/dev/{name}") for name in ("nvidiactl", "kfd", "dxg")):
        return "cpu"  # without a second or two for importing torch
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def read_meta(root: Path, key: str | None = None) -> dict[str, Any]:
    """The meta data of a prepared source: by default of the one that RESEARCH_DATA names by its hash, so that what is
    prepared in the middle of a night changes nothing in it; else of the last prepared. Raises UserError when there is
    none."""
    key = key or os.environ.get("RESEARCH_DATA")
    try:
        return json.loads((root / (key or (root / "current").read_text().strip()) / "meta.json").read_text())
    except FileNotFoundError as error:
        wanted = f"data {key}" if key else "data"
        raise UserError(f"no {wanted} under {root}: run `python prepare.py` first") from error


# ---------------------------------------------------------------------------------------------------------------------
# What train.py uses


FED = bool(os.environ.get("RESEARCH_FEED"))  # the data comes by stdin
MORE = 1.05  # so many times its budget is fed to a training, for the last batch not to be cut


def shuffled_rows(meta: dict[str, Any]) -> Iterator[np.ndarray]:
    """The train split without end, in rows of `context` tokens and the one after: each pass cuts the stream at a fresh
    offset and shuffles the rows, by the seed."""
    tokens = np.memmap(TRAIN / meta["key"] / "train.bin", dtype=meta["dtype"], mode="r")
    context, rng = meta["context"], np.random.default_rng(SEED)
    while True:
        starts = np.arange(rng.integers(context), len(tokens) - context, context)
        for start in rng.permutation(starts).tolist():
            yield tokens[start : start + context + 1]


def feed() -> None:
    """Hand the train split to a training: what it is at once, as a line of JSON; and when stdin says that the budget
    starts, the line `go` and the rows, as many as the budget in tokens allows, or as it lasts."""
    meta, out = read_meta(TRAIN), sys.stdout.buffer
    told = {name: meta[name] for name in ("vocab_size", "context", "bos", "dtype", "data_hash")}
    with contextlib.suppress(BrokenPipeError):
        out.write(json.dumps(told).encode() + b"\n")
        out.flush()
        if not sys.stdin.readline():
            return
        out.write(b"go\n")
        until, left = time.monotonic() + MORE * budget_seconds(), MORE * (TOKENS or math.inf)
        for row in shuffled_rows(meta):
            out.write(row.tobytes())
            left -= meta["context"]
            if left <= 0 or time.monotonic() > until:
                break
        out.flush()


class TrainData:
    """The train split of the source in use, and its tokenizer's shape. Opens nothing of the held-out splits."""

    def __init__(self) -> None:
        meta = json.loads(sys.stdin.buffer.readline() or b"{}") if FED else read_meta(TRAIN)
        if not meta:
            raise UserError("there is no training data on stdin: `python prepare.py feed` has failed")
        self.vocab_size, self.context, self.bos = meta["vocab_size"], meta["context"], meta["bos"]
        self.data_hash = meta["data_hash"]
        self.rows = fed_rows(meta) if FED else shuffled_rows(meta)
        self.served = 0  # tokens handed out so far: what a budget in tokens is counted by
        self._note()

    def _note(self) -> None:
        """Write down which data is trained on, beside the model that comes of it."""
        OUTPUT.mkdir(parents=True, exist_ok=True)
        if not TRAINED_ON.exists() or TRAINED_ON.read_text() != self.data_hash:
            TRAINED_ON.write_text(self.data_hash)

    def batches(self, rows: int, length: int = 0) -> Iterator[np.ndarray]:
        """(rows, length + 1) int64 arrays, inputs [:, :-1] and targets [:, 1:], without end, or, where the data is fed,
        until the budget is used. `length`: the context of the evaluation, or a part of it, into which rows are cut."""
        length = length or self.context
        if self.context % length:
            raise UserError(f"batches of length {length}: the context of {self.context} can't be cut into such rows")
        waiting: list[np.ndarray] = []
        for row in self.rows:
            waiting += [row[start : start + length + 1] for start in range(0, self.context, length)]
            while len(waiting) >= rows:
                batch, waiting = waiting[:rows], waiting[rows:]
                self.served += rows * length
                yield np.stack(batch).astype(np.int64)


def fed_rows(meta: dict[str, Any]) -> Iterator[np.ndarray]:
    """The rows that come by stdin, until they end."""
    size = (meta["context"] + 1) * np.dtype(meta["dtype"]).itemsize
    while len(row := sys.stdin.buffer.read(size)) == size:
        yield np.frombuffer(row, dtype=meta["dtype"])


def budget_seconds() -> float:
    """The wall time that training may take; infinite by hand where the budget is in tokens."""
    return SECONDS or (math.inf if budget_tokens() else DEFAULT_SECONDS)


def budget_tokens() -> int | None:
    """The tokens that training may take, or None: then only the time counts."""
    return TOKENS or (DEFAULT_TOKENS if not SECONDS and device_name() == "cpu" else None)


class Budget:
    """How much of the training budget is used. Seconds, or tokens with the seconds as a cap on the wall time."""

    def __init__(self) -> None:
        self.seconds, self.tokens = budget_seconds(), budget_tokens()
        self.began = time.monotonic()

    def start(self) -> float:
        """Training begins now, or, where the data is fed, when the first of it is here: what came before was startup.
        Returns how long that took, in seconds."""
        startup = since_the_process_began()
        if FED:
            print("ready", flush=True)
            if not sys.stdin.buffer.readline():
                raise UserError("the training data has ended: `python prepare.py feed` has failed")
        self.began = time.monotonic()
        return startup

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def used(self, tokens: int) -> float:
        """The share used, from 0 to 1: of tokens where the budget is in tokens, so that a schedule is repeatable."""
        if self.elapsed >= self.seconds:
            return 1.0
        return min(1.0, tokens / self.tokens if self.tokens else self.elapsed / self.seconds)


def since_the_process_began() -> float:
    """Seconds, importing torch included."""
    with contextlib.suppress(OSError):
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.process_time()


def trained_on() -> str:
    """The data_hash of what the saved model was trained on; empty where nothing tells, as of a model that is older
    than the last training on other data."""
    with contextlib.suppress(FileNotFoundError):
        if TRAINED_ON.stat().st_mtime_ns <= CHECKPOINT.stat().st_mtime_ns:
            return TRAINED_ON.read_text()
    return ""


# ---------------------------------------------------------------------------------------------------------------------


def show(values: dict[str, Any]) -> None:
    """Print `name: value` lines."""
    for name, value in values.items():
        print(f"{name}: {value:.6f}" if isinstance(value, float) else f"{name}: {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the data, or evaluate the saved model.")
    commands = parser.add_subparsers(dest="command")
    parser.add_argument("--source", default="python", help="python (default, no download), climbmix, fineweb-edu, "
                        "tinystories, or a folder or glob of text, Parquet or JSONL files")
    parser.add_argument("--vocab-size", type=int, help=f"tokens in the vocabulary (default {SHAPE})")
    parser.add_argument("--context", type=int, help="tokens a row of the evaluation has")
    parser.add_argument("--shards", type=int, default=8, help="files to take of a public set (default 8)")
    evaluation = commands.add_parser("evaluate", help="bits per byte of the saved model")
    evaluation.add_argument("--split", choices=("val", "test"), default="val")
    evaluation.add_argument("--probe-seed", type=int, help="repeat the checks of an earlier evaluation")
    commands.add_parser("feed", help="the training data, to a training that reads it by its stdin")
    commands.add_parser("serve").add_argument("descriptors", type=int, nargs=3)
    args = parser.parse_args()
    for name, least in (("vocab_size", 257), ("context", 2), ("shards", 1), ("probe_seed", 0)):
        if (value := getattr(args, name, None)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: at least {least} is needed")
    if args.command == "serve":
        beside("evaluated_model").serve(*args.descriptors)
    elif args.command == "feed":
        feed()
    elif args.command == "evaluate":
        beside("evaluated_model", "evaluation").command(args.split, args.probe_seed)
    else:
        beside("cleaning", "documents", "corpus").command(args.source, args.vocab_size, args.context, args.shards)


def beside(*names: str) -> Any:
    """The modules of these names beside this file, wherever the search path leads: each after those that it needs. The
    last is returned."""
    for name in names:
        spec = importlib.util.spec_from_file_location(name, os.path.join(HERE, f"{name}.py"))
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[names[-1]]


def run(main: Callable[[], None]) -> None:
    """Call `main`; what the person can put right is said in one line, exit code 2; Ctrl-C is no traceback."""
    try:
        main()
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{os.path.basename(sys.argv[0])}: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run(main)
