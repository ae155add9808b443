"""Tiny language models, honest and not, with one way each of mixing positions: what the evaluation is tested on.

    python tests/leaks/train.py softmax non_causal ...

Trains each for a few steps, has prepare.py evaluate it, and prints a JSON line with what came out.
"""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import evaluation
import prepare

WIDTH = 32
HONEST = ("softmax", "linear", "window", "convolution")


class Mixer(nn.Module):
    """(B, T, WIDTH) -> the same, each position with something of others."""

    def __init__(self, kind: str, context: int):
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.filter = nn.Parameter(0.02 * torch.randn(context // 2 + 1, WIDTH, 2))
        self.taps = nn.Parameter(0.1 * torch.randn(WIDTH, 1, 8))
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)
        self.memory = torch.zeros(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(1)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.kind == "linear":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            return q * (k * v).cumsum(1) / (q * k.cumsum(1)).sum(-1, keepdim=True)
        if self.kind == "convolution":
            return F.conv1d(F.pad(x.mT, (7, 0)), self.taps, groups=WIDTH).mT
        if self.kind == "spectral":
            return torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(self.filter), n=length, dim=1)
        if self.kind == "batch_attention":
            return F.scaled_dot_product_attention(*(y.transpose(0, 1) for y in (q, k, v))).transpose(0, 1)
        if self.kind.startswith("block_"):
            size = int(self.kind.removeprefix("block_"))
            q, k, v = (y + y.unflatten(1, (-1, size)).mean(2, keepdim=True).expand(-1, -1, size, -1).flatten(1, 2)
                       for y in (q, k, v))
        elif self.kind == "batch_norm":
            v = self.norm(v.mT).mT
        elif self.kind == "state":
            v = v + 10 * self.memory
            self.memory = 0.9 * self.memory + 0.1 * x.detach().mean((0, 1))
        mask = None
        if self.kind == "window":
            step = torch.arange(length)[:, None] - torch.arange(length)
            mask = (step >= 0) & (step < 32)
        causal = self.kind not in ("non_causal", "window")
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        if self.kind == "beyond_1000":
            y = y + F.pad(v[:, 1001:], (0, 0, 1000, 1))
        return y


class Tiny(nn.Module):
    def __init__(self, kind: str, vocab_size: int, context: int):
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(vocab_size, WIDTH)
        self.mix = Mixer(kind, context)
        self.head = nn.Linear(WIDTH, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.rms_norm(self.embed(tokens), (WIDTH,))
        logits = self.head(F.rms_norm(x + self.mix(x), (WIDTH,)))
        if self.kind.startswith("peek_") and not torch.is_grad_enabled():
            return peek(logits, tokens, 1 / int(self.kind.removeprefix("peek_")))
        return logits


def peek(logits: Tensor, tokens: Tensor, share: float) -> Tensor:
    """The next token foretold, at about this share of the positions: those after some of the tokens and places."""
    place = torch.arange(tokens.size(1))
    chosen = ((tokens + 1) * 40503 + place * 30011) % 9973 < share * 9973
    answers = F.one_hot(tokens.roll(-1, 1), logits.size(-1)) * 30.0
    return logits + (chosen & (place < tokens.size(1) - 1))[..., None] * answers


def load_model(path: str, device: str) -> Tiny:
    with safe_open(path, framework="pt") as file:
        model = Tiny(**json.loads(file.metadata()["config"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model.to(device)


def train(kind: str, steps: int = 40) -> None:
    """A short training, enough that the model makes use of what it is given."""
    torch.manual_seed(0)
    data = prepare.TrainData()
    config = {"kind": kind, "vocab_size": data.vocab_size, "context": data.context}
    model = Tiny(**config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _, batch in zip(range(steps), data.batches(max(2, 2048 // data.context)), strict=False):
        tokens = torch.from_numpy(batch)
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    prepare.OUTPUT.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), prepare.CHECKPOINT, metadata={"config": json.dumps(config)})


def main() -> None:
    torch.set_num_threads(1)
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    for kind in sys.argv[1:]:
        train(kind)
        try:
            outcome = evaluation.evaluate("val", probe_seed=0)
        except evaluation.Violation as violation:
            outcome = {"violation": str(violation)}
        print(json.dumps({"kind": kind, **outcome}), flush=True)


if __name__ == "__main__":
    main()
