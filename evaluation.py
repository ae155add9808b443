"""The validation loss of the model that train.py saved, measured so that the model's code can't choose it.

    python prepare.py evaluate [--split test]

This file never imports train.py. Child processes do (evaluated_model.py): they are handed input tokens only, and the
loss is computed here, where targets, softmax and sums stay. Two of them run the model, one after the other: the first
is scored and ended, then the second is shown some of the rows again, with foreign tails, and must say the same before
them. The first can't know which rows those will be, the second never sees the tails that it would have to know, and the
two never live with code of the model at the same time. What no honest model does is a `Violation`.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluated_model import LOGITS_DTYPE, ModelServer, Violation
from prepare import CHECKPOINT, HELDOUT, TRAIN, UserError, device_name, read_meta, show, trained_on

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
# Rows shown again: with a foreign tail (least and most), and unchanged but in other company. And rows of random tokens.
PROBES, REPEATS, CANARIES = {"cpu": (96, 768), "cuda": (256, 4096)}, 32, 16
COLUMNS = 8  # vocabulary entries compared at each position, beside the target
# How far the log-probabilities (nats) of the same prefix may differ between two runs, by number format: root mean
# square, and largest. What a model gains within this is charged to its score.
TOLERANCE = {"float32": (1e-4, 5e-3), "float16": (0.03, 0.5)}
REFERENCE_TOKENS = 1 << 24  # of the training text, counted for the reference that a model's gain is measured by
REFERENCE_PRIOR = 50.0  # occurrences of a token from which on its own followers count more than tokens at large


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


def score(server: ModelServer, inputs: np.ndarray, targets: np.ndarray, bos: int, batch: int, columns: Any,
          device: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (N, T) -> costs (N, T) in nats and log-probabilities (N, T, K + 1).

    Raises Violation where a cost is not finite. The start of a document, `bos`, is no text and may cost anything.
    """
    import torch

    costs, picked = [], []
    for start in range(0, len(inputs), batch):
        logits = server.logits(inputs[start : start + batch])
        cost, logp = token_costs(logits, torch.from_numpy(targets[start : start + batch]).to(device), columns)
        costs.append(cost.cpu().numpy())
        picked.append(logp.cpu().numpy())
    result = np.concatenate(costs)
    if bad := np.count_nonzero(~np.isfinite(result) & (targets != bos)):
        raise Violation(f"{bad} of {result.size} losses are not finite")
    return result, np.concatenate(picked)


def reference_costs(meta: dict[str, Any], inputs: np.ndarray, targets: np.ndarray, device: str) -> np.ndarray:
    """What each target (N, T) costs in nats by how often tokens follow one another in the training text: a weak causal
    predictor, which no code of the model has a part in. Of a large vocabulary only how often each token comes."""
    import torch

    vocab, path = meta["vocab_size"], TRAIN / meta["key"] / "train.bin"
    text = torch.from_numpy(np.fromfile(path, dtype=meta["dtype"], count=REFERENCE_TOKENS).astype(np.int64)).to(device)
    before, after = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
    single = torch.bincount(text, minlength=vocab).double()
    chance = (single[after] + 1) / (len(text) + vocab)
    if vocab <= 8192:
        pairs = torch.bincount(text[:-1] * vocab + text[1:], minlength=vocab**2)
        chance = (pairs[before * vocab + after] + REFERENCE_PRIOR * chance) / (single[before] + REFERENCE_PRIOR)
    return -chance.log().float().cpu().numpy()


@dataclass
class Probe:
    """Rows for the second process. The first `spliced` of them have a foreign tail from `at` on."""

    rows: np.ndarray  # (n,) which rows of the split these are
    inputs: np.ndarray  # (n, T) what the model is shown
    at: np.ndarray  # (n,) the first foreign position; T where there is none
    chance: np.ndarray  # (n,) of this splice, among all that could be drawn; 1 where there is none
    turn: np.ndarray  # (n,) splices of one row come in turns, the shorter beginnings first
    spliced: int


def plan_probe(inputs: np.ndarray, gains: np.ndarray, tails: np.ndarray, rng: np.random.Generator) -> Probe:
    """Choose rows and splices, one for each of `tails` (n, T), rows of the training text. `gains` (N, T): by how many
    nats the model beats the reference at each position.

    A position is drawn in proportion to what the model gains there (and one in ten evenly), and what comes after it is
    replaced: so a model that owes a share f of its gain to later tokens is met by each probe with a chance of 0.9 f,
    at however few positions it looks. What is shown never holds the true continuation of a splice that is still to
    be answered: rows that are shown as they are, in other company, are not spliced.
    """
    (count, context), worth = inputs.shape, np.maximum(gains[:, :-1], 0.0).astype(np.float64)
    repeated = rng.permutation(count)[: min(REPEATS, count // 3)]
    worth[repeated] = 0.0
    open_ = np.ones_like(worth)
    open_[repeated] = 0.0
    chance = (0.1 * open_ / open_.sum() + 0.9 * worth / max(worth.sum(), 1e-9)).ravel()
    drawn = rng.choice(chance.size, size=len(tails), p=chance / chance.sum())
    rows, at = np.divmod(drawn, context - 1)
    at = at + 1
    by_row = np.lexsort((at, rows))
    begins = np.flatnonzero(np.r_[True, np.diff(rows[by_row]) > 0])
    turn = np.empty(len(drawn), dtype=np.int64)
    turn[by_row] = np.arange(len(drawn)) - np.repeat(begins, np.diff(np.r_[begins, len(drawn)]))
    shown = np.where(np.arange(context) < at[:, None], inputs[rows], tails)
    none = np.zeros(len(repeated), dtype=np.int64)
    return Probe(
        np.concatenate([rows, repeated]), np.concatenate([shown, inputs[repeated]]),
        np.concatenate([at, none + context]), np.concatenate([chance[drawn], none + 1.0]),
        np.concatenate([turn, none]), len(drawn),
    )  # fmt: skip


def training_rows(meta: dict[str, Any], count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (count, T) from anywhere in the training text."""
    text = np.memmap(TRAIN / meta["key"] / "train.bin", dtype=meta["dtype"], mode="r")
    starts = rng.integers(0, len(text) - meta["context"], size=count)
    return np.stack([text[start : start + meta["context"]] for start in starts]).astype(np.int64)


def probes_needed(claimed: float, gained: float, device: str) -> int:
    """How many probes meet, with 99%, a model that owes to later tokens what it claims to be better by, in nats. Each
    meets it with a chance of 0.9 `claimed` / `gained`; ln(100) = 4.6."""
    least, most = PROBES[device]
    return least if claimed <= 0 else int(min(most, max(least, math.ceil(4.6 * gained / (0.9 * claimed)))))


def apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """one - other; 0 where both are the same infinity, and infinity where either is no number, as 'no' is no 'yes'."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.where(one == other, 0.0, one - other), nan=np.inf)


def probe_model(server: ModelServer, probe: Probe, targets: np.ndarray, logp: np.ndarray, bos: int, batch: int,
                columns: Any, device: str, rng: np.random.Generator) -> dict[str, float]:
    """Show a fresh process the rows of `probe` in another order, so among other neighbours, and compare the
    log-probabilities before each splice with those of the scoring process, `logp` (N, T, K + 1).

    A causal model cannot tell the two apart. One that used later tokens while scoring cannot answer the same here,
    for the true ones are nowhere in what this process sees; and while scoring it could not know which rows would
    be asked again, for they are drawn from the operating system's randomness. `peeked` is an unbiased estimate of the
    nats that the whole split would cost more without its later tokens (each probe weighted by its chance, Horvitz and
    Thompson 1952): 0 for a causal model. Raises Violation.
    """
    rows, spliced_at, found = probe.rows, probe.at[: probe.spliced], np.empty_like(logp[probe.rows])
    for turn in range(int(probe.turn.max()) + 1):  # whose rows never share a batch with another turn's
        shown = rng.permutation(np.flatnonzero(probe.turn == turn))
        inputs = probe.inputs[shown]
        _, found[shown] = score(server, inputs, targets[rows[shown]], bos, batch, columns, device)
    before = np.arange(targets.shape[1]) < probe.at[:, None]
    difference = np.where(before, np.abs(apart(found, logp[rows])).max(axis=-1), 0.0)
    spliced, repeated = difference[: probe.spliced], difference[probe.spliced :]
    edge = np.arange(probe.spliced), spliced_at - 1
    gain = apart(logp[rows][edge][:, 0], found[edge][:, 0])  # of having the true next token among the inputs
    gain = np.where(targets[rows][edge] == bos, 0.0, gain) / probe.chance[: probe.spliced]
    error = gain.std() / math.sqrt(len(gain))
    rms, peak = TOLERANCE[LOGITS_DTYPE[device]]
    if repeated.max() > peak or np.sqrt(np.mean(repeated**2)) > rms:
        raise Violation(f"the prediction for a row depends on the other rows of its batch or on earlier batches "
                        f"(the same row again differs by {repeated.max():.3g} nats)")
    if spliced.max() > peak or np.sqrt((spliced**2).sum() / before[: probe.spliced].sum()) > rms:
        row, position = np.unravel_index(spliced.argmax(), spliced.shape)
        raise Violation(f"not causal: tokens changed from position {spliced_at[row]} on change the prediction made "
                        f"at position {position} by {spliced.max():.3g} nats")
    if gain.mean() > 4 * error + rms * targets.size / 3:
        raise Violation(f"not causal: a token is {gain.mean() / targets.size:.3g} nats cheaper when later ones are "
                        f"among the inputs")
    differences = {"probe_difference": float(spliced.max()), "repeat_difference": float(repeated.max())}
    return {**differences, "probes": probe.spliced, "peeked": max(0.0, float(gain.mean()))}


def random_costs(server: ModelServer, meta: dict[str, Any], batch: int, device: str,
                 rng: np.random.Generator) -> np.ndarray:
    """Bits that each of some uniformly random tokens costs the model."""
    import torch

    kinds = meta["vocab_size"] - 1  # every token but the start of a document, the last id
    tokens = rng.integers(0, kinds, size=(CANARIES, meta["context"] + 1))
    no_columns = torch.zeros(0, dtype=torch.long, device=device)
    costs, _ = score(server, tokens[:, :-1], tokens[:, 1:], meta["bos"], batch, no_columns, device)
    return costs / math.log(2)


def check_canary(bits: np.ndarray, kinds: int) -> float:
    """The mean of `bits`, which uniformly random tokens of so many kinds cost. Whatever a model expects, log2 of their
    number is the least they cost on average, and by Markov's inequality fewer than two in that number cost less than
    one bit. Raises Violation."""
    expected = 2 * bits.size / kinds
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
    began = time.monotonic()
    meta = read_meta(HELDOUT)
    if not CHECKPOINT.exists():
        raise SystemExit(f"no model at {CHECKPOINT}: run `python train.py` first")
    if trained_on() != meta["data_hash"]:
        raise UserError(f"the model at {CHECKPOINT} was not trained on the data in use, {meta['source']}: "
                        "run `python train.py`")
    seed = secrets.randbits(48) if probe_seed is None else probe_seed
    rng = np.random.default_rng(seed)
    scorer, prober = ModelServer(), ModelServer()  # they import torch while this process does, and then wait
    try:
        import torch

        device = device_name()
        known_answer(device)
        tokens, lengths = heldout_rows(meta, split)
        inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
        batch = max(4, BATCH_TOKENS[device] // meta["context"])
        columns = torch.from_numpy(rng.integers(0, meta["vocab_size"], size=COLUMNS)).to(device)
        shape = (batch, meta["context"], meta["vocab_size"])
        scorer.open(shape, device)
        costs, logp = score(scorer, inputs, targets, meta["bos"], batch, columns, device)
        canary = random_costs(scorer, meta, batch, device, rng)
        scorer.close()  # before anything of the model runs in the other
        gains = np.where(lengths > 0, reference_costs(meta, inputs, targets, device) - costs, 0.0)
        nats = float(costs[lengths > 0].sum(dtype=np.float64))
        wanted = probes_needed(claim(nats, int(lengths.sum())), float(np.maximum(gains, 0).sum()), device)
        probe = plan_probe(inputs, gains, training_rows(meta, wanted, rng), rng)
        prober.open(shape, device)
        checks = probe_model(prober, probe, targets, logp, meta["bos"], batch, columns, device, rng)
    finally:
        scorer.close()
        prober.close()
    return {
        f"{split}_bpb": (nats + checks.pop("peeked")) / math.log(2) / int(lengths.sum()),
        f"{split}_bytes": int(lengths.sum()),
        f"{split}_tokens": int((lengths > 0).sum()),
        "canary_bits": check_canary(canary, meta["vocab_size"] - 1),
        **checks,
        "load_seconds": max(scorer.load_seconds, prober.load_seconds),
        "probe_seed": seed,
        "data_hash": meta["data_hash"],
        "evaluation_seconds": time.monotonic() - began,
    }


def claim(nats: float, size: int) -> float:
    """By how many nats over `size` bytes this model is better than the best one so far, whose bits per byte the
    harness says; 0 where it says none."""
    best = float(os.environ.get("RESEARCH_INCUMBENT") or "nan")
    return 0.0 if math.isnan(best) else best * size * math.log(2) - nats


def command(split: str, probe_seed: int | None) -> None:
    """Print what `evaluate` gives, or `violation: <reason>` with exit code 3."""
    try:
        show(evaluate(split, probe_seed))
    except Violation as violation:
        print(f"violation: {violation}", flush=True)
        sys.exit(3)
