"""Data, tokenizer, training budget and evaluation: the half of the research target that nobody edits.

    python prepare.py                        the corpus that needs no download: the Python source on this machine
    python prepare.py --source tinystories   or climbmix, fineweb-edu, or a folder or glob of text, Parquet, JSONL
    python prepare.py evaluate               the validation loss of the model that train.py saved

train.py imports this file for `TrainData` and `Budget`. The evaluation never imports train.py: it starts a child
process for that, hands it input tokens only, and computes the loss itself (see `evaluate`). The one thing train.py
must offer is `load_model(path, device)`, which returns a callable from tokens (B, T) to logits (B, T, V).

Environment: RESEARCH_SEED, RESEARCH_BUDGET_SECONDS, RESEARCH_BUDGET_TOKENS, RESEARCH_OUTPUT,
RESEARCH_MODEL_SANDBOX (a JSON list put before the command of that child), OVERNIGHT_CACHE.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__":  # a json.py that appears beside this file must not become our json
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") not in (HERE, os.getcwd())]

import argparse
import base64
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import mmap
import random
import secrets
import select
import shutil
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CACHE = Path(os.environ.get("OVERNIGHT_CACHE") or Path.home() / ".cache" / "overnight")
TRAIN, HELDOUT = CACHE / "train", CACHE / "heldout"  # what training may read, and what it may not
OUTPUT = Path(os.environ.get("RESEARCH_OUTPUT") or CACHE / "out")
CHECKPOINT = OUTPUT / "model.safetensors"
SEED = int(os.environ.get("RESEARCH_SEED") or 0)

# What a model is measured on, by device: (vocabulary, context in tokens).
SHAPE = {"cpu": (2048, 256), "cuda": (8192, 2048)}
DEFAULT_TOKENS = 262_144  # on a CPU, where wall time is noise: about 20 s of training on two cores
DEFAULT_SECONDS = 300.0  # on a GPU

# Words keep a leading space or sign, numbers come in threes, a line's end takes the next line's indentation along.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++(?:[ \t]*\r?\n)*[ \t]*"
    r"|\s*\n[ \t]*|\s+(?!\S)|\s+"
)
BOS = "<|bos|>"
TOKENIZER_CHARS = 64_000_000  # the tokenizer learns from the first so many characters of the shuffled train split
HELDOUT_BYTES = 16_000_000  # of other sources' text for val and for test each, at most: all of it is evaluated
HUB = {  # name: (repository, folder of its Parquet files, column)
    "climbmix": ("karpathy/climbmix-400b-shuffle", "", "text"),
    "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle", "", "text"),
    "tinystories": ("roneneldan/TinyStories", "data/train", "text"),
}


class UserError(Exception):
    """Something the person can put right: printed as one line, exit code 2."""


def device_name() -> str:
    """`cuda` where torch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------------------------------------------------------------
# Documents


def python_files(with_packages: bool) -> list[Path]:
    """Every .py file under this interpreter's standard library; with `with_packages` site-packages too."""
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"]]
    if with_packages:
        roots += [paths["purelib"], paths["platlib"]]
    files = set()
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s not in ("site-packages", "dist-packages", "__pycache__")]
            files.update(os.path.join(folder, n) for n in names if n.endswith(".py"))
    return [Path(f) for f in sorted(files)]


def local_files(source: str) -> list[Path]:
    """The files of a folder (recursively) or of a glob pattern, sorted. Raises UserError when there are none."""
    path = Path(source).expanduser()
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = [p for p in sorted(found) if p.is_file() and not p.name.startswith(".")]
    if not files:
        raise UserError(f"--source {source}: no such set ({', '.join(['python', *HUB])}), and no files there")
    return files


def hub_files(name: str, shards: int) -> tuple[list[str], Callable[[str], Path]]:
    """The first `shards` Parquet files of a public set, and the function that fetches one (kept by the hub's cache,
    so a broken download goes on where it stopped)."""
    try:
        from huggingface_hub import HfApi, hf_hub_download  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise UserError(f"--source {name} needs two packages: pip install huggingface_hub pyarrow") from missing
    repository, prefix, _ = HUB[name]
    try:
        listed = sorted(HfApi().list_repo_files(repository, repo_type="dataset"))
    except Exception as error:  # the library raises its HTTP client's own errors when offline
        raise UserError(f"cannot reach huggingface.co for {repository} ({type(error).__name__}): go online, or give "
                        f"a folder with --source, or use the embedded corpus (no --source)") from error
    files = [f for f in listed if f.endswith(".parquet") and f.startswith(prefix)][:shards]

    def fetch(file: str) -> Path:
        try:
            return Path(hf_hub_download(repository, file, repo_type="dataset"))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise UserError(f"download of {file} stopped ({type(error).__name__}): run the same command again, "
                            f"it goes on from here") from error

    return files, fetch


def read_documents(file: Path, column: str, shortest: int) -> Iterator[str]:
    """The texts of one file: a Parquet column, a JSONL field, or the file itself. Undecodable files are skipped."""
    if file.suffix == ".parquet":
        try:
            import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
        except ImportError as missing:
            raise UserError("Parquet files need a package: pip install pyarrow") from missing
        table = parquet.ParquetFile(file)
        if column not in table.schema_arrow.names:
            raise UserError(f"{file} has no column {column!r}, only {', '.join(table.schema_arrow.names)}")
        for batch in table.iter_batches(columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text and len(text) >= shortest)
    elif file.suffix in (".jsonl", ".ndjson"):
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = json.loads(line)[column]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{file}:{number}: not a JSON object with a {column!r} field") from error
                if isinstance(text, str) and len(text) >= shortest:
                    yield text
    else:
        with contextlib.suppress(UnicodeDecodeError, PermissionError, FileNotFoundError):
            text = file.read_bytes().decode("utf-8")
            if len(text) >= shortest:
                yield text


def split_of(digest: bytes) -> str:
    """A text's split, by the first byte of its SHA-1: 0-4 val, 5-9 test, the rest train."""
    return "val" if digest[0] < 5 else "test" if digest[0] < 10 else "train"


@dataclass
class Source:
    """Where documents come from: `files` in a fixed shuffled order (its head is a fair sample), got by `fetch`."""

    files: list[Any]
    fetch: Callable[[Any], Path]
    column: str = "text"
    shortest: int = 1
    heldout_bytes: float = HELDOUT_BYTES

    def texts(self, file: Any) -> Iterator[str]:
        return read_documents(self.fetch(file), self.column, self.shortest)


def source_key(name: str, device: str, shards: int) -> str:
    """The name of the cache folder of what `--source` names."""
    if name == "python":
        return f"python{sys.version.split()[0]}-{'all' if device == 'cuda' else 'stdlib'}"
    if name in HUB:
        return f"{name}-{shards}"
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in local_files(name)]
    return "local-" + hashlib.sha1(repr(stats).encode()).hexdigest()[:8]  # a changed folder is another source


def find_source(name: str, device: str, shards: int) -> Source:
    """The source that `--source` names. Raises UserError when there is nothing there."""
    if name == "python":
        source = Source(list(python_files(with_packages=device == "cuda")), Path, shortest=200, heldout_bytes=math.inf)
    elif name in HUB:
        files, fetch = hub_files(name, shards)
        source = Source(list(files), fetch, column=HUB[name][2])
    else:
        source = Source(list(local_files(name)), Path)
    random.Random(0).shuffle(source.files)
    return source


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer


class Tokenizer:
    """Byte-pair encoding: `ranks` maps the bytes of each token to its id; the last id is the start of a document."""

    def __init__(self, ranks: dict[bytes, int]):
        self.ranks, self.bos, self.vocab_size = ranks, len(ranks), len(ranks) + 1

    @classmethod
    def train(cls, texts: Iterator[str], vocab_size: int) -> Tokenizer:
        """Learn `vocab_size - 1` tokens with rustbpe. Raises UserError where it is not installed."""
        try:
            import rustbpe
        except ImportError as missing:
            raise UserError("the tokenizer needs a package: pip install rustbpe") from missing
        trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        trainer.train_from_iterator(texts, vocab_size - 1, pattern=PATTERN)
        return cls({bytes(token): rank for token, rank in trainer.get_mergeable_ranks()})

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        lines = path.read_text().splitlines()
        return cls({base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)})

    def save(self, path: Path) -> None:
        """One `base64 rank` line a token: tiktoken's own file format."""
        write_aside(path, "".join(f"{base64.b64encode(t).decode()} {r}\n" for t, r in self.ranks.items()))

    def encoding(self) -> Any:
        """The same as a tiktoken Encoding, built here: nothing is downloaded."""
        try:
            import tiktoken
        except ImportError as missing:
            raise UserError("the tokenizer needs a package: pip install tiktoken") from missing
        return tiktoken.Encoding(
            "overnight", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens={BOS: self.bos}
        )

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int32: bytes of text in each token, from the token itself; 0 for the start of a document."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, rank in self.ranks.items():
            lengths[rank] = len(token)
        return lengths


# ---------------------------------------------------------------------------------------------------------------------
# The cache: built aside, renamed when whole


def progress(done: int, total: int, what: str) -> None:
    """A bar on stderr; on a terminal it stays on one line."""
    filled = 30 * done // max(total, 1)
    end = "\n" if done >= total or not sys.stderr.isatty() else ""
    if sys.stderr.isatty() or done >= total:
        bar = "#" * filled + "." * (30 - filled)
        print(f"\r{what:<10} [{bar}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def train_tokenizer(source: Source, vocab_size: int) -> Tokenizer:
    def sample() -> Iterator[str]:
        chars = 0
        for file in source.files:
            for text in source.texts(file):
                if split_of(hashlib.sha1(text.encode()).digest()) == "train":
                    chars += len(text)
                    yield text
            progress(min(chars, TOKENIZER_CHARS), TOKENIZER_CHARS, "tokenizer")
            if chars >= TOKENIZER_CHARS:
                return
        progress(TOKENIZER_CHARS, TOKENIZER_CHARS, "tokenizer")

    return Tokenizer.train(sample(), vocab_size)


class Builder:
    """Writes the token files of one source into a folder aside, and can go on where an earlier call stopped.

    After each chunk of files `state.json` says how long every file is, and what was written past that is cut off.
    """

    FILES = ("train.bin", "val.bin", "test.bin", "seen.bin")

    def __init__(self, folder: Path, tokenizer: Tokenizer, heldout_bytes: float):
        self.heldout_bytes = heldout_bytes
        self.folder, self.tokenizer, self.encoding = folder, tokenizer, tokenizer.encoding()
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        state = folder / "state.json"
        self.state = json.loads(state.read_text()) if state.exists() else {"files": 0, "bytes": {}, "sizes": {}}
        self.out = {}
        for name in self.FILES:
            self.out[name] = open(folder / name, "ab")  # noqa: SIM115
            self.out[name].truncate(self.state["sizes"].get(name, 0))
        self.seen = {bytes(row) for row in np.fromfile(folder / "seen.bin", np.uint8).reshape(-1, 20)}

    def add(self, texts: Iterator[str]) -> None:
        """Tokenize the texts not seen before; each is led by the start-of-document token."""
        fresh: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for text in texts:
            raw = text.encode()
            digest = hashlib.sha1(raw).digest()
            split = split_of(digest)
            used = self.state["bytes"].get(split, 0)
            if digest in self.seen or (split != "train" and used >= self.heldout_bytes):
                continue
            self.seen.add(digest)
            self.out["seen.bin"].write(digest)
            self.state["bytes"][split] = used + len(raw)
            fresh[split].append(text)
            if len(fresh[split]) >= 4096:
                self._write(split, fresh[split])
        for split in fresh:
            self._write(split, fresh[split])

    def _write(self, split: str, documents: list[str]) -> None:
        for ids in self.encoding.encode_ordinary_batch(documents, num_threads=os.cpu_count() or 1):
            self.out[f"{split}.bin"].write(np.array([self.tokenizer.bos, *ids], dtype=self.dtype).tobytes())
        documents.clear()

    def checkpoint(self, files: int) -> None:
        """Everything up to the `files`-th file is on disk; a later start goes on from here."""
        self.state["files"] = files
        for name, out in self.out.items():
            out.flush()
            self.state["sizes"][name] = out.tell()
        write_aside(self.folder / "state.json", json.dumps(self.state))


def write_aside(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    os.replace(aside, path)


def content_hash(*files: Path) -> str:
    """SHA-256 over the files, in this order, as hex."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def build(source: Source, key: str, vocab_size: int, context: int) -> dict[str, Any]:
    """Make the cache folders of `source`; returns the meta data. Renaming is the last step."""
    aside = TRAIN / f".partial-{key}"
    aside.mkdir(parents=True, exist_ok=True)
    ranks = aside / "tokenizer.tiktoken"
    if not ranks.exists():
        train_tokenizer(source, vocab_size).save(ranks)
    builder = Builder(aside, Tokenizer.load(ranks), source.heldout_bytes)
    chunk = max(1, len(source.files) // 100)
    for start in range(builder.state["files"], len(source.files), chunk):
        builder.add(text for file in source.files[start : start + chunk] for text in source.texts(file))
        builder.checkpoint(min(start + chunk, len(source.files)))
        progress(min(start + chunk, len(source.files)), len(source.files), "tokens")
    for out in builder.out.values():
        out.close()
    return publish(aside, key, builder, context)


def publish(aside: Path, key: str, builder: Builder, context: int) -> dict[str, Any]:
    tokenizer, sizes = builder.tokenizer, builder.state["sizes"]
    width = np.dtype(builder.dtype).itemsize
    tokens = {split: sizes[f"{split}.bin"] // width for split in ("train", "val", "test")}
    if min(tokens.values()) < 8 * context:
        raise UserError(f"too little text: train, val and test hold {tokens['train']}, {tokens['val']} and "
                        f"{tokens['test']} tokens, and each needs at least {8 * context}: give more text")
    meta = {
        "key": key,
        "vocab_size": tokenizer.vocab_size,
        "context": context,
        "bos": tokenizer.bos,
        "dtype": np.dtype(builder.dtype).name,
        "tokens": tokens,
        "bytes": builder.state["bytes"],
    }
    names = ("tokenizer.tiktoken", "train.bin", "val.bin", "test.bin")
    meta["data_hash"] = hashlib.sha256(
        (content_hash(*(aside / n for n in names)) + str(context)).encode()
    ).hexdigest()
    heldout_aside = HELDOUT / f".partial-{key}"
    shutil.rmtree(heldout_aside, ignore_errors=True)
    heldout_aside.mkdir(parents=True)
    for split in ("val", "test"):
        shutil.move(aside / f"{split}.bin", heldout_aside / f"{split}.bin")
    np.save(heldout_aside / "byte_lengths.npy", tokenizer.byte_lengths())
    for name in ("seen.bin", "state.json"):
        (aside / name).unlink()
    for folder, final in ((heldout_aside, HELDOUT / key), (aside, TRAIN / key)):
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.rename(folder, final)
    return meta


def read_meta(root: Path, key: str | None = None) -> dict[str, Any]:
    """The meta data of a prepared source, by default of the one in use. Raises UserError when there is none."""
    try:
        return json.loads((root / (key or (root / "current").read_text().strip()) / "meta.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"no data under {root}: run `python prepare.py` first") from error


def cached(key: str) -> dict[str, Any] | None:
    """The meta data of `key` when both its halves are there and hold what the hash says."""
    try:
        meta = read_meta(TRAIN, key)
        if meta != read_meta(HELDOUT, key):
            return None
        files = (TRAIN / key / "tokenizer.tiktoken", TRAIN / key / "train.bin", HELDOUT / key / "val.bin",
                 HELDOUT / key / "test.bin")
        found = hashlib.sha256((content_hash(*files) + str(meta["context"])).encode()).hexdigest()
    except (UserError, OSError):
        return None
    if found != meta["data_hash"]:
        raise UserError(f"{TRAIN / key} or {HELDOUT / key} changed since it was written: delete both, run again")
    return meta


def prepare(source_name: str, vocab_size: int | None, context: int | None, shards: int) -> dict[str, Any]:
    """Build what is missing, make it the source in use, and return its meta data."""
    device = device_name()
    vocab_size, context = vocab_size or SHAPE[device][0], context or SHAPE[device][1]
    try:
        for root in (TRAIN, HELDOUT):
            root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {CACHE} ({error.strerror}): set OVERNIGHT_CACHE to a folder") from error
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two loops that start at once build it once
        key = f"{source_key(source_name, device, shards)}-v{vocab_size}-t{context}"
        try:
            meta = cached(key) or build(find_source(source_name, device, shards), key, vocab_size, context)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            shutil.rmtree(TRAIN / f".partial-{key}", ignore_errors=True)
            shutil.rmtree(HELDOUT / f".partial-{key}", ignore_errors=True)
            raise UserError(f"no space left under {CACHE}: free some, or set OVERNIGHT_CACHE") from error
        for root in (TRAIN, HELDOUT):
            write_aside(root / "current", key + "\n")
    return meta


# ---------------------------------------------------------------------------------------------------------------------
# What train.py uses


class TrainData:
    """The train split of the source in use, and its tokenizer's shape. Opens nothing of the held-out splits."""

    def __init__(self) -> None:
        meta = read_meta(TRAIN)
        self.vocab_size, self.context, self.bos = meta["vocab_size"], meta["context"], meta["bos"]
        self.data_hash = meta["data_hash"]
        self.tokens = np.memmap(TRAIN / meta["key"] / "train.bin", dtype=meta["dtype"], mode="r")
        self.served = 0  # tokens handed out so far: what a budget in tokens is counted by

    def batches(self, rows: int, length: int | None = None, seed: int = SEED) -> Iterator[np.ndarray]:
        """Endless (rows, length + 1) int64 arrays: inputs are [:, :-1] and targets [:, 1:].

        Each pass cuts the token stream at a fresh offset into rows and shuffles them by `seed`. `length` is the
        context of the evaluation unless given.
        """
        context: int = length or self.context
        rng = np.random.default_rng(seed)
        waiting: list[int] = []
        while True:
            while len(waiting) < rows:
                starts = np.arange(rng.integers(context), len(self.tokens) - context, context)
                waiting += rng.permutation(starts).tolist()
            batch = [self.tokens[start : start + context + 1] for start in waiting[:rows]]
            del waiting[:rows]
            self.served += rows * context
            yield np.stack(batch).astype(np.int64)


def budget_seconds() -> float:
    """The wall time that training may take; infinite by hand where the budget is in tokens."""
    seconds, tokens = os.environ.get("RESEARCH_BUDGET_SECONDS"), budget_tokens()
    return float(seconds) if seconds else math.inf if tokens else DEFAULT_SECONDS


def budget_tokens() -> int | None:
    """The tokens that training may take, or None: then only the time counts."""
    seconds, tokens = os.environ.get("RESEARCH_BUDGET_SECONDS"), os.environ.get("RESEARCH_BUDGET_TOKENS")
    if tokens:
        return int(tokens)
    return DEFAULT_TOKENS if not seconds and device_name() == "cpu" else None


class Budget:
    """How much of the training budget is used. Seconds, or tokens with the seconds as a cap on the wall time."""

    def __init__(self) -> None:
        self.seconds, self.tokens = budget_seconds(), budget_tokens()
        self.began = time.monotonic()

    def start(self) -> float:
        """Training begins now: what came before was startup. Returns how long that took, in seconds."""
        self.began = time.monotonic()
        with contextlib.suppress(OSError):  # since the process began, where /proc tells: importing torch included
            ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
            return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.process_time()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def used(self, tokens: int) -> float:
        """The share used, from 0 to 1: of tokens where the budget is in tokens, so that a schedule is repeatable."""
        if self.elapsed >= self.seconds:
            return 1.0
        return min(1.0, tokens / self.tokens if self.tokens else self.elapsed / self.seconds)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation: the child, which runs the edited model code


def serve(memory: int, commands: int, answers: int, layout: dict[str, Any]) -> None:
    """Load the model and answer each byte on `commands` by writing the logits of the tokens in the shared memory."""
    sys.path.insert(0, os.getcwd())
    import torch

    import train  # pyright: ignore[reportMissingImports]

    device = device_name()
    inputs, logits = shared_tensors(memory, layout, device)
    model = train.load_model(str(CHECKPOINT), device)
    os.write(answers, b"r")
    with torch.inference_mode():
        while os.read(commands, 1):
            out = model(inputs.to(device))
            if tuple(out.shape) != tuple(logits.shape):
                raise SystemExit(f"the model returns {tuple(out.shape)}, not {tuple(logits.shape)}")
            logits.copy_(out.to(logits.dtype))  # converted on the GPU: copy_ alone would do it on the CPU
            os.write(answers, b"k")


def shared_tensors(memory: int, layout: dict[str, Any], device: str) -> tuple[Any, Any]:
    """Inputs (B, T) int64 and logits (B, T, V) over the file descriptor `memory`; pinned where there is a GPU."""
    import torch

    rows, context, vocab = layout["shape"]
    mapping = mmap.mmap(memory, 0)
    inputs = torch.frombuffer(mapping, dtype=torch.int64, count=rows * context)
    logits = torch.frombuffer(mapping, dtype=getattr(torch, layout["dtype"]), offset=inputs.nbytes)
    if device == "cuda":
        cudart: Any = torch.cuda.cudart()
        cudart.cudaHostRegister(inputs.data_ptr(), len(mapping), 0)
    return inputs.view(rows, context), logits.view(rows, context, vocab)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation: the parent, which holds the targets and trusts nothing that the child sends

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
LOGITS_DTYPE = {"cpu": "float32", "cuda": "float16"}
# Rows shown again: with a foreign tail, and unchanged but in other company. And rows of random tokens.
PROBES, REPEATS, CANARIES = {"cpu": 96, "cuda": 256}, 32, 16
COLUMNS = 8  # vocabulary entries compared at each position, beside the target
# How far the log-probabilities (nats) of the same prefix may differ between two runs, by number format: root mean
# square, largest, and mean gain from having the true next token among the inputs.
TOLERANCE = {"float32": (1e-4, 5e-3, 1e-3), "float16": (0.03, 0.5, 0.01)}
CHILD_TIMEOUT = 300.0  # seconds for one answer; the harness bounds the evaluation as a whole
LOG_BYTES = 65536


class Violation(Exception):
    """The model does what no honest model does: exit code 3 and a last line `violation: <reason>`."""


class ModelServer:
    """A child process with the model. It sees input tokens in shared memory and writes logits there; nothing else
    that it sends is read but single bytes, and what it prints goes to a bounded log."""

    def __init__(self, shape: tuple[int, int, int], device: str):
        rows, context, vocab = shape
        layout = {"shape": shape, "dtype": LOGITS_DTYPE[device]}
        size = rows * context * (8 + vocab * (2 if layout["dtype"] == "float16" else 4))
        memory = os.memfd_create("logits")
        os.ftruncate(memory, size)
        command_end, self.commands = os.pipe()
        self.answers, answer_end = os.pipe()
        descriptors = (memory, command_end, answer_end)
        prefix = json.loads(os.environ.get("RESEARCH_MODEL_SANDBOX") or "[]")
        command = [sys.executable, "-P", os.path.abspath(__file__), "serve", *map(str, descriptors), json.dumps(layout)]
        self.process = subprocess.Popen(
            prefix + command, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.device, self.log = device, b""
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        self.reader.start()
        self.inputs, self.output = shared_tensors(memory, layout, device)
        for descriptor in descriptors:
            os.close(descriptor)
        self.ready = False

    def _read_log(self) -> None:
        assert self.process.stdout
        while block := os.read(self.process.stdout.fileno(), LOG_BYTES):
            self.log = (self.log + block)[-LOG_BYTES:]

    def _answer(self) -> None:
        if not select.select([self.answers], [], [], CHILD_TIMEOUT)[0]:
            raise SystemExit(f"the model gave no logits within {CHILD_TIMEOUT:.0f} s\n{self.tail()}")
        if not os.read(self.answers, 1):
            raise SystemExit(f"the model cannot be run\n{self.tail()}")

    def tail(self) -> str:
        """The end of what the child printed, for the person."""
        self.process.kill()
        self.reader.join(5)
        return self.log.decode(errors="replace")[-4000:]

    def logits(self, inputs: np.ndarray) -> Any:
        """Tokens (n, T), n <= B -> logits (n, T, V), copied out of the memory that the child can still write to."""
        import torch

        if not self.ready:
            self._answer()
            self.ready = True
        self.inputs.zero_()
        self.inputs[: len(inputs)] = torch.from_numpy(inputs)
        with contextlib.suppress(BrokenPipeError):  # a dead child is noticed by the missing answer
            os.write(self.commands, b"g")
        self._answer()
        return self.output[: len(inputs)].to(self.device, copy=True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)


def token_costs(logits: Any, targets: Any, columns: Any) -> tuple[Any, Any]:
    """Logits (n, T, V), targets (n, T), columns (K,) -> cost of each target in nats (n, T), and the log-probabilities
    of the target and of the columns (n, T, K + 1). The softmax is taken here, so it is one."""
    import torch

    logits = logits.float()
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    picked = torch.cat([logits.gather(-1, targets.unsqueeze(-1)), logits[..., columns]], dim=-1) - total
    return -picked[..., 0], picked


def known_answer(device: str) -> None:
    """The loss arithmetic of this machine against two results known in closed form."""
    import torch

    vocab, lead = 1000, 3.0
    targets = torch.arange(8, device=device).view(2, 4)
    flat = torch.zeros(2, 4, vocab, device=device)
    peaked = flat.scatter(-1, targets.unsqueeze(-1), lead)
    for logits, expected in ((flat, math.log(vocab)), (peaked, math.log(math.exp(lead) + vocab - 1) - lead)):
        costs, _ = token_costs(logits, targets, torch.tensor([0], device=device))
        if not torch.allclose(costs, torch.full_like(costs, expected), atol=1e-4):
            raise RuntimeError(f"torch computes a loss of {costs.mean().item()} where {expected} is right")


def heldout_rows(meta: dict[str, Any], split: str) -> tuple[np.ndarray, np.ndarray]:
    """The whole split as rows of inputs and next tokens (N, T + 1), and the bytes of each target (N, T), 0 for the
    padding of the last row. Starts of documents cost nothing and count nothing: they are not text."""
    folder, context = HELDOUT / meta["key"], meta["context"]
    tokens = np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"]).astype(np.int64)
    lengths = np.load(folder / "byte_lengths.npy")[tokens[1:]]
    count = -(-len(lengths) // context)
    lengths = np.pad(lengths, (0, count * context - len(lengths))).reshape(count, context)
    tokens = np.pad(tokens, (0, count * context + 1 - len(tokens)), constant_values=meta["bos"])
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context].copy(), lengths


def score(server: ModelServer, inputs: np.ndarray, targets: np.ndarray, batch: int, columns: Any,
          device: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (N, T) -> costs (N, T) in nats and log-probabilities (N, T, K + 1).

    Raises Violation where a cost is not finite.
    """
    import torch

    costs, picked = [], []
    for start in range(0, len(inputs), batch):
        logits = server.logits(inputs[start : start + batch])
        cost, logp = token_costs(logits, torch.from_numpy(targets[start : start + batch]).to(device), columns)
        costs.append(cost.cpu().numpy())
        picked.append(logp.cpu().numpy())
    result = np.concatenate(costs)
    if not np.isfinite(result).all():
        raise Violation(f"{np.count_nonzero(~np.isfinite(result))} of {result.size} losses are not finite")
    return result, np.concatenate(picked)


def splice_positions(count: int, context: int, rng: np.random.Generator) -> np.ndarray:
    """Where foreign tails begin: half anywhere, half at or just after the edges of blocks of 16, 64 or 256."""
    block = rng.choice([b for b in (16, 64, 256) if b < context] or [1], size=count)
    aligned = block * rng.integers(1, np.maximum(2, context // block), size=count) + rng.integers(0, 2, size=count)
    anywhere = rng.integers(1, context, size=count)
    return np.clip(np.where(np.arange(count) % 2, aligned, anywhere), 1, context - 1)


@dataclass
class Probe:
    """Rows for the second process. The first `spliced` of them hold another row's tail from `at` on."""

    rows: np.ndarray  # (n,) which rows of the split these are
    inputs: np.ndarray  # (n, T) what the model is shown
    at: np.ndarray  # (n,) the first foreign position; T where there is none
    spliced: int


def plan_probe(inputs: np.ndarray, most: int, rng: np.random.Generator) -> Probe:
    """Choose rows, splices and donors. No donor is a probed row, so no true continuation of one is shown."""
    count, context = inputs.shape
    order = rng.permutation(count)
    spliced, repeated = min(most, count // 3), min(REPEATS, count // 3)
    rows, donors = order[: spliced + repeated], rng.choice(order[spliced + repeated :], size=spliced + repeated)
    at = np.concatenate([splice_positions(spliced, context, rng), np.full(repeated, context)])
    return Probe(rows, np.where(np.arange(context) < at[:, None], inputs[rows], inputs[donors]), at, spliced)


def probe_model(server: ModelServer, probe: Probe, targets: np.ndarray, logp: np.ndarray, batch: int, columns: Any,
                device: str, rng: np.random.Generator) -> dict[str, float]:
    """Show a fresh process the rows of `probe` in another order, so among other neighbours, and compare the
    log-probabilities before each splice with those of the scoring process, `logp` (N, T, K + 1).

    A causal model cannot tell the two apart. One that used later tokens while scoring cannot answer the same here,
    for the true ones are nowhere in what this process sees; and while scoring it could not know which rows would
    be asked again, for they are drawn from the operating system's randomness. Raises Violation.
    """
    shuffled = rng.permutation(len(probe.rows))
    rows, at = probe.rows[shuffled], probe.at[shuffled]
    _, found = score(server, probe.inputs[shuffled], targets[rows], batch, columns, device)
    before = np.arange(targets.shape[1]) < at[:, None]
    difference = np.where(before, np.abs(found - logp[rows]).max(axis=-1), 0.0)
    is_spliced = shuffled < probe.spliced
    spliced, repeated = difference[is_spliced], difference[~is_spliced]
    edge = np.flatnonzero(is_spliced), at[is_spliced] - 1
    gain = logp[rows][edge][:, 0] - found[edge][:, 0]  # of having the true next token among the inputs
    rms, peak, bias = TOLERANCE[LOGITS_DTYPE[device]]
    if repeated.max() > peak or np.sqrt(np.mean(repeated**2)) > rms:
        raise Violation(f"the prediction for a row depends on the other rows of its batch or on earlier batches "
                        f"(the same row again differs by {repeated.max():.3g} nats)")
    if spliced.max() > peak or np.sqrt((spliced**2).sum() / before[is_spliced].sum()) > rms:
        row, position = np.unravel_index(spliced.argmax(), spliced.shape)
        raise Violation(f"not causal: tokens changed from position {at[is_spliced][row]} on change the prediction made "
                        f"at position {position} by {spliced.max():.3g} nats")
    if gain.mean() > bias + 4 * gain.std() / math.sqrt(len(gain)):
        raise Violation(f"not causal: the next token is {gain.mean():.3g} nats cheaper when it is among the inputs")
    return {"probe_difference": float(spliced.max()), "repeat_difference": float(repeated.max())}


def check_canary(server: ModelServer, meta: dict[str, Any], batch: int, device: str, rng: np.random.Generator) -> float:
    """Bits per uniformly random token. Whatever a model expects, log2 of their number is the least they cost on
    average, and by Markov's inequality fewer than two in that number cost less than one bit. Raises Violation."""
    import torch

    kinds = meta["vocab_size"] - 1  # every token but the start of a document, the last id
    tokens = rng.integers(0, kinds, size=(CANARIES, meta["context"] + 1))
    no_columns = torch.zeros(0, dtype=torch.long, device=device)
    costs, _ = score(server, tokens[:, :-1], tokens[:, 1:], batch, no_columns, device)
    bits, expected = costs / math.log(2), 2 * costs.size / kinds
    if bits.mean() < math.log2(kinds) - 0.02 - 4 * bits.std() / math.sqrt(bits.size):
        raise Violation(f"random tokens cost {bits.mean():.3f} bits each, less than is possible "
                        f"(log2({kinds}) = {math.log2(kinds):.3f})")
    if (guessed := int((bits < 1).sum())) > expected + 6 * math.sqrt(expected) + 3:
        raise Violation(f"not causal: of {bits.size} random tokens {guessed} were foreseen, more than chance allows")
    return float(bits.mean())


def evaluate(split: str, probe_seed: int | None = None) -> dict[str, Any]:
    """Bits per byte of the saved model over the whole of `split`, and what the checks measured.

    Two child processes run the model: one is scored, the other only probed. Raises Violation, or SystemExit when
    the model cannot be run.
    """
    import torch

    began = time.monotonic()
    device = device_name()
    meta = read_meta(HELDOUT)
    known_answer(device)
    if not CHECKPOINT.exists():
        raise SystemExit(f"no model at {CHECKPOINT}: run `python train.py` first")
    tokens, lengths = heldout_rows(meta, split)
    inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    batch = max(4, BATCH_TOKENS[device] // meta["context"])
    seed = secrets.randbits(48) if probe_seed is None else probe_seed
    rng = np.random.default_rng(seed)
    columns = torch.from_numpy(rng.integers(0, meta["vocab_size"], size=COLUMNS)).to(device)
    shape = (batch, meta["context"], meta["vocab_size"])
    scorer, prober = ModelServer(shape, device), ModelServer(shape, device)
    try:
        costs, logp = score(scorer, inputs, targets, batch, columns, device)
        probe = plan_probe(inputs, PROBES[device], rng)
        checks = probe_model(prober, probe, targets, logp, batch, columns, device, rng)
        canary = check_canary(scorer, meta, batch, device, rng)
    finally:
        scorer.close()
        prober.close()
    bits = float(costs[lengths > 0].sum(dtype=np.float64)) / math.log(2)
    return {
        f"{split}_bpb": bits / int(lengths.sum()),
        f"{split}_bytes": int(lengths.sum()),
        f"{split}_tokens": int((lengths > 0).sum()),
        "canary_bits": canary,
        **checks,
        "probe_seed": seed,
        "data_hash": meta["data_hash"],
        "evaluation_seconds": time.monotonic() - began,
    }


# ---------------------------------------------------------------------------------------------------------------------


def show(values: dict[str, Any]) -> None:
    """Print `name: value` lines."""
    for name, value in values.items():
        print(f"{name}: {value:.6f}" if isinstance(value, float) else f"{name}: {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the data, or evaluate the saved model.")
    commands = parser.add_subparsers(dest="command")
    parser.add_argument("--source", default="python", help="python (default, no download), "
                        f"{', '.join(HUB)}, or a folder or glob of text, Parquet or JSONL files")
    parser.add_argument("--vocab-size", type=int, help=f"tokens in the vocabulary (default {SHAPE})")
    parser.add_argument("--context", type=int, help="tokens a row of the evaluation has")
    parser.add_argument("--shards", type=int, default=8, help="files to take of a public set (default 8)")
    evaluation = commands.add_parser("evaluate", help="bits per byte of the saved model")
    evaluation.add_argument("--split", choices=("val", "test"), default="val")
    evaluation.add_argument("--probe-seed", type=int, help="repeat the checks of an earlier evaluation")
    child = commands.add_parser("serve")
    child.add_argument("descriptors", type=int, nargs=3)
    child.add_argument("layout", type=json.loads)
    args = parser.parse_args()
    if args.command == "serve":
        memory, commands_end, answers_end = args.descriptors
        serve(memory, commands_end, answers_end, args.layout)
    elif args.command == "evaluate":
        show(evaluate(args.split, args.probe_seed))
    else:
        meta = prepare(args.source, args.vocab_size, args.context, args.shards)
        tokens = {f"{split}_tokens": count for split, count in meta["tokens"].items()}
        show({"source": meta["key"], "vocab_size": meta["vocab_size"], **tokens, "data_hash": meta["data_hash"]})


def run(main: Callable[[], None]) -> None:
    """Call `main`; what the person can put right is said in one line (exit code 2), and what an honest model does
    not do in one line on stdout (exit code 3)."""
    try:
        main()
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        sys.exit(2)
    except Violation as violation:
        print(f"violation: {violation}", flush=True)
        sys.exit(3)


if __name__ == "__main__":
    run(main)
