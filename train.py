"""A small GPT on the prepared text: the one file that the agent edits.

    python train.py

Trains for the budget that prepare.py counts, saves the weights and this file's sizes to RESEARCH_OUTPUT, and prints a
summary. The loss that decides is measured afterwards by `python prepare.py evaluate`, which calls `load_model` below.

Methods: pre-norm transformer with rotary positions (Su et al. 2021), QK-norm (Dehghani et al. 2023), squared ReLU (So
et al. 2021), logit soft-cap (Gemma 2), gated value embeddings, smeared embeddings and per-layer input scales
(modded-nanogpt, nanochat), hashed embeddings of token pairs, copying within the row (the n-gram heads of Akyürek et al.
2024), Muon (Jordan 2024) with Polar Express coefficients (Amsel et al. 2025), per-neuron second moments (NorMuon, Li et
al. 2025) and cautious weight decay (Chen et al. 2025), AdamW for the rest.
"""

from __future__ import annotations

import gc

gc.disable()  # a fifth of what the imports take, and pauses between steps

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

if CUDA:  # Sizes for an H100.
    USUAL_BUDGET = 100_000_000  # tokens that these are made for; the width follows another one, see `width`
    DEPTH = 8  # transformer blocks
    WIDTH = 640  # channels of the residual stream
    HEAD_SIZE = 128  # channels of an attention head
    BATCH_ROWS = 32  # rows of a batch, each as long as the context that prepare.py sets
    PAIR_SLOTS = 65536  # rows of the table of hashed token pairs
    MATRIX_LR = 0.045  # Muon's peak rate, for the blocks' matrices
else:  # And for two CPU cores.
    USUAL_BUDGET = 96_000
    DEPTH = 2
    WIDTH = 128
    HEAD_SIZE = 64
    BATCH_ROWS = 16
    PAIR_SLOTS = 16384
    MATRIX_LR = 0.03

# The model.
MLP_RATIO = 4  # hidden channels of a block's MLP, in widths
ROPE_BASE = 100000.0  # the longest rotary wavelength, in tokens over 2 pi
QK_SCALE = 1.15  # queries and keys are unit vectors times this (times HEAD_SIZE ** 0.25)
COPY_RUNS = (2, 5)  # what followed the last run of so many equal tokens in the row is offered to the model
VALUE_EMBED_EVERY = 2  # every so many blocks the token's own value vector is added in attention
GATE_CHANNELS = 32  # channels that the gates of smearing and of value embeddings see
BACKOUT = 0.6  # the share of the stages after which the stream is noted, to be taken out before the output layer
LOGIT_CAP = 15.0  # logits are bent smoothly into plus or minus this

# The optimizers. Rates are peaks; Muon's is above.
EMBED_LR = 0.3  # AdamW: token and value embeddings
PAIR_LR = 0.3  # AdamW: embeddings of pairs and of copied tokens
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


def width() -> int:
    """WIDTH for the usual budget; for others it grows as the fourth root, and the weights as the square root, which
    is about how the best size grows with the compute (Hoffmann et al. 2022). A multiple of HEAD_SIZE."""
    return HEAD_SIZE * max(1, round(WIDTH / HEAD_SIZE * (TOKENS / USUAL_BUDGET) ** 0.25))


@dataclass
class Config:
    """What the weights alone do not say; saved beside them."""

    vocab_size: int
    context: int
    width: int
    depth: int = DEPTH
    head_size: int = HEAD_SIZE
    mlp_ratio: int = MLP_RATIO
    pair_slots: int = PAIR_SLOTS
    copy_runs: Sequence[int] = COPY_RUNS
    value_embed_every: int = VALUE_EMBED_EVERY
    gate_channels: int = GATE_CHANNELS
    backout: float = BACKOUT
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
        self.gate_channels = config.gate_channels
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.value_embed = nn.Embedding(config.vocab_size, config.width) if has_values else None
        self.value_gate = Linear(config.gate_channels, self.heads) if has_values else None

    def forward(self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, time_, width = x.shape
        q, k, v = self.qkv(x).view(rows, time_, 3, self.heads, self.head_size).unbind(2)
        if self.value_embed is not None and self.value_gate is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., : self.gate_channels]))
            v = v + gate[..., None] * self.value_embed(tokens).to(x.dtype).view_as(v)
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

    def forward(self, x: Tensor, x0: Tensor, extra: Tensor, scales: Tensor, tokens: Tensor, cos: Tensor,
                sin: Tensor) -> Tensor:
        x = scales[0] * x + scales[1] * x0 + scales[2] * extra
        x = x + self.attention(norm(x), tokens, cos, sin)
        return x + self.down(F.relu(self.up(norm(x))).square())


class Stage(nn.Module):
    """VALUE_EMBED_EVERY blocks, the last with value embeddings. What is compiled for one stage serves all."""

    def __init__(self, config: Config, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, i == config.value_embed_every - 1) for i in range(depth))
        self.scales = nn.Parameter(torch.empty(depth, 3))  # of the stream, the token, and pairs with copies

    def forward(self, x: Tensor, x0: Tensor, extra: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        for block, scales in zip(self.blocks, self.scales.to(x.dtype), strict=True):
            x = block(x, x0, extra, scales, tokens, cos, sin)
        return x


def run_keys(tokens: Tensor, length: int) -> Tensor:
    """Hashes (B, T) of the runs of `length` tokens that end at each position; a row is led by tokens of number 0."""
    key = torch.zeros_like(tokens)
    for n in range(length):
        key = key * 6364136223846793005 + F.pad(tokens, (n, 0))[:, : tokens.size(1)] * 2862933555777941757
    return key ^ key >> 29


def copied(tokens: Tensor, length: int, nothing: int) -> Tensor:
    """The token (B, T) that followed when the last `length` tokens stood in this row before; `nothing` where they
    did not. Looks at nothing that comes later."""
    ordered, place = run_keys(tokens, length).sort(dim=1, stable=True)  # equal runs lie side by side, by position
    before = torch.where(ordered[:, 1:] == ordered[:, :-1], place[:, :-1], -1)
    before = torch.full_like(place, -1).scatter(1, place[:, 1:], before)
    return torch.where(before < 0, nothing, tokens.gather(1, before + 1))


class Entrance(nn.Module):
    """The embeddings of the tokens, each with a little of the one before; and of pairs and copied tokens."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.smear_gate = Linear(config.gate_channels, 1)
        self.pairs = nn.Embedding(config.pair_slots, config.width)
        self.copies = nn.ModuleList(nn.Embedding(config.vocab_size + 1, config.width) for _ in config.copy_runs)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens (B, T) -> the stream and what is added to it, (B, T, width); the copied tokens (B, T), vocab_size
        where there is none."""
        dtype = torch.bfloat16 if tokens.is_cuda else torch.float32
        x = norm(self.embed(tokens).to(dtype))
        gate = torch.tanh(self.smear_gate(x[..., : self.config.gate_channels]))
        x = norm(x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1])
        extra = self.pairs(run_keys(tokens, 2) % self.config.pair_slots)
        found = [copied(tokens, length, self.config.vocab_size) for length in self.config.copy_runs]
        for token, table in zip(found, self.copies, strict=True):
            extra = extra + table(token)
        return x, extra.to(dtype), found


class Exit(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.backout = nn.Parameter(torch.empty(()))
        self.trust = Linear(config.width, len(config.copy_runs))
        self.head = Linear(config.width, config.vocab_size)

    def forward(self, x: Tensor, noted: Tensor, found: list[Tensor], targets: Tensor | None) -> Tensor:
        """Logits (B, T, vocab), float32; with targets (B, T) the mean cross-entropy in nats."""
        x = norm(x - self.backout.to(x.dtype) * noted)
        for token, trust in zip(found, self.trust(x).unbind(-1), strict=True):  # towards the copied token's logit
            known = token < self.config.vocab_size
            x = x + (trust * known)[..., None] * F.embedding(token * known, self.head.weight).to(x.dtype)
        logits = self.head(x).float()
        logits = self.config.logit_cap * torch.tanh(logits / self.config.logit_cap)
        return logits if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten())


ZEROS_AT_FIRST = ("out.weight", "down.weight", "head.weight", "trust.weight", "gate.weight")
PAIRS_AND_COPIES = ("entrance.pairs", "entrance.copies")


class GPT(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.entrance, self.exit = Entrance(config), Exit(config)
        every = config.value_embed_every
        self.stages = nn.ModuleList(Stage(config, min(every, config.depth - i)) for i in range(0, config.depth, every))
        self.cos: Tensor
        self.sin: Tensor
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
            if name.endswith("scales"):
                p.copy_(torch.tensor([1.0, 0.1, 0.05]).expand_as(p))
            elif name == "exit.backout":
                p.fill_(0.2)
            elif name.endswith(ZEROS_AT_FIRST) or name.startswith(PAIRS_AND_COPIES):
                nn.init.zeros_(p)
            elif name.endswith("embed.weight"):
                nn.init.normal_(p, std=1.0)
            else:
                nn.init.uniform_(p, -((3 / p.size(1)) ** 0.5), (3 / p.size(1)) ** 0.5)
        return self

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, T, vocab), float32; with targets (B, T) the mean cross-entropy in nats."""
        x0, extra, found = self.entrance(tokens)
        cos, sin = self.cos[: tokens.size(1)].to(x0.dtype), self.sin[: tokens.size(1)].to(x0.dtype)
        x, noted = x0.clone(), x0  # a copy, since a stage would be compiled anew where both are one
        for i, stage in enumerate(self.stages):
            x = stage(x, x0, extra, tokens, cos, sin)
            if i == int(self.config.backout * len(self.stages)):
                noted = x
        return self.exit(x, noted, found, targets)

    def flops_per_token(self) -> float:
        """Forward and backward: 6 a matrix weight, and attention as 12 x width x context, causal skips not deducted."""
        c = self.config
        weights = c.depth * (4 + 2 * c.mlp_ratio) * c.width**2 + c.width * c.vocab_size
        return 6 * weights + 12 * c.depth * c.width * c.context


def new_model(config: Config, device: str) -> GPT:
    """A model with fresh weights."""
    with torch.device(device):
        return GPT(config).initialize()


def save(model: GPT, path: str) -> None:
    """On a GPU in bfloat16, the type in which the weights are used."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    weights = {name: value.to(dtype, copy=True) for name, value in model.state_dict().items()}  # out of Muon's stacks
    save_file(weights, path, metadata={"config": json.dumps(asdict(model.config))})


def load_model(path: str, device: str) -> GPT:
    """The saved model, ready to turn tokens (B, T) into logits (B, T, vocab). prepare.py calls this to evaluate."""
    with safe_open(path, framework="pt", device=device) as file:
        model = new_model(Config(**json.loads(file.metadata()["config"])), device)
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
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

    def __init__(self, groups: list[list[nn.Parameter]], parts: list[int]):
        self.groups, self.parts = groups, parts
        self.stacks = [torch.stack([p.data for p in group]) for group in groups]
        for group, stack in zip(groups, self.stacks, strict=True):
            for p, matrix in zip(group, stack, strict=True):
                p.data = matrix  # so that a step changes the whole stack at once
        self.momentum = [torch.zeros_like(stack) for stack in self.stacks]
        self.second = [torch.zeros(m.size(0), m.size(1), 1, device=m.device) for m in self.momentum]
        self.update = torch.compile(muon_update, dynamic=False) if CUDA else muon_update
        self.lr, self.decay = torch.zeros(()), torch.zeros(())  # tensors, so that a new value compiles nothing

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        self.lr.fill_(lr)
        self.decay.fill_(decay)
        grads = [torch.stack([p.grad for p in group if p.grad is not None]) for group in self.groups]
        self.update(grads, self.stacks, self.momentum, self.second, self.parts, self.lr, self.decay)


def muon_update(grads: list[Tensor], stacks: list[Tensor], momenta: list[Tensor], seconds: list[Tensor],
                parts: list[int], lr: Tensor, decay: Tensor) -> None:
    """One step of stacks of equal matrices, each of which is `parts` side by side (queries, keys, values)."""
    for grad, matrices, momentum, second, n in zip(grads, stacks, momenta, seconds, parts, strict=True):
        momentum.lerp_(grad, 1 - MOMENTUM)
        update = grad.lerp(momentum, MOMENTUM)
        shape, rows, columns = update.shape, update.size(1) // n, update.size(2)
        if CUDA:
            update = update.bfloat16()
        update = orthogonalize(update.view(-1, rows, columns)).view(shape).float()
        second.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - BETA2)
        scaled = update * (second + 1e-10).rsqrt()
        scaled = scaled * (update.norm(dim=(-2, -1), keepdim=True) / (scaled.norm(dim=(-2, -1), keepdim=True) + 1e-10))
        scaled = scaled * max(1.0, rows / columns) ** 0.5
        matrices.sub_(lr * (scaled + decay * matrices * (scaled * matrices > 0)))  # decay only where it agrees


def make_optimizers(model: GPT) -> tuple[Muon, torch.optim.AdamW]:
    stacks: dict[tuple[int, ...], list[nn.Parameter]] = {}  # of matrices of equal shape, by the parts each is made of
    embeds, pairs, heads, scalars = [], [], [], []
    for name, p in model.named_parameters():
        if name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight")):
            stacks.setdefault((3 if "qkv" in name else 1, *p.shape), []).append(p)
        elif name.startswith(PAIRS_AND_COPIES):
            pairs.append(p)
        elif name.endswith("embed.weight"):
            embeds.append(p)
        else:
            (scalars if name.endswith(("scales", "backout")) else heads).append(p)
    muon = Muon(list(stacks.values()), [parts for parts, *_ in stacks])
    groups = [
        {"params": embeds, "lr": EMBED_LR, "weight_decay": EMBED_DECAY},
        {"params": pairs, "lr": PAIR_LR, "weight_decay": EMBED_DECAY},
        {"params": heads, "lr": HEAD_LR},
        {"params": scalars, "lr": SCALAR_LR},
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
        if CUDA:
            for part in (self.model.entrance, *self.model.stages, self.model.exit):
                part.compile(dynamic=False)
        self.steps = 0

    def compile(self, batch: Tensor) -> None:
        """Take the time of compiling before the budget's clock runs, on made-up rows and without leaving a trace."""
        self.step(batch, 0.0)  # a rate of 0 leaves the weights, and the optimizers start afresh
        self.muon, self.adam = make_optimizers(self.model)
        self.steps = 0
        if CUDA:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def step(self, batch: Tensor, share: float) -> Tensor:
        """One update from rows (B, T + 1), at `share` of the peak rates; the loss before it."""
        loss = self.model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * share
        self.muon.step(MATRIX_LR * share, WEIGHT_DECAY * share)
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.detach()


def train(trainer: Trainer, data: prepare.TrainData, budget: prepare.Budget) -> tuple[float, float, float]:
    """Train until the budget is used. The smoothed loss at the end, the seconds it took, and those before it."""
    batches, smooth, shown, read = data.batches(BATCH_ROWS), math.log(data.vocab_size), 0.0, 0
    in_flight: list[tuple[Tensor, torch.cuda.Event]] = []
    startup = budget.start()
    print(f"step 0 | loss {smooth:.4f} | 0.0%", flush=True)
    while (used := budget.used(data.served)) < 1.0 and (batch := next(batches, None)) is not None:
        tokens = torch.from_numpy(batch)
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
    config = Config(data.vocab_size, data.context, width())
    trainer = Trainer(config, device)
    if CUDA:
        trainer.compile(torch.randint(data.vocab_size, (BATCH_ROWS, data.context + 1), device=device))
    smooth, seconds, startup = train(trainer, data, budget)
    os.makedirs(prepare.OUTPUT, exist_ok=True)
    save(trainer.model, str(prepare.CHECKPOINT))
    # 989e12: dense bf16 of an H100 or H200 SXM, by NVIDIA's data sheet.
    mfu = trainer.model.flops_per_token() * data.served / seconds / 989e12 if CUDA else 0.0
    print("---")
    print(f"startup_seconds: {startup:.1f}")
    print(f"training_seconds: {seconds:.1f}")
    print(f"train_loss: {smooth:.4f}")
    print(f"peak_vram_mb: {torch.cuda.max_memory_allocated() / 2**20 if CUDA else 0:.1f}")
    print(f"mfu_percent: {100 * mfu:.2f}")
    print(f"num_steps: {trainer.steps}")
    print(f"total_tokens: {data.served}")
    print(f"num_params: {sum(p.numel() for p in trainer.model.parameters())}")


if __name__ == "__main__":
    prepare.run(main)
