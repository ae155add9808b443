"""A small GPT on the prepared text: the one file that the agent edits.

    python train.py

Trains for the budget that prepare.py counts, saves the weights and this file's sizes to RESEARCH_OUTPUT, and prints a
summary. The loss that decides is measured afterwards by `python prepare.py evaluate`, which calls `load_model` below.

Methods: pre-norm transformer with rotary positions (Su et al. 2021), QK-norm (Dehghani et al. 2023), squared ReLU (So
et al. 2021), logit soft-cap (Gemma 2), value embeddings and per-layer residual scales (modded-nanogpt, nanochat),
hashed embeddings of token pairs, copying from earlier runs of the same tokens (in the row, as the n-gram heads of
Akyürek et al. 2024; in all text trained on, as infini-gram, Liu et al. 2024), Muon (Jordan 2024) with Polar Express
coefficients (Amsel et al. 2025) and per-neuron second moments (NorMuon, Li et al. 2025), AdamW for the rest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import prepare

CUDA = torch.cuda.is_available()
# The budget in tokens; where it is a time, about what an H100, or two CPU cores, get through at these sizes.
TOKENS = prepare.budget_tokens() or (1_000_000 if CUDA else 10_000) * prepare.budget_seconds()

# Sizes for a trial of about 20 s on two CPU cores.
DEPTH = 2  # transformer blocks
WIDTH = 128  # channels of the residual stream
HEAD_SIZE = 64  # channels of an attention head; WIDTH is a multiple
BATCH_ROWS = 16  # rows of a batch, each as long as the context that prepare.py sets
GRAM_SLOTS = 16384  # rows of each table of hashed token pairs, triples...
MEMORY_SLOTS = 1048576  # places in each memory; best more than there are tokens to train on
LOGIT_CAP = 0.0  # logits are bent smoothly into plus or minus this; 0 leaves them alone and is cheaper
MATRIX_LR = 0.03  # Muon's peak rate, for the blocks' matrices
if not CUDA and TOKENS > 400_000:  # more than 40 s
    DEPTH = 4
    WIDTH = 192

if CUDA:  # Sizes for one or two minutes on an H100.
    DEPTH = 8
    WIDTH = 640
    HEAD_SIZE = 128
    BATCH_ROWS = 32
    GRAM_SLOTS = 131072
    MEMORY_SLOTS = 134217728
    LOGIT_CAP = 15.0
    MATRIX_LR = 0.045
    if TOKENS > 180_000_000:  # more than three minutes
        WIDTH = 896

# The model.
GRAMS = 2  # the longest run of tokens with an embedding of its own
MLP_RATIO = 4  # hidden channels of a block's MLP, in widths
ROPE_BASE = 100000.0  # the longest rotary wavelength, in tokens over 2 pi
QK_SCALE = 1.15  # queries and keys are unit vectors times this (times HEAD_SIZE ** 0.25)
ROW_RUNS = (2, 5)  # recall what followed the last run of so many equal tokens in the row
MEMORY_RUNS = (4, 8)  # and in all the rows trained on
VALUE_EMBED_EVERY = 2  # every so many blocks the token's own value vector is added in attention

# The optimizers. Rates are peaks; Muon's is above.
EMBED_LR = 0.3  # AdamW: token and value embeddings
GRAM_LR = 0.3  # AdamW: embeddings of pairs, triples...
HEAD_LR = 0.01  # AdamW: the output layer
SCALAR_LR = 0.03  # AdamW: residual scales
MOMENTUM = 0.95  # Muon's
BETA1 = 0.8  # AdamW's
BETA2 = 0.95  # AdamW's
WEIGHT_DECAY = 0.1  # Muon's, falling to zero with the rate
EMBED_DECAY = 0.0  # AdamW's on embeddings
WARMUP = 0.0  # share of the budget in which the rate rises
WARMDOWN = 0.7  # share of the budget in which it falls
FINAL_LR = 0.0  # the rate at the end, as a share of the peak


@dataclass
class Config:
    """What the weights alone do not say; saved beside them."""

    vocab_size: int
    context: int
    depth: int = DEPTH
    width: int = WIDTH
    head_size: int = HEAD_SIZE
    mlp_ratio: int = MLP_RATIO
    grams: int = GRAMS
    gram_slots: int = GRAM_SLOTS
    row_runs: Sequence[int] = ROW_RUNS
    memory_runs: Sequence[int] = MEMORY_RUNS
    memory_slots: int = MEMORY_SLOTS
    value_embed_every: int = VALUE_EMBED_EVERY
    rope_base: float = ROPE_BASE
    qk_scale: float = QK_SCALE
    logit_cap: float = LOGIT_CAP


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """No bias; the float32 weight is cast to the activations' type."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class Attention(nn.Module):
    def __init__(self, config: Config, has_values: bool):
        super().__init__()
        self.heads, self.head_size = config.width // config.head_size, config.head_size
        self.scale = config.qk_scale**2 * config.head_size**0.5 / config.head_size
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.value_embed = nn.Embedding(config.vocab_size, config.width) if has_values else None

    def forward(self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, time_, width = x.shape
        q, k, v = self.qkv(x).view(rows, time_, 3, self.heads, self.head_size).unbind(2)
        if self.value_embed is not None:
            v = v + self.value_embed(tokens).to(x.dtype).view_as(v)
        q, k = rotate(norm(q), cos, sin), rotate(norm(k), cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(y.transpose(1, 2).reshape(rows, time_, width))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (B, T, heads, head_size) with tables (T, 1, head_size / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, config: Config, has_values: bool):
        super().__init__()
        self.attention = Attention(config, has_values)
        self.up = Linear(config.width, config.mlp_ratio * config.width)
        self.down = Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor, x0: Tensor, grams: Tensor, scales: Tensor, tokens: Tensor, cos: Tensor,
                sin: Tensor) -> Tensor:
        x = scales[0] * x + scales[1] * x0 + scales[2] * grams
        x = x + self.attention(norm(x), tokens, cos, sin)
        return x + self.down(F.relu(self.up(norm(x))).square())


class Recall(nn.Module):
    """Which token followed, the last time that the tokens ran as they do here: in this row, or in any row trained on.

    Weights can't learn much from a single look at a text; a memory can. Each maps the hash of a run of n tokens to
    step << 32 | 11 further bits of the hash, and a 1 << 20 | the token that followed: the newest entry is the largest.
    """

    def __init__(self, config: Config):
        super().__init__()
        assert config.vocab_size < 1 << 20, "an entry has 20 bits for the token"
        self.row_runs, self.memory_runs, self.nothing = config.row_runs, config.memory_runs, config.vocab_size
        self.memory: Tensor
        self.since: Tensor
        self.register_buffer("memory", torch.zeros(len(self.memory_runs), config.memory_slots, dtype=torch.int64))
        # In a second pass over the text every answer would be there, and the model would learn to trust blindly. So
        # while it trains, only what was written after this step counts: the first one of the pass.
        self.register_buffer("since", torch.zeros((), dtype=torch.int64), persistent=False)

    def keys(self, tokens: Tensor) -> dict[int, Tensor]:
        """n -> hashes (B, T) of the runs of n tokens that end at each position; a row is led by tokens of number 0."""
        key, keys = torch.zeros_like(tokens), {}
        for n in range(1, max((0, *self.row_runs, *self.memory_runs)) + 1):
            key = key * 6364136223846793005 + F.pad(tokens, (n - 1, 0))[:, : tokens.size(1)] * 2862933555777941757
            keys[n] = key ^ key >> 29
        return keys

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, T) -> for each kind of run the token (B, T) that followed it; `nothing` where none is known."""
        keys, place, found = self.keys(tokens), torch.arange(tokens.size(1), device=tokens.device), []
        for n in self.row_runs:
            same = (keys[n][:, :, None] == keys[n][:, None, :]) & (place < place[:, None])
            last = torch.where(same, place, -1).amax(-1)
            found.append(torch.where(last < 0, self.nothing, tokens.gather(1, last + 1)))
        for n, memory in zip(self.memory_runs, self.memory, strict=True):
            held = memory[keys[n] % len(memory)].long()
            known = (held >> 20 & 0xFFF == self.check(keys[n])) & (held >> 32 > self.since)
            found.append(torch.where(known, held & 0xFFFFF, self.nothing))
        return found

    @staticmethod
    def check(key: Tensor) -> Tensor:
        """11 bits of a hash that its place in the memory does not tell, and a 1: 0 is an empty place."""
        return key >> 40 & 0xFFF | 1

    @torch.no_grad()
    def remember(self, tokens: Tensor, step: int) -> None:
        """Write rows (B, T + 1) into the memories, once they have been trained on."""
        keys = self.keys(tokens[:, :-1])
        for n, memory in zip(self.memory_runs, self.memory, strict=True):
            entry = (step << 32) + (self.check(keys[n]) << 20) + tokens[:, 1:]
            memory.scatter_reduce_(0, (keys[n] % len(memory)).flatten(), entry.flatten(), "amax")


ZEROS_AT_FIRST = ("out.weight", "down.weight", "head.weight", "trust.weight")


class GPT(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.grams = nn.ModuleList(nn.Embedding(config.gram_slots, config.width) for _ in range(config.grams - 1))
        self.recall = Recall(config)
        kinds = len(config.row_runs) + len(config.memory_runs)
        self.recalled = nn.ModuleList(nn.Embedding(config.vocab_size + 1, config.width) for _ in range(kinds))
        self.trust = Linear(config.width, kinds)
        every = config.value_embed_every
        self.blocks = nn.ModuleList(Block(config, i % every == every - 1) for i in range(config.depth))
        self.head = Linear(config.width, config.vocab_size)
        self.cos: Tensor
        self.sin: Tensor
        self.scales = nn.Parameter(torch.empty(config.depth, 3))  # of the stream, the token, and the grams
        self.register_buffer("cos", torch.empty(config.context, 1, config.head_size // 2), persistent=False)
        self.register_buffer("sin", torch.empty_like(self.cos), persistent=False)

    @torch.no_grad()
    def initialize(self) -> GPT:
        """Fill the weights at random and the rotary tables as they must be."""
        frequency = self.config.rope_base ** -torch.linspace(0, 1, self.config.head_size // 2)
        angle = torch.outer(torch.arange(self.config.context), frequency)[:, None]
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())
        for name, p in self.named_parameters():
            if name.endswith(ZEROS_AT_FIRST) or name.startswith(("grams", "recalled")):
                nn.init.zeros_(p)
            elif name.endswith("embed.weight"):
                nn.init.normal_(p, std=1.0)
            elif name == "scales":
                p.copy_(torch.tensor([1.0, 0.1, 0.05]))
            else:
                nn.init.uniform_(p, -((3 / p.size(1)) ** 0.5), (3 / p.size(1)) ** 0.5)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> logits (B, T, vocab), float32."""
        x0, grams = self.enter(tokens)
        recalled = self.recall(tokens)
        for token, table in zip(recalled, self.recalled, strict=True):
            grams = grams + table(token).to(x0.dtype)
        cos, sin = self.cos[: tokens.size(1)].to(x0.dtype), self.sin[: tokens.size(1)].to(x0.dtype)
        x, scales = x0, self.scales.to(x0.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, x0, grams, scales[i], tokens, cos, sin)
        x = norm(x)
        for token, trust in zip(recalled, self.trust(x).unbind(-1), strict=True):  # towards the recalled token's logit
            known = token < self.config.vocab_size
            x = x + (trust * known)[..., None] * F.embedding(token * known, self.head.weight).to(x.dtype)
        logits, cap = self.head(x).float(), self.config.logit_cap
        return cap * torch.tanh(logits / cap) if cap else logits

    def enter(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of the tokens, and of the runs of 2, 3... tokens that end at each."""
        dtype = torch.bfloat16 if tokens.is_cuda else torch.float32
        x0 = norm(self.embed(tokens).to(dtype))
        grams, hashed = torch.zeros_like(x0), tokens
        for n, table in enumerate(self.grams, 1):
            hashed = (hashed + 1) * 36313 + F.pad(tokens, (n, 0))[:, :-n]
            grams = grams + table((hashed * 2654435761 >> 15) % self.config.gram_slots).to(dtype)
        return x0, grams

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T)."""
        logits = self(tokens)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten())

    def flops_per_token(self) -> float:
        """Forward and backward: 6 a matrix weight, and attention as 12 x width x context, causal skips not deducted."""
        c = self.config
        weights = c.depth * (4 + 2 * c.mlp_ratio) * c.width**2 + c.width * c.vocab_size
        return 6 * weights + 12 * c.depth * c.width * c.context


def new_model(config: Config, device: str) -> GPT:
    """A model with fresh weights."""
    with torch.device(device):
        return GPT(config).initialize()


def load_model(path: str, device: str) -> GPT:
    """The saved model, ready to turn tokens (B, T) into logits (B, T, vocab). prepare.py calls this to evaluate."""
    with safe_open(path, framework="pt", device=device) as file:
        model = new_model(Config(**json.loads(file.metadata()["config"])), device)
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()}, assign=True)  # noqa: SIM118
    model.recall.since.fill_(-2)  # all that is in the memory counts; the steps were not saved
    return model.eval()


# Newton-Schulz coefficients that bring the singular values near 1 in five steps (Polar Express).
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(x: Tensor) -> Tensor:
    """(n, rows, columns) -> the nearest (semi-)orthogonal matrices, roughly."""
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT.contiguous()
    for a, b, c in POLAR:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum, orthogonalized, its rows brought to equal size; one stack of equal matrices at a time."""

    def __init__(self, groups: list[list[Tensor]], parts: list[int]):
        self.groups, self.parts = groups, parts
        self.momentum = [torch.zeros_like(torch.stack(list(g))) for g in groups]
        self.second = [torch.zeros(m.size(0), m.size(1), 1, device=m.device) for m in self.momentum]

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        for group, parts, momentum, second in zip(self.groups, self.parts, self.momentum, self.second, strict=True):
            muon_update(group, [p.grad for p in group], momentum, second, lr, decay, parts)


def muon_update(params: list[Tensor], grads: list[Tensor | None], momentum: Tensor, second: Tensor, lr: float,
                decay: float, parts: int) -> None:
    """One step of a stack of equal matrices. Each is `parts` matrices side by side (queries, keys, values)."""
    grad = torch.stack([g for g in grads if g is not None])
    momentum.lerp_(grad, 1 - MOMENTUM)
    update = grad.lerp(momentum, MOMENTUM)
    n, rows, columns = update.shape
    if CUDA:
        update = update.bfloat16()
    update = orthogonalize(update.view(n * parts, rows // parts, columns)).view(n, rows, columns).float()
    size = update.square().mean(dim=-1, keepdim=True)
    second.lerp_(size, 1 - BETA2)
    scaled = update * (second + 1e-10).rsqrt()
    scaled = scaled * (update.norm(dim=(-2, -1), keepdim=True) / (scaled.norm(dim=(-2, -1), keepdim=True) + 1e-10))
    stretch = max(1.0, rows / parts / columns) ** 0.5
    for p, u in zip(params, scaled.unbind(0), strict=True):
        p.mul_(1 - lr * decay).sub_(u * (lr * stretch))


def make_optimizers(model: GPT) -> tuple[Muon, torch.optim.AdamW]:
    matrices: dict[tuple[int, ...], list[Tensor]] = {}  # stacks of equal shape, by the parts each is made of
    for name, p in model.blocks.named_parameters():
        if not name.endswith("embed.weight"):
            matrices.setdefault((3 if "qkv" in name else 1, *p.shape), []).append(p)
    muon = Muon(list(matrices.values()), [parts for parts, *_ in matrices])
    grams = [table.weight for table in (*model.grams, *model.recalled)]
    embeds = [p for name, p in model.named_parameters() if name.endswith("embed.weight")]
    groups = [
        {"params": embeds, "lr": EMBED_LR, "weight_decay": EMBED_DECAY},
        {"params": grams, "lr": GRAM_LR, "weight_decay": EMBED_DECAY},
        {"params": [model.head.weight, model.trust.weight], "lr": HEAD_LR},
        {"params": [model.scales], "lr": SCALAR_LR},
    ]
    adam = torch.optim.AdamW(groups, betas=(BETA1, BETA2), eps=1e-10, weight_decay=0.0, fused=True)
    for group in adam.param_groups:
        group["peak"] = group["lr"]
    return muon, adam


def schedule(used: float) -> float:
    """The share of the peak rates, from the share of the budget used."""
    if used < WARMUP:
        return used / WARMUP
    return FINAL_LR + (1 - FINAL_LR) * min(1.0, (1 - used) / max(WARMDOWN, 1e-9))


class Trainer:
    """The model, its optimizers, and one step of training."""

    def __init__(self, config: Config, device: str):
        self.model = new_model(config, device)
        self.muon, self.adam = make_optimizers(self.model)
        self.loss_of = torch.compile(self.model.loss, dynamic=False) if CUDA else self.model.loss
        self.steps = 0

    def compile(self, batch: Tensor) -> None:
        """Take the time of compiling before the budget's clock runs, on made-up rows and without leaving a trace."""
        self.step(batch, 0.0, remember=False)  # a rate of 0 leaves the weights, and the optimizers start afresh
        self.muon, self.adam = make_optimizers(self.model)
        self.steps = 0
        if CUDA:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def step(self, batch: Tensor, share: float, remember: bool = True) -> Tensor:
        """One update from rows (B, T + 1), at `share` of the peak rates; the loss before it."""
        loss = self.loss_of(batch[:, :-1], batch[:, 1:])
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * share
        self.muon.step(MATRIX_LR * share, WEIGHT_DECAY * share)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.steps += 1
        if remember:
            self.model.recall.remember(batch, self.steps)
        return loss.detach()


def train(trainer: Trainer, data: prepare.TrainData, budget: prepare.Budget) -> tuple[float, float, float]:
    """Train until the budget is used. The smoothed loss at the end, the seconds it took, and those before it."""
    batches, smooth, shown, read, passes = data.batches(BATCH_ROWS), math.log(data.vocab_size), 0.0, 0, 0
    in_flight: list[tuple[Tensor, torch.cuda.Event]] = []
    startup = budget.start()
    print(f"step 0 | loss {smooth:.4f} | 0.0%", flush=True)
    while (used := budget.used(data.served)) < 1.0:
        tokens = torch.from_numpy(next(batches))
        if data.passes > passes:
            passes = data.passes
            trainer.model.recall.since.fill_(trainer.steps + 1)  # this batch may still hold rows of the old pass
        if not CUDA:
            loss = trainer.step(tokens, schedule(used))
        else:  # the losses are read two steps late, so that the GPU never waits for this loop
            late = trainer.step(tokens.pin_memory().to("cuda", non_blocking=True), schedule(used))
            in_flight.append((late.to("cpu", non_blocking=True), torch.cuda.Event()))
            in_flight[-1][1].record()
            if len(in_flight) < 3:
                continue
            loss, arrived = in_flight.pop(0)
            arrived.synchronize()
        read += 1
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {read}")
        smooth += 0.1 * (loss.item() - smooth)
        if budget.elapsed - shown > 0.5:
            shown = budget.elapsed
            speed = data.served / shown / 1000
            share = 100 * budget.used(data.served)
            print(f"step {read} | loss {smooth:.4f} | {share:.1f}% | {speed:.0f}k tok/s", flush=True)
    if CUDA:
        torch.cuda.synchronize()
    return smooth, budget.elapsed, startup


def main() -> None:
    device = "cuda" if CUDA else "cpu"
    torch.manual_seed(prepare.SEED)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)  # decaying moments of unused rows would slow a CPU down a lot
    if CUDA:  # cuDNN's fused attention; on a GPU where it does not work, PyTorch's own
        torch.backends.cuda.enable_flash_sdp(not torch.backends.cuda.cudnn_sdp_enabled())
    data, budget = prepare.TrainData(), prepare.Budget()
    config = Config(data.vocab_size, data.context)
    trainer = Trainer(config, device)
    if CUDA:
        trainer.compile(torch.randint(data.vocab_size, (BATCH_ROWS, data.context + 1), device=device))
    smooth, seconds, startup = train(trainer, data, budget)
    os.makedirs(prepare.OUTPUT, exist_ok=True)
    weights = trainer.model.state_dict()
    weights["recall.memory"] = weights["recall.memory"].int()  # the lower half: without the steps
    save_file(weights, prepare.CHECKPOINT, metadata={"config": json.dumps(asdict(config))})
    # 989e12: dense bf16 of an H100 or H200 SXM, by NVIDIA's data sheet.
    mfu = trainer.model.flops_per_token() * data.served / seconds / 989e12 if CUDA else 0.0
    print("---")
    print(f"startup_seconds: {startup:.1f}")
    print(f"training_seconds: {seconds:.1f}")
    print(f"train_loss: {smooth:.4f}")
    print(f"peak_vram_mb: {torch.cuda.max_memory_allocated() / 1e6 if CUDA else 0:.1f}")
    print(f"mfu_percent: {100 * mfu:.2f}")
    print(f"num_steps: {trainer.steps}")
    print(f"total_tokens: {data.served}")
    print(f"num_params: {sum(p.numel() for p in trainer.model.parameters())}")


if __name__ == "__main__":
    prepare.run(main)
