"""The validation loss of the model that train.py saved, measured so that the model's code can't choose it.

    python prepare.py evaluate [--split test]

This file never imports train.py. It starts child processes for that, hands them input tokens only, and computes the
loss itself: targets, softmax and sums stay here. Two children run the model: one is scored, the other is only probed,
and what the two say of the same text must agree. What no honest model does is a `Violation`.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import secrets
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from prepare import CHECKPOINT, HELDOUT, HERE, UserError, device_name, read_meta, show, trained_on

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


# ---------------------------------------------------------------------------------------------------------------------
# The child, which runs the edited model code


def serve(memory: int, commands: int, answers: int) -> None:
    """Load the model, read the shape of the shared memory from `commands`, and then answer each byte that comes
    there by writing the logits of the tokens in that memory."""
    sys.path.insert(0, os.getcwd())
    import torch

    import train  # pyright: ignore[reportMissingImports]

    device = device_name()
    model = train.load_model(str(CHECKPOINT), device)
    inputs, logits = shared_tensors(memory, json.loads(os.read(commands, LOG_BYTES)), device)
    os.write(answers, b"r")
    with torch.inference_mode():
        while os.read(commands, 1):
            out = model(inputs.to(device))
            if tuple(out.shape) != tuple(logits.shape):
                raise SystemExit(f"the model returns {tuple(out.shape)}, not {tuple(logits.shape)}")
            logits.copy_(out.to(logits.dtype))  # converted on the GPU: copy_ alone would do it on the CPU
            os.write(answers, b"k")


def shared_tensors(memory: int, shape: tuple[int, int, int], device: str) -> tuple[Any, Any]:
    """Inputs (B, T) int64 and logits (B, T, V) over the file descriptor `memory`; pinned where there is a GPU."""
    import torch

    rows, context, vocab = shape
    mapping = mmap.mmap(memory, 0)
    inputs = torch.frombuffer(mapping, dtype=torch.int64, count=rows * context)
    logits = torch.frombuffer(mapping, dtype=getattr(torch, LOGITS_DTYPE[device]), offset=inputs.nbytes)
    if device == "cuda":
        cudart: Any = torch.cuda.cudart()
        cudart.cudaHostRegister(inputs.data_ptr(), len(mapping), 0)
    return inputs.view(rows, context), logits.view(rows, context, vocab)


# ---------------------------------------------------------------------------------------------------------------------
# The parent, which holds the targets and trusts nothing that the child sends


class Violation(Exception):
    """The model does what no honest model does: exit code 3 and a last line `violation: <reason>`."""


class ModelServer:
    """A child process with the model. It sees input tokens in shared memory and writes logits there; nothing else
    that it sends is read but single bytes, and what it prints goes to a bounded log."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("logits")
        command_end, self.commands = os.pipe()
        self.answers, answer_end = os.pipe()
        descriptors = (self.memory, command_end, answer_end)
        prefix = json.loads(os.environ.get("RESEARCH_MODEL_SANDBOX") or "[]")
        command = [sys.executable, "-P", os.path.join(HERE, "prepare.py"), "serve", *map(str, descriptors)]
        self.process = subprocess.Popen(
            prefix + command, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(command_end)
        os.close(answer_end)
        self.log = b""
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        self.reader.start()

    def open(self, shape: tuple[int, int, int], device: str) -> None:
        """Share memory of this shape (B, T, V) with the child, and wait until its model is loaded."""
        rows, context, vocab = shape
        os.ftruncate(self.memory, rows * context * (8 + vocab * (2 if LOGITS_DTYPE[device] == "float16" else 4)))
        self.device = device
        self.inputs, self.output = shared_tensors(self.memory, shape, device)
        self._command(json.dumps(shape).encode())
        self._answer()

    def _read_log(self) -> None:
        assert self.process.stdout
        while block := os.read(self.process.stdout.fileno(), LOG_BYTES):
            self.log = (self.log + block)[-LOG_BYTES:]

    def _command(self, text: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # a dead child is noticed by the missing answer
            os.write(self.commands, text)

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

        self.inputs.zero_()
        self.inputs[: len(inputs)] = torch.from_numpy(inputs)
        self._command(b"g")
        self._answer()
        return self.output[: len(inputs)].to(self.device, copy=True)

    def end(self) -> None:
        """Ask the process, and the sandbox around it where there is one, to end."""
        self.process.terminate() if os.environ.get("RESEARCH_MODEL_SANDBOX") else self.process.kill()

    def close(self) -> None:
        """Wait until it has ended for certain."""
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5)  # a thread that is reading while the interpreter ends can abort the process
        for descriptor in (self.memory, self.commands, self.answers):
            os.close(descriptor)


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
    be asked again, for they are drawn from the operating system's randomness. Raises Violation.
    """
    shuffled = rng.permutation(len(probe.rows))
    rows, at = probe.rows[shuffled], probe.at[shuffled]
    _, found = score(server, probe.inputs[shuffled], targets[rows], bos, batch, columns, device)
    before = np.arange(targets.shape[1]) < at[:, None]
    difference = np.where(before, np.abs(apart(found, logp[rows])).max(axis=-1), 0.0)
    is_spliced = shuffled < probe.spliced
    spliced, repeated = difference[is_spliced], difference[~is_spliced]
    edge = np.flatnonzero(is_spliced), at[is_spliced] - 1
    gain = apart(logp[rows][edge][:, 0], found[edge][:, 0])  # of having the true next token among the inputs
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
    costs, _ = score(server, tokens[:, :-1], tokens[:, 1:], meta["bos"], batch, no_columns, device)
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
    began = time.monotonic()
    meta = read_meta(HELDOUT)
    if not CHECKPOINT.exists():
        raise SystemExit(f"no model at {CHECKPOINT}: run `python train.py` first")
    if trained_on() != meta["data_hash"]:
        raise UserError(f"the model at {CHECKPOINT} was not trained on the data in use, {meta['source']}: "
                        "run `python train.py`")
    seed = secrets.randbits(48) if probe_seed is None else probe_seed
    rng = np.random.default_rng(seed)
    scorer, prober = ModelServer(), ModelServer()  # they import torch and load the model while this process does
    try:
        import torch

        device = device_name()
        known_answer(device)
        tokens, lengths = heldout_rows(meta, split)
        inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
        batch = max(4, BATCH_TOKENS[device] // meta["context"])
        columns = torch.from_numpy(rng.integers(0, meta["vocab_size"], size=COLUMNS)).to(device)
        for server in (scorer, prober):
            server.open((batch, meta["context"], meta["vocab_size"]), device)
        costs, logp = score(scorer, inputs, targets, meta["bos"], batch, columns, device)
        probe = plan_probe(inputs, PROBES[device], rng)
        checks = probe_model(prober, probe, targets, logp, meta["bos"], batch, columns, device, rng)
        canary = check_canary(scorer, meta, batch, device, rng)
    finally:
        for server in (scorer, prober):  # both at once: a process with much memory on a GPU takes a while to end
            server.end()
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


def command(split: str, probe_seed: int | None) -> None:
    """Print what `evaluate` gives, or `violation: <reason>` with exit code 3."""
    try:
        show(evaluate(split, probe_seed))
    except Violation as violation:
        print(f"violation: {violation}", flush=True)
        sys.exit(3)
