"""What prepare.py prepares: documents -> tokenizer -> token files of train, val and test, in a cache folder.

A text's split is told by its own digest, so the same source gives the same files, on every machine. The held-out
splits lie in a folder apart, which training code never opens. Nothing is there until it is whole.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import random
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prepare import CACHE, HELDOUT, SHAPE, TRAIN, UserError, device_name, read_meta, show

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
    shown = path if path.is_dir() else path.parent  # what lies in hidden folders below it is left out
    files = [p for p in sorted(found) if p.is_file() and not re.search(r"(^|/)\.[^./]", os.path.relpath(p, shown))]
    if not files:
        raise UserError(f"--source {source}: no such set ({', '.join(['python', *HUB])}), and no files there")
    return files


def hub_files(name: str, shards: int) -> tuple[list[str], Callable[[str], Path]]:
    """The first `shards` Parquet files of a public set, and the function that fetches one (the hub's cache keeps
    what is whole, so a broken download goes on with the file that it stopped in)."""
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
        except Exception as error:  # as above, and of many kinds
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise UserError(f"download of {file} stopped ({type(error).__name__}): run the same command again, "
                            f"it goes on with this file") from error

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
                    yield text.encode(errors="replace").decode()  # JSON can hold half a surrogate pair
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
        """The texts of one file. Raises UserError where it is not what its name says."""
        path = self.fetch(file)
        try:
            yield from read_documents(path, self.column, self.shortest)
        except (OSError, ValueError, TypeError, AttributeError) as error:  # of the kinds that pyarrow raises
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise UserError(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error


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
        self.state = {"files": 0, "bytes": {}, "sizes": {}}
        with contextlib.suppress(FileNotFoundError, ValueError):
            state = json.loads((folder / "state.json").read_text())
            if all((folder / name).stat().st_size >= size for name, size in state["sizes"].items()):
                self.state = state  # else something was lost, as in a power cut, and all is made anew
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
    aside = CACHE / f".partial-{key}"  # not below TRAIN: it holds the held-out text too
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
                        f"{tokens['test']} tokens, and each needs at least {8 * context}: "
                        f"give more text, in more files or lines, since one goes whole into one split")
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
    (aside / "state.json").unlink()  # from here on there is nothing to go on with
    meta["data_hash"] = hashlib.sha256(
        (content_hash(*(aside / n for n in names)) + str(context)).encode()
    ).hexdigest()
    heldout_aside = HELDOUT / f".partial-{key}"
    shutil.rmtree(heldout_aside, ignore_errors=True)
    heldout_aside.mkdir(parents=True)
    for split in ("val", "test"):
        shutil.move(aside / f"{split}.bin", heldout_aside / f"{split}.bin")
    np.save(heldout_aside / "byte_lengths.npy", tokenizer.byte_lengths())
    (aside / "seen.bin").unlink()
    for folder, final in ((heldout_aside, HELDOUT / key), (aside, TRAIN / key)):
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.rename(folder, final)
    return meta


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
    """Build what is missing, make it the source in use, and return its meta data. A corpus that is there and in use is
    only read, so that it may belong to another user or lie on a read-only disk."""
    device = device_name()
    vocab_size, context = vocab_size or SHAPE[device][0], context or SHAPE[device][1]
    key = f"{source_key(source_name, device, shards)}-v{vocab_size}-t{context}"
    if in_use(key) and (meta := cached(key)):
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
            meta = cached(key) or build(find_source(source_name, device, shards), key, vocab_size, context)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            shutil.rmtree(CACHE / f".partial-{key}", ignore_errors=True)
            shutil.rmtree(HELDOUT / f".partial-{key}", ignore_errors=True)
            raise UserError(f"no space left under {CACHE}: free some, or set OVERNIGHT_CACHE") from error
        for root in (TRAIN, HELDOUT):
            write_aside(root / "current", key + "\n")
    return meta


def in_use(key: str) -> bool:
    """Whether both halves point to this source."""
    try:
        return all((root / "current").read_text().strip() == key for root in (TRAIN, HELDOUT))
    except OSError:
        return False


def command(source_name: str, vocab_size: int | None, context: int | None, shards: int) -> None:
    """Prepare a source and print what there is of it."""
    meta = prepare(source_name, vocab_size, context, shards)
    tokens = {f"{split}_tokens": count for split, count in meta["tokens"].items()}
    show({"source": meta["key"], "vocab_size": meta["vocab_size"], **tokens, "data_hash": meta["data_hash"]})
