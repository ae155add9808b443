"""How far the held-out text of the default corpus is told by the training text: before and after its rules.

    python -m bench.corpus                    the standard library; on a GPU machine the installed packages too
    python -m bench.corpus --device cuda      as on a GPU machine, on any: with the installed packages
    python -m bench.corpus --source FOLDER    of another source, as `python prepare.py --source` takes it

`before`: every file as it is, split by its digest, only equal files left out. `after`: what prepare.py makes. Shown are
the share of val's runs of 13 tokens that are somewhere in train (the usual measure of contamination), and what exact
text is worth: how many bits per byte of val are saved when what followed the last equal run of 8 or 16 tokens in train
is added to n-grams of 1 to 5 tokens (Witten and Bell 1991), each with the weight that is best for that val. And how far
val and test lie apart for those same n-grams. Prints a table, and as the last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CONTAMINATED = 13  # tokens in the runs that are looked for
ORDERS = 5  # the longest n-gram of the base
RUNS = (8, 16)  # tokens of the runs whose continuation is looked up
WEIGHTS = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def runs(tokens: np.ndarray, length: int) -> np.ndarray:
    """(N,) -> (N - length + 1,) uint64: a hash of the `length` tokens that begin at each place."""
    hashed = np.zeros(len(tokens) - length + 1, dtype=np.uint64)
    for offset in range(length):
        hashed = (hashed ^ tokens[offset : offset + len(hashed)].astype(np.uint64)) * FACTOR
        hashed ^= hashed >> np.uint64(29)
    return hashed


def found(sorted_keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each wanted key is there, and the place after its last one in `sorted_keys`."""
    place = np.searchsorted(sorted_keys, wanted, side="right")
    return (place > 0) & (sorted_keys[np.maximum(place, 1) - 1] == wanted), place


class Ngrams:
    """Interpolated n-grams over the training tokens."""

    def __init__(self, train: np.ndarray, vocab_size: int):
        self.unigrams = (np.bincount(train, minlength=vocab_size) + 0.1) / (len(train) + 0.1 * vocab_size)
        self.grams = [np.sort(runs(train, n)) for n in range(1, ORDERS + 1)]
        self.contexts = [runs(train, n) for n in range(1, ORDERS)]
        self.kinds = []  # of each context, how many different tokens follow it
        for n, keys in enumerate(self.contexts, 1):
            first = np.unique(runs(train, n + 1), return_index=True)[1]
            self.kinds.append(np.sort(keys[first]))
        self.contexts = [np.sort(keys) for keys in self.contexts]

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Of each token but the first ORDERS - 1, from what stands before it."""
        skip = ORDERS - 1
        p = self.unigrams[tokens[skip:]]
        for n in range(1, ORDERS):
            context = runs(tokens, n)[skip - n : len(tokens) - n]
            gram = runs(tokens, n + 1)[skip - n :]
            total, kinds = count(self.contexts[n - 1], context), count(self.kinds[n - 1], context)
            both = count(self.grams[n], gram)
            known = total > 0
            p = np.where(known, (both + kinds * p) / np.maximum(total + kinds, 1), p)
        return p


def count(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.searchsorted(sorted_keys, wanted, "right") - np.searchsorted(sorted_keys, wanted, "left")


def looked_up(train: np.ndarray, tokens: np.ndarray, length: int) -> np.ndarray:
    """What followed the last run in train equal to the `length` tokens before each place; -1 where there is none."""
    keys = runs(train, length)[:-1]
    order = np.argsort(keys, kind="stable")
    is_there, place = found(keys[order], runs(tokens, length)[:-1])
    follows = train[order[np.maximum(place, 1) - 1] + length].astype(np.int64)
    return np.concatenate([np.full(length, -1), np.where(is_there, follows, -1)])


def figures(folders: tuple[Path, Path], meta: dict[str, Any]) -> dict[str, float]:
    """The figures of one prepared corpus, in the folders of its train and held-out halves."""
    places = {"train": folders[0], "val": folders[1], "test": folders[1]}
    read = {split: np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"]) for split, folder in places.items()}
    train, lengths, skip = read["train"], np.load(folders[1] / "byte_lengths.npy"), ORDERS - 1
    in_train = np.isin(runs(read["val"], CONTAMINATED), runs(train, CONTAMINATED))
    ngrams, told = Ngrams(train, meta["vocab_size"]), {}
    for split in ("val", "test"):
        targets = read[split][skip:]
        size = lengths[targets]
        base = ngrams.probabilities(read[split])
        told[split] = -np.log2(base[size > 0]).sum() / size.sum()
        if split == "val":
            p = base
            for length in RUNS:
                follows = looked_up(train, read[split], length)[skip:]
                right, known = follows == targets, follows >= 0
                mixed = [np.where(known, (1 - w) * p + w * right, p) for w in WEIGHTS]
                p = min(mixed, key=lambda q: -np.log2(q[size > 0]).sum())
            told["with_lookup"] = -np.log2(p[size > 0]).sum() / size.sum()
    return {
        "train_tokens": len(train), "val_tokens": len(read["val"]), "test_tokens": len(read["test"]),
        f"val_runs_of_{CONTAMINATED}_in_train_percent": 100 * float(in_train.mean()),
        "val_bpb_of_ngrams": told["val"], "test_bpb_of_ngrams": told["test"],
        "test_over_val_percent": 100 * (told["test"] / told["val"] - 1),
        "lookup_is_worth_bpb": told["val"] - told["with_lookup"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="python")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: what there is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OVERNIGHT_CACHE"] = folder  # before prepare.py reads it
        import corpus
        import documents
        import prepare
        from cleaning import Rules

        device = args.device or prepare.device_name()
        vocab_size, context = prepare.SHAPE[device]
        after = documents.find_source(args.source, device, 8)
        files = after.files
        if args.source == "python":
            files = [f for root in documents.python_roots(device == "cuda") for f in documents.python_files(root)]
            random.Random(0).shuffle(files)
        before = documents.Source(files, after.fetch, Rules(shortest=after.rules.shortest))
        rows: dict[str, dict[str, float]] = {}
        prepare.TRAIN.mkdir(parents=True)
        for name, source in (("before", before), ("after", after)):
            meta = corpus.build(source, name, vocab_size, context)
            rows[name] = figures((prepare.TRAIN / meta["key"], prepare.HELDOUT / meta["key"]), meta)
            rows[name] |= {f"left_out_{rule}_percent": 100 * share for rule, share in meta["left_out"].items()}
    print("| | before | after |\n| --- | --- | --- |")
    for figure in dict.fromkeys([*rows["before"], *rows["after"]]):
        cells = (f"{row[figure]:,.4g}" if figure in row else "" for row in rows.values())
        print(f"| {figure.replace('_', ' ')} | " + " | ".join(cells) + " |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
