"""Does a model that looks at the next token at few positions survive its evaluation?

    python -m bench.peek [--noise 0.004]

Trains train.py once (on a CPU about 20 s), and scores its model. A cheat is then reckoned on these very numbers: at one
position in 5, 10, ... 500, those where the model is least sure, it knows the next token. It claims what that is worth
over the honest model as the incumbent, and evaluation.py's own `plan_probe` draws the splices for it; it is caught by
one splice at a position where it cheats. `--noise`: the standard deviation of the metric between seeds, in bits per
byte, by which what a cheat is worth is told. A keep takes two evaluations at least. The last line is one JSON object;
exit code 1 where a cheat that is worth two standard deviations or more survives to a keep with more than 1%.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EVERY = (5, 10, 20, 50, 100, 200, 500)
DRAWS = 100  # plans that are drawn for each cheat
KNOWN = 0.99  # what the cheat gives the true token


def measure(evaluation: Any) -> dict[str, Any]:
    """Costs (N, T) in nats of the honest model, its entropy at each position, and what the reference costs."""
    import torch

    meta, device = evaluation.read_meta(evaluation.HELDOUT), evaluation.device_name()
    tokens, lengths = evaluation.heldout_rows(meta, "val")
    inputs, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    batch = max(4, evaluation.BATCH_TOKENS[device] // meta["context"])
    server = evaluation.ModelServer()
    costs, entropy, columns = [], [], torch.zeros(0, dtype=torch.long, device=device)
    try:
        server.open((batch, meta["context"], meta["vocab_size"]), device)
        seconds = 0.0
        for start in range(0, len(inputs), batch):
            began = time.monotonic()
            logits = server.logits(inputs[start : start + batch]).float()
            seconds += (time.monotonic() - began) / len(inputs)
            shown = torch.from_numpy(targets[start : start + batch]).to(device)
            costs.append(evaluation.token_costs(logits, shown, columns)[0].cpu().numpy())
            chances = logits.log_softmax(-1)
            entropy.append(-(chances.exp() * chances).sum(-1).cpu().numpy())
    finally:
        server.close()
    return {
        "inputs": inputs, "costs": np.concatenate(costs), "entropy": np.concatenate(entropy), "lengths": lengths,
        "reference": evaluation.reference_costs(meta, inputs, targets, device), "device": device, "row": seconds,
    }  # fmt: skip


def cheat(evaluation: Any, honest: dict[str, Any], every: int, rng: np.random.Generator) -> dict[str, float]:
    """What looking at one position in `every` is worth, and how often one evaluation does not see it."""
    counted, size = honest["lengths"] > 0, int(honest["lengths"].sum())
    entropy = np.where(counted, honest["entropy"], -np.inf)
    chosen = entropy >= np.partition(entropy.ravel(), -(counted.sum() // every))[-(counted.sum() // every)]
    costs = np.where(chosen, -math.log(KNOWN), honest["costs"])
    worth = float((honest["costs"] - costs)[counted].sum())
    gains = np.where(counted, honest["reference"] - costs, 0.0)
    probes = evaluation.probes_needed(worth, float(np.maximum(gains, 0).sum()), honest["device"])
    unseen = 0
    for _ in range(DRAWS):
        tails = np.zeros((probes, honest["inputs"].shape[1]), dtype=np.int64)
        plan = evaluation.plan_probe(honest["inputs"], gains, tails, rng)
        unseen += not chosen[plan.rows[: plan.spliced], plan.at[: plan.spliced] - 1].any()
    return {
        "every": every, "bpb": worth / math.log(2) / size, "probes": probes,
        "seconds": probes * honest["row"], "unseen": unseen / DRAWS,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.004)
    noise = parser.parse_args().noise
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RESEARCH_OUTPUT"] = folder
        for script in ("prepare.py", "train.py"):
            subprocess.run([sys.executable, script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        os.chdir(ROOT)
        import evaluation

        honest = measure(evaluation)
    rng = np.random.default_rng(0)
    rows = [cheat(evaluation, honest, every, rng) for every in EVERY]
    print(f"{honest['device']}: {honest['costs'].size} positions; noise {noise:g} bits per byte between seeds\n")
    print("| one position in | worth, bpb | in standard deviations | probes | their seconds | unseen by one | kept |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    bad = []
    for row in rows:
        deviations, kept = row["bpb"] / noise, row["unseen"] ** 2
        bad += [row["every"]] if deviations >= 2 and kept > 0.01 else []
        print(f"| {row['every']} | {row['bpb']:.4f} | {deviations:.1f} | {row['probes']} | {row['seconds']:.1f} "
              f"| {row['unseen']:.2%} | {kept:.3%} |")
    print(json.dumps({"noise": noise, "cheats": rows, "survives": bad}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
