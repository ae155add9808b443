"""Where the documents of a corpus come from, and which split each belongs to: Python on this machine, files, a hub.

The Python corpus is split by package. Its held-out packages are such that no training imports, so that rooms can hide
them: the text that decides is nowhere to be read while a model trains. val and test share these packages, but no text.
Other sources are split by each text's digest.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cleaning import Rules, beginning
from prepare import UserError

FILE_BYTES = 100_000  # of a Python file, at most; the rest of it is left out
SHORTEST = 200  # characters that a Python file has at least
HELDOUT_BYTES = {"cpu": 320_000, "cuda": 7_500_000}  # of Python for val and for test each: all of it is evaluated
# Held-out files are cut into pieces of so many characters, dealt to val and test by turns: files differ far more in how
# hard they are than their pieces do, and so the two splits would. A piece fills a context or more.
PIECE = {"cpu": 2_000, "cuda": 12_000}
OTHER_HELDOUT_BYTES = 16_000_000  # the same of other sources
HUB = {  # name: (repository, folder of its Parquet files, column)
    "climbmix": ("karpathy/climbmix-400b-shuffle", "", "text"),
    "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle", "", "text"),
    "tinystories": ("roneneldan/TinyStories", "data/train", "text"),
}

# Packages of the standard library that no training imports (a test has torch.compile show it), in order of preference.
APPLICATIONS = ("idlelib", "tkinter", "lib2to3", "turtledemo", "wsgiref", "xmlrpc", "curses", "dbm", "ensurepip",
                "venv", "pydoc_data")  # fmt: skip
# Installed packages that a change of train.py may well import: these are never held out.
USEFUL = {"einops", "flash_attn", "liger_kernel", "matplotlib", "pandas", "polars", "pyarrow", "scipy", "sklearn",
          "tensorboard", "tiktoken", "tokenizers", "torchao", "torchaudio", "torchvision", "transformers", "wandb",
          "xformers"}  # fmt: skip
PACKAGE_FOLDERS = ("site-packages", "dist-packages")
# What any training imports, told by doing some: a compiled step, the optimizer, the file of weights.
TRIAL = """
import contextlib, sys
import numpy, torch, safetensors.torch
import prepare
device = "cuda" if torch.cuda.is_available() else "cpu"
layer = torch.nn.Linear(64, 64, device=device)
with contextlib.suppress(Exception):  # where there is no compiler, what it would import stays unknown
    torch.compile(lambda x: torch.nn.functional.cross_entropy(layer(x), x.argmax(-1)))(
        torch.randn(64, 64, device=device)).backward()
torch.optim.AdamW(layer.parameters(), fused=True).step()
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})))
"""


# ---------------------------------------------------------------------------------------------------------------------
# Python on this machine


def python_roots(with_packages: bool) -> list[Path]:
    """The folder of the standard library; with `with_packages` every folder of installed packages too."""
    roots = [sysconfig.get_paths()["stdlib"]]
    if with_packages:
        roots += [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
        roots += [path for path in sys.path if path.endswith(PACKAGE_FOLDERS)]
    return list(dict.fromkeys(Path(root).resolve() for root in roots if os.path.isdir(root)))


def python_files(root: Path) -> list[Path]:
    """Every .py file below one of the roots but those of roots within it, in an order that is the same everywhere."""
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in (*PACKAGE_FOLDERS, "__pycache__")]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def imported_by_training() -> set[str]:
    """Top-level names of all modules that a trial with torch.compile imports on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run([sys.executable, "-c", TRIAL], cwd=folder, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": os.path.dirname(os.path.realpath(__file__))})
    if told.returncode:
        raise UserError(f"a first step of training fails here: {told.stderr.strip().splitlines()[-1]}")
    return set(told.stdout.split())


def removable_packages(roots: list[Path]) -> list[Path]:
    """Folders of installed packages that no training imports and no other package requires, in the order of a hash."""
    required, providers = {"overnight"}, importlib.metadata.packages_distributions()
    for distribution in importlib.metadata.distributions():
        for line in distribution.requires or []:
            if "extra ==" not in line and (name := re.match(r"[\w.-]+", line)):
                required.add(canonical(name[0]))
    imported = imported_by_training()
    found = [
        root / name
        for root in roots
        for name, distributions in sorted(providers.items())
        if name not in imported | USEFUL and not name.startswith("_") and (root / name).is_dir()
        and not required & set(map(canonical, distributions))
    ]  # fmt: skip
    return sorted(found, key=lambda folder: hashlib.sha1(folder.name.encode()).digest())


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def heldout_packages(roots: list[Path], most: int) -> list[Path]:
    """Folders of packages that together hold `most` bytes to hold out, as far as there are so many. The standard
    library's come first; installed ones of more than a third of that are left to training."""
    chosen, total = [], 0
    stdlib = [roots[0] / name for name in APPLICATIONS if (roots[0] / name).is_dir()]
    for folder in stdlib + (removable_packages(roots[1:]) if roots[1:] else []):
        size = sum(min(file.stat().st_size, FILE_BYTES) for file in python_files(folder))
        if folder in stdlib or (total < most and 20_000 < size < most / 3):
            chosen.append(folder)
            total += size
    return chosen


def part_of(files: list[Path], most: int) -> dict[Path, int]:
    """As many of the files, in the order of a hash, as hold `most` bytes; each with its number."""
    chosen, total = [], 0
    for file in sorted(files, key=lambda file: hashlib.sha1("/".join(file.parts[-3:]).encode()).digest()):
        if total < most:
            total += min(file.stat().st_size, FILE_BYTES)
            chosen.append(file)
    return {file: number for number, file in enumerate(chosen)}


def pieces(text: str, least: int) -> Iterator[str]:
    """A text cut at the ends of lines, `least` characters and the rest of a line each."""
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= least:
            yield piece
            piece = ""
    if piece:
        yield piece


def heldout_paths(names: list[str]) -> list[Path]:
    """Every folder of a package of one of these names that a room could show, in any Python on the machine."""
    found, roots = [], [Path(root) for root in ("/usr", "/opt", "/nix", "/gnu", sys.prefix, sys.base_prefix)]
    for start in dict.fromkeys([*roots, *map(Path, sys.path)]):
        for folder, subfolders, files in os.walk(start):
            is_packages = folder.endswith(PACKAGE_FOLDERS)
            if is_packages or "os.py" in files:
                found += [Path(folder, name) for name in subfolders if name in names]
                subfolders[:] = [name for name in subfolders if not is_packages and name.endswith(PACKAGE_FOLDERS)]
    return sorted({path.resolve() for path in found})


# ---------------------------------------------------------------------------------------------------------------------
# Files and public sets


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


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """Where documents come from: `files` in a fixed order (its head is a fair sample), got by `fetch`."""

    files: list[Any]
    fetch: Callable[[Any], Path]
    rules: Rules = Rules()
    column: str = "text"
    heldout_bytes: int = OTHER_HELDOUT_BYTES
    heldout: Mapping[Path, int] | None = None
    """The files that are held out, numbered, where whole files are; else each text's digest tells its split."""
    piece: int = 0
    """Characters of the pieces in which held-out files are dealt out."""
    packages: list[str] = field(default_factory=list)
    """Names of the packages that are held out."""

    def texts(self, file: Any, split: str | None = None) -> Iterator[tuple[str, str]]:
        """(split, text) of one file, of one split only if it is named. Raises UserError where the file is not what its
        name says."""
        if self.heldout is not None and split == "train" and file in self.heldout:
            return
        path = self.fetch(file)
        try:
            for text in read_documents(path, self.column, self.rules.shortest):
                yield from ((found, part) for found, part in self._dealt(file, text) if split in (None, found))
        except (OSError, ValueError, TypeError, AttributeError) as error:  # of the kinds that pyarrow raises
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise UserError(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error

    def _dealt(self, file: Any, text: str) -> Iterator[tuple[str, str]]:
        if self.heldout is None:
            yield split_of(hashlib.sha1(text.encode()).digest()), text
        elif file in self.heldout:
            whole = beginning(text, self.rules.most_bytes or len(text))
            for turn, part in enumerate(pieces(whole, self.piece), self.heldout[file]):
                yield ("val", "test")[turn % 2], part
        else:
            yield "train", text


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
        return python_source(device)
    if name in HUB:
        files, fetch = hub_files(name, shards)
        source = Source(list(files), fetch, column=HUB[name][2])
    else:
        source = Source(list(local_files(name)), Path, Rules(copies=True))
    random.Random(0).shuffle(source.files)
    return source


def python_source(device: str) -> Source:
    """The Python on this machine: on a GPU machine with the installed packages. What is held out comes last, so that
    of two copies the one that training has counts, and no loss is lowered by the other."""
    roots, most = python_roots(with_packages=device == "cuda"), HELDOUT_BYTES[device]
    packages = heldout_packages(roots, 3 * most)  # more than is asked for, as the rules take some of it out
    files = [file for folder in packages for file in python_files(folder)]
    apart, heldout = set(files), part_of(files, int(2.2 * most))
    train = [file for root in roots for file in python_files(root) if file not in apart]
    random.Random(0).shuffle(train)
    rules = Rules(tables=True, most_bytes=FILE_BYTES, copies=True, shortest=SHORTEST)
    return Source(train + list(heldout), Path, rules, heldout_bytes=most, heldout=heldout, piece=PIECE[device],
                  packages=[folder.name for folder in packages])  # fmt: skip
