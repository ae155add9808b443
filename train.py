"""A small GPT on the prepared text: the one file that the agent edits. By hand: python train.py

Trains for the budget that prepare.py counts, saves the weights to RESEARCH_OUTPUT and prints a summary. The loss that
decides is measured afterwards by `python prepare.py evaluate`, which calls `load_model` below. In shapes, B are rows, T
tokens of a row, C channels (the width), V tokens in the vocabulary.

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
    """WIDTH, times the fourth root of the budget in usual ones: the weights grow as its square root, which is about how
    the best size grows with the compute (Hoffmann et al. 2022). A multiple of HEAD_SIZE."""
    return HEAD_SIZE * max(1, round(WIDTH / HEAD_SIZE * (TOKENS / USUAL_BUDGET) ** 0.25))


@dataclass
class Config:
    """The sizes that data, budget and device decide; saved beside the weights."""

    vocab_size: int
    context: int
    width: int
    depth: int = DEPTH
    head_size: int = HEAD_SIZE
    pair_slots: int = PAIR_SLOTS


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (B, T, heads, head_size) with tables (T, 1, head_size / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Linear(nn.Linear):
    """No bias; the float32 weight is cast to the activations' type."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


class Block(nn.Module):
    def __init__(self, config: Config, has_values: bool):
        super().__init__()
        self.heads, self.head_size = config.width // config.head_size, config.head_size
        self.scale = QK_SCALE**2 * self.head_size**0.5 / self.head_size
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        self.value_embed = nn.Embedding(config.vocab_size, config.width) if has_values else None
        self.value_gate = Linear(GATE_CHANNELS, self.heads) if has_values else None
        self.up = Linear(config.width, MLP_RATIO * config.width)
        self.down = Linear(MLP_RATIO * config.width, config.width)

    def forward(self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The stream (B, T, C) -> the same; tokens (B, T)."""
        normed = norm(x)
        q, k, v = self.qkv(normed).view(*tokens.shape, 3, self.heads, self.head_size).unbind(2)
        if self.value_embed is not None and self.value_gate is not None:
            gate = 2 * torch.sigmoid(self.value_gate(normed[..., :GATE_CHANNELS]))
            v = v + gate[..., None] * self.value_embed(tokens).to(x.dtype).view_as(v)
        q, k = rotate(norm(q), cos, sin), rotate(norm(k), cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.relu(self.up(norm(x))).square())


class Stage(nn.Module):
    """VALUE_EMBED_EVERY blocks, the last with value embeddings. What is compiled for one stage serves all."""

    def __init__(self, config: Config, depth: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, i == VALUE_EMBED_EVERY - 1) for i in range(depth))
        # What a block's input is made of: the stream, the token, and pairs with copies.
        self.scales = nn.Parameter(torch.tensor([1.0, 0.1, 0.05]).repeat(depth, 1))

    def forward(self, x: Tensor, x0: Tensor, extra: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        for block, scales in zip(self.blocks, self.scales.to(x.dtype), strict=True):
            x = block(scales[0] * x + scales[1] * x0 + scales[2] * extra, tokens, cos, sin)
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
        self.vocab_size, self.pair_slots = config.vocab_size, config.pair_slots
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.smear_gate = Linear(GATE_CHANNELS, 1)
        self.pairs = nn.Embedding(config.pair_slots, config.width)
        self.copies = nn.ModuleList(nn.Embedding(config.vocab_size + 1, config.width) for _ in COPY_RUNS)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Tokens (B, T) -> the stream and what is added to it, (B, T, C); the copied tokens (B, T), V where none is."""
        dtype = torch.bfloat16 if tokens.is_cuda else torch.float32
        x = norm(self.embed(tokens).to(dtype))
        gate = torch.tanh(self.smear_gate(x[..., :GATE_CHANNELS]))
        x = norm(x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1])
        extra = self.pairs(run_keys(tokens, 2) % self.pair_slots)
        found = [copied(tokens, length, self.vocab_size) for length in COPY_RUNS]
        for token, table in zip(found, self.copies, strict=True):
            extra = extra + table(token)
        return x, extra.to(dtype), found


class Exit(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.backout = nn.Parameter(torch.tensor(0.2))
        self.trust = Linear(config.width, len(COPY_RUNS))
        self.head = Linear(config.width, config.vocab_size)

    def forward(self, x: Tensor, noted: Tensor, found: list[Tensor], targets: Tensor | None) -> Tensor:
        """Logits (B, T, V), float32; with targets (B, T) the mean cross-entropy in nats."""
        x = norm(x - self.backout.to(x.dtype) * noted)
        for token, trust in zip(found, self.trust(x).unbind(-1), strict=True):  # towards the copied token's logit
            known = token < self.head.out_features
            x = x + (trust * known)[..., None] * F.embedding(token * known, self.head.weight).to(x.dtype)
        logits = LOGIT_CAP * torch.tanh(self.head(x).float() / LOGIT_CAP)
        return logits if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten())


class GPT(nn.Module):
    """With fresh weights, on the device that is torch's default."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.entrance, self.exit = Entrance(config), Exit(config)
        starts = range(0, config.depth, VALUE_EMBED_EVERY)
        self.stages = nn.ModuleList(Stage(config, min(VALUE_EMBED_EVERY, config.depth - start)) for start in starts)
        frequency = ROPE_BASE ** -torch.linspace(0, 1, config.head_size // 2)
        angle = torch.outer(torch.arange(config.context), frequency)[:, None]
        self.cos, self.sin = nn.Buffer(angle.cos(), persistent=False), nn.Buffer(angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if any(part in name for part in ("pairs", "copies", "gate.", "out.", "down.", "trust.", "head.")):
                nn.init.zeros_(p)
            elif name.endswith("embed.weight"):
                nn.init.normal_(p, std=1.0)
            elif name.endswith("weight"):
                nn.init.uniform_(p, -((3 / p.size(1)) ** 0.5), (3 / p.size(1)) ** 0.5)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, T, V), float32; with targets (B, T) the mean cross-entropy in nats."""
        x0, extra, found = self.entrance(tokens)
        cos, sin = self.cos[: tokens.size(1)].to(x0.dtype), self.sin[: tokens.size(1)].to(x0.dtype)
        x, noted = x0.clone(), x0  # a copy, since a stage would be compiled anew where both are one
        for i, stage in enumerate(self.stages):
            x = stage(x, x0, extra, tokens, cos, sin)
            if i == int(BACKOUT * len(self.stages)):
                noted = x
        return self.exit(x, noted, found, targets)


def save(model: GPT, path: str) -> None:
    """On a GPU in bfloat16, the type in which the weights are used."""
    dtype = torch.bfloat16 if CUDA else torch.float32
    weights = {name: value.to(dtype, copy=True) for name, value in model.state_dict().items()}  # out of Muon's stacks
    save_file(weights, path, metadata={"config": json.dumps(asdict(model.config))})


def load_model(path: str, device: str) -> GPT:
    """The saved model, ready to turn tokens (B, T) into logits (B, T, V). prepare.py calls this to evaluate."""
    with safe_open(path, framework="pt", device=device) as file, torch.device(device):
        model = GPT(Config(**json.loads(file.metadata()["config"])))
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


def muon(grads: list[Tensor], stacks: list[tuple[int, Tensor, Tensor, Tensor]], lr: Tensor, decay: Tensor) -> None:
    """One step of stacks of equal matrices, each of which is `parts` side by side (queries, keys, values): momentum,
    orthogonalized, its rows brought to equal size."""
    for grad, (parts, matrices, momentum, second) in zip(grads, stacks, strict=True):
        momentum.lerp_(grad, 1 - MOMENTUM)
        update = grad.lerp(momentum, MOMENTUM)
        rows, columns = update.size(1) // parts, update.size(2)
        x = (update.bfloat16() if CUDA else update).view(-1, rows, columns)
        x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
        x = x.mT.contiguous() if rows > columns else x
        for a, b, c in POLAR:  # to the nearest (semi-)orthogonal matrix, roughly
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        update = (x.mT if rows > columns else x).view(update.shape).float()
        second.lerp_(update.square().mean(dim=-1, keepdim=True), 1 - BETA2)
        scaled = update * (second + 1e-10).rsqrt()
        scaled = scaled * (update.norm(dim=(-2, -1), keepdim=True) / (scaled.norm(dim=(-2, -1), keepdim=True) + 1e-10))
        scaled = scaled * max(1.0, rows / columns) ** 0.5
        matrices.sub_(lr * (scaled + decay * matrices * (scaled * matrices > 0)))  # decay only where it agrees


class Trainer:
    """Steps of training, by Muon for the blocks' matrices, and AdamW for the rest."""

    def __init__(self, model: GPT):
        self.model, self.steps = model, 0
        matrices: dict[tuple[int, ...], list[nn.Parameter]] = {}  # by the parts that each is made of, and its shape
        others: dict[tuple[float, float], list[nn.Parameter]] = {}  # by peak rate and decay
        for name, p in model.named_parameters():
            if name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight")):
                matrices.setdefault((3 if "qkv" in name else 1, *p.shape), []).append(p)
            elif "pairs" in name or "copies" in name:
                others.setdefault((PAIR_LR, EMBED_DECAY), []).append(p)
            elif name.endswith("embed.weight"):
                others.setdefault((EMBED_LR, EMBED_DECAY), []).append(p)
            else:
                others.setdefault((SCALAR_LR if name.endswith(("scales", "backout")) else HEAD_LR, 0.0), []).append(p)
        groups = [{"params": group, "peak": peak, "weight_decay": decay} for (peak, decay), group in others.items()]
        self.adam = torch.optim.AdamW(groups, betas=(BETA1, BETA2), eps=1e-10, fused=True)
        self.groups, self.stacks = list(matrices.values()), []
        for (parts, *_), group in matrices.items():
            stack = torch.stack([p.data for p in group])
            for p, matrix in zip(group, stack, strict=True):
                p.data = matrix  # so that a step changes the whole stack at once
            self.stacks.append((parts, stack, torch.zeros_like(stack), torch.zeros_like(stack[..., :1])))
        self.muon = torch.compile(muon, dynamic=False) if CUDA else muon
        self.lr, self.decay = torch.zeros(()), torch.zeros(())  # tensors, so that a new value compiles nothing

    def step(self, batch: Tensor, share: float) -> Tensor:
        """One update from rows (B, T + 1), at `share` of the peak rates; the loss before it."""
        loss = self.model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        self.lr.fill_(MATRIX_LR * share)
        self.decay.fill_(WEIGHT_DECAY * share)
        with torch.no_grad():
            grads = [torch.stack([p.grad for p in group if p.grad is not None]) for group in self.groups]
            self.muon(grads, self.stacks, self.lr, self.decay)
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * share
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.detach()


def schedule(used: float) -> float:
    """The share of the peak rates, from the share of the budget used."""
    if used < WARMUP:
        return used / WARMUP
    return FINAL_LR + (1 - FINAL_LR) * min(1.0, (1 - used) / max(WARMDOWN, 1e-9))


def train(trainer: Trainer, data: prepare.TrainData, budget: prepare.Budget) -> tuple[float, float, float]:
    """Train until the budget is used. The smoothed loss at the end, the seconds it took, and those before it."""
    batches, smooth, shown = data.batches(BATCH_ROWS), math.log(data.vocab_size), 0.0
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
        read = trainer.steps - len(in_flight)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {read}")
        smooth += 0.1 * (loss.item() - smooth)
        if budget.elapsed - shown > 0.5:
            shown = budget.elapsed
            share, speed = 100 * budget.used(data.served), data.served / shown / 1000
            print(f"step {read} | loss {smooth:.4f} | {share:.1f}% | {speed:.0f}k tok/s", flush=True)
    if CUDA:
        torch.cuda.synchronize()
    return smooth, budget.elapsed, startup


def main() -> None:
    torch.manual_seed(prepare.SEED)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)  # decaying moments of unused rows would slow a CPU down a lot
    data, budget = prepare.TrainData(), prepare.Budget()
    config = Config(data.vocab_size, data.context, width())
    with torch.device("cuda" if CUDA else "cpu"):
        model = GPT(config)
    if CUDA:  # compiled on made-up rows before the budget's clock runs; a rate of 0 leaves the weights as they are
        # cuDNN's fused attention; on a GPU where it does not work, PyTorch's own
        torch.backends.cuda.enable_flash_sdp(not torch.backends.cuda.cudnn_sdp_enabled())
        for part in (model.entrance, *model.stages, model.exit):
            part.compile(dynamic=False)
        rows = torch.randint(data.vocab_size, (BATCH_ROWS, data.context + 1), device="cuda")
        Trainer(model).step(rows, 0.0)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(model)
    smooth, seconds, startup = train(trainer, data, budget)
    os.makedirs(prepare.OUTPUT, exist_ok=True)
    save(model, str(prepare.CHECKPOINT))
    # A token's, forward and backward: 6 a matrix weight, and attention as 12 x width x context, causal skips not
    # deducted. 989e12: dense bf16 of an H100 or H200 SXM, by NVIDIA's data sheet.
    weights = config.depth * (4 + 2 * MLP_RATIO) * config.width**2 + config.width * config.vocab_size
    flops = 6 * weights + 12 * config.depth * config.width * config.context
    print("---")
    print(f"startup_seconds: {startup:.1f}")
    print(f"training_seconds: {seconds:.1f}")
    print(f"train_loss: {smooth:.4f}")
    print(f"peak_vram_mb: {torch.cuda.max_memory_allocated() / 2**20 if CUDA else 0:.1f}")
    print(f"mfu_percent: {100 * flops * data.served / seconds / 989e12 if CUDA else 0:.2f}")
    print(f"num_steps: {trainer.steps}")
    print(f"total_tokens: {data.served}")
    print(f"num_params: {sum(p.numel() for p in model.parameters())}")


if __name__ == "__main__":
    prepare.run(main)
