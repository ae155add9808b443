"""What prepare.py prepares: documents -> tokenizer -> token files of train, val and test, in a cache folder.

The same source gives the same files, on every machine. The held-out splits lie in a folder apart, which training code
never opens. Nothing is there until it is whole.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cleaning import Cleaner, Rules
from documents import Source, find_source, heldout_paths, source_key
from prepare import CACHE, HELDOUT, SHAPE, TRAIN, UserError, device_name, read_meta, show

# Words keep a leading space or sign, numbers come in threes, a line's end takes the next line's indentation along.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++(?:[ \t]*\r?\n)*[ \t]*"
    r"|\s*\n[ \t]*|\s+(?!\S)|\s+"
)
BOS = "<|bos|>"
VERSION = 3  # of the rules that make a corpus: what an older one made is made again
SOURCES = CACHE / "sources"  # name of a source -> hash of what it gave
BATCH_CHARS = 8_000_000  # of texts that are cleaned at once, so that all cores have something to do
TOKENIZER_CHARS = 64_000_000  # the tokenizer learns from the first so many characters of the shuffled train split


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
        for batch in batches(text for file in source.files for _, text in source.texts(file, "train")):
            for text in cleaner.clean(batch):
                chars += len(text)
                yield text
            progress(min(chars, TOKENIZER_CHARS), TOKENIZER_CHARS, "tokenizer")
            if chars >= TOKENIZER_CHARS:
                return
        progress(TOKENIZER_CHARS, TOKENIZER_CHARS, "tokenizer")

    with contextlib.closing(Cleaner(source.rules)) as cleaner:
        return Tokenizer.train(sample(), vocab_size)


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Lists of texts of about BATCH_CHARS together."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Builder:
    """Writes the token files of one source into a folder aside, and can go on where an earlier call stopped.

    After each chunk of files `state.json` says how long every file is, and what was written past that is cut off.
    """

    FILES = ("train.bin", "val.bin", "test.bin", "seen.bin")

    def __init__(self, folder: Path, tokenizer: Tokenizer, heldout_bytes: int, rules: Rules = Rules()):  # noqa: B008
        self.heldout_bytes = heldout_bytes
        self.folder, self.tokenizer, self.encoding = folder, tokenizer, tokenizer.encoding()
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        self.state: dict[str, Any] = {"files": 0, "read": 0, "left_out": {}, "bytes": {}, "sizes": {}}
        with contextlib.suppress(FileNotFoundError, ValueError):
            state = json.loads((folder / "state.json").read_text())
            if all((folder / name).stat().st_size >= size for name, size in state["sizes"].items()):
                self.state = state  # else something was lost, as in a power cut, and all is made anew
        self.out = {}
        for name in self.FILES:
            self.out[name] = open(folder / name, "ab")  # noqa: SIM115
            self.out[name].truncate(self.state["sizes"].get(name, 0))
        self.cleaner = Cleaner(rules)
        self.cleaner.seen.update(np.fromfile(folder / "seen.bin", np.uint64).tolist())
        self.cleaner.left_out = Counter(self.state["left_out"])

    def add(self, texts: Iterator[tuple[str, str]]) -> None:
        """Clean and tokenize (split, text) pairs; each document is led by the start-of-document token."""
        splits: list[str] = []
        for batch in batches(text for split, text in texts if splits.append(split) is None):
            self.state["read"] += sum(len(text.encode()) for text in batch)
            fresh: dict[str, list[str]] = {"train": [], "val": [], "test": []}
            for split, text in zip(splits, self.cleaner.clean(batch), strict=True):
                used = self.state["bytes"].get(split, 0)
                if text and (split == "train" or used < self.heldout_bytes):
                    self.state["bytes"][split] = used + len(text.encode())
                    fresh[split].append(text)
            splits.clear()
            for split in fresh:
                self._write(split, fresh[split])
        self.out["seen.bin"].write(np.array(self.cleaner.fresh, dtype=np.uint64).tobytes())
        self.cleaner.fresh.clear()

    def _write(self, split: str, documents: list[str]) -> None:
        for ids in self.encoding.encode_ordinary_batch(documents, num_threads=os.cpu_count() or 1):
            self.out[f"{split}.bin"].write(np.array([self.tokenizer.bos, *ids], dtype=self.dtype).tobytes())
        documents.clear()

    def close(self) -> None:
        self.cleaner.close()
        for out in self.out.values():
            out.close()

    def checkpoint(self, files: int) -> None:
        """Everything up to the `files`-th file is on disk; a later start goes on from here."""
        self.state |= {"files": files, "left_out": dict(self.cleaner.left_out)}
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


def build(source: Source, name: str, vocab_size: int, context: int) -> dict[str, Any]:
    """Make the cache folders of `source`; returns the meta data. `name`: of the source, the same whenever it is asked
    for again. Renaming is the last step."""
    aside = CACHE / f".partial-{name}"  # not below TRAIN: it holds the held-out text too
    aside.mkdir(parents=True, exist_ok=True)
    ranks = aside / "tokenizer.tiktoken"
    if not ranks.exists():
        train_tokenizer(source, vocab_size).save(ranks)
    builder = Builder(aside, Tokenizer.load(ranks), source.heldout_bytes, source.rules)
    chunk = max(1, len(source.files) // 100)
    with contextlib.closing(builder):
        for start in range(builder.state["files"], len(source.files), chunk):
            builder.add(text for file in source.files[start : start + chunk] for text in source.texts(file))
            builder.checkpoint(min(start + chunk, len(source.files)))
            progress(min(start + chunk, len(source.files)), len(source.files), "tokens")
    meta = describe(aside, name, builder, context) | {"heldout_packages": source.packages}
    publish(aside, meta, builder.tokenizer)
    return meta


def describe(aside: Path, name: str, builder: Builder, context: int) -> dict[str, Any]:
    """The meta data of what was built. Raises UserError where it is too little."""
    tokenizer, width = builder.tokenizer, np.dtype(builder.dtype).itemsize
    tokens = {split: builder.state["sizes"][f"{split}.bin"] // width for split in ("train", "val", "test")}
    if min(tokens.values()) < 8 * context:
        raise UserError(f"too little text: train, val and test hold {tokens['train']}, {tokens['val']} and "
                        f"{tokens['test']} tokens, and each needs at least {8 * context}: "
                        f"give more text, in more files or lines, since one goes whole into one split")
    data_hash = hash_of([aside / name for name in ("tokenizer.tiktoken", "train.bin", "val.bin", "test.bin")], context)
    return {
        "key": data_hash,  # the name of both folders: what is prepared later takes nothing away from whoever uses this
        "data_hash": data_hash,
        "source": name,
        "vocab_size": tokenizer.vocab_size,
        "context": context,
        "bos": tokenizer.bos,
        "dtype": np.dtype(builder.dtype).name,
        "tokens": tokens,
        "bytes": builder.state["bytes"],
        "left_out": {rule: lost / builder.state["read"] for rule, lost in sorted(builder.cleaner.left_out.items())},
    }


def publish(aside: Path, meta: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Move what was built to where it is looked for; where the same is there already, that stays untouched."""
    (aside / "state.json").unlink()  # from here on there is nothing to go on with
    (aside / "seen.bin").unlink()
    heldout_aside = HELDOUT / aside.name
    shutil.rmtree(heldout_aside, ignore_errors=True)
    heldout_aside.mkdir(parents=True)
    for split in ("val", "test"):
        shutil.move(aside / f"{split}.bin", heldout_aside / f"{split}.bin")
    np.save(heldout_aside / "byte_lengths.npy", tokenizer.byte_lengths())
    for folder, final in ((heldout_aside, HELDOUT / meta["key"]), (aside, TRAIN / meta["key"])):
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
        final.parent.mkdir(exist_ok=True)
        if (final / "meta.json").exists():
            shutil.rmtree(folder)
        else:
            os.rename(folder, final)
    SOURCES.mkdir(exist_ok=True)
    write_aside(SOURCES / meta["source"], meta["key"])


def cached(name: str) -> dict[str, Any] | None:
    """The meta data of a source when both its halves are there and hold what the hash says."""
    try:
        key = (SOURCES / name).read_text()
        meta = read_meta(TRAIN, key)
        if meta != read_meta(HELDOUT, key):
            return None
        found = hash_of([TRAIN / key / "tokenizer.tiktoken", TRAIN / key / "train.bin", HELDOUT / key / "val.bin",
                         HELDOUT / key / "test.bin"], meta["context"])  # fmt: skip
    except (UserError, OSError):
        return None
    if found != key:
        raise UserError(f"{TRAIN / key} or {HELDOUT / key} changed since it was written: delete both, run again")
    return meta


def hash_of(files: list[Path], context: int) -> str:
    """What tells prepared data from other: half a SHA-256 of the files and the context, as hex."""
    return hashlib.sha256((content_hash(*files) + str(context)).encode()).hexdigest()[:32]


def prepare(source_name: str, vocab_size: int | None, context: int | None, shards: int) -> dict[str, Any]:
    """Build what is missing, make it the source in use, and return its meta data. A corpus that is there and in use is
    only read, so that it may belong to another user or lie on a read-only disk."""
    device = device_name()
    vocab_size, context = vocab_size or SHAPE[device][0], context or SHAPE[device][1]
    name = f"{source_key(source_name, device, shards)}-{VERSION}-v{vocab_size}-t{context}"
    if (meta := cached(name)) and in_use(meta):
        return meta
    try:
        for root in (TRAIN, HELDOUT):
            root.mkdir(parents=True, exist_ok=True)
        (CACHE / "lock").touch()
    except OSError as error:
        raise UserError(f"cannot write to {CACHE} ({error.strerror}): set OVERNIGHT_CACHE to a folder") from error
    with open(CACHE / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two loops that start at once build it once
        try:
            meta = cached(name) or build(find_source(source_name, device, shards), name, vocab_size, context)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            shutil.rmtree(CACHE / f".partial-{name}", ignore_errors=True)
            shutil.rmtree(HELDOUT / f".partial-{name}", ignore_errors=True)
            raise UserError(f"no space left under {CACHE}: free some, or set OVERNIGHT_CACHE") from error
        for root in (TRAIN, HELDOUT):
            write_aside(root / "current", meta["key"] + "\n")
    return meta


def in_use(meta: dict[str, Any]) -> bool:
    """Whether both halves point to this source."""
    try:
        return all((root / "current").read_text().strip() == meta["key"] for root in (TRAIN, HELDOUT))
    except OSError:
        return False


def command(source_name: str, vocab_size: int | None, context: int | None, shards: int) -> None:
    """Prepare a source and print what there is of it."""
    meta = prepare(source_name, vocab_size, context, shards)
    tokens = {f"{split}_tokens": count for split, count in meta["tokens"].items()}
    left_out = {f"left_out_{rule}_percent": round(100 * share, 2) for rule, share in meta["left_out"].items()}
    packages = {"heldout_packages": " ".join(meta["heldout_packages"])} if meta["heldout_packages"] else {}
    show({"source": meta["source"], "vocab_size": meta["vocab_size"], **tokens, **left_out, **packages})
    show({"data_hash": meta["data_hash"]})
    for path in heldout_paths(meta["heldout_packages"]):  # a sandbox hides them, so that no training reads what decides
        print(f"hide: {path}")
