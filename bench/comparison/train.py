"""What train.py is compared with: a program in the style of the original autoresearch train.py, written from its
public description.

    python bench/train_speed.py --seconds 100 --program train.py --program bench/comparison/train.py

8 layers of width 512 with four heads of 128, and with the default vocabulary 50M parameters; 2^19 tokens a step,
accumulated over device batches of 128 rows of 2048. Windows "SSSL" through FlexAttention, rotary positions, QK norm,
squared ReLU, gated value embeddings in every other layer, a scale of the stream and of the embedding in each layer,
logit soft-cap, bf16 embeddings. Muon with a momentum that rises, Polar Express coefficients (Amsel et al. 2025),
second moments per neuron (NorMuon, Li et al. 2025) and cautious weight decay (Chen et al. 2025) for the matrices, AdamW
for the rest. It works with prepare.py as train.py does: same data, budget, progress lines, summary, `load_model`.

It differs from the original in this: windows by FlexAttention in place of FlashAttention 3, rows cut by prepare.py
instead of packed by document, and no step is left out of the budget, for compiling comes before. Without a GPU it is
smaller and attends through masks: enough to test it, no number to compare.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import prepare

CUDA = torch.cuda.is_available()
DTYPE = torch.bfloat16 if CUDA else torch.float32  # of activations and embeddings

DEPTH = 8 if CUDA else 2  # transformer blocks
WIDTH = 512 if CUDA else 128  # channels of the residual stream
HEAD_SIZE = 128 if CUDA else 64  # channels of an attention head
STEP_TOKENS = 2**19 if CUDA else 2**13  # tokens of one update
DEVICE_ROWS = 128 if CUDA else 16  # rows of one pass through the model; half of it on a GPU of less memory
FULL_ROWS_GB = 70  # the memory that a GPU needs for DEVICE_ROWS
WINDOWS = "SSSL"  # repeated over the layers: S looks back half the context, L all of it; the last layer is L
ROPE_BASE = 10000.0
GATE_CHANNELS = 32  # channels of the stream that the gates of the value embeddings see
LOGIT_CAP = 15.0

MATRIX_LR = 0.04  # Muon
EMBED_LR = 0.6  # AdamW, for a width of 768, as the next one: token and value embeddings
HEAD_LR = 0.004  # AdamW: the output layer
SCALAR_LR = 0.5  # AdamW: scales of the embedding; those of the stream take a hundredth
MOMENTUM = (0.85, 0.95)  # Muon's, at the start and after MOMENTUM_STEPS
MOMENTUM_STEPS = 300
MUON_BETA2 = 0.95
WEIGHT_DECAY = 0.2  # Muon's, falling to zero over the budget
BETAS = (0.8, 0.95)  # AdamW's
WARMUP = 0.0  # share of the budget in which the rates rise
WARMDOWN = 0.5  # share of the budget in which they fall
FINAL_LR = 0.0  # what they fall to, as a share of the peak


@dataclass
class Config:
    """What the weights alone do not say; saved beside them."""

    vocab_size: int
    context: int
    depth: int = DEPTH
    width: int = WIDTH
    head_size: int = HEAD_SIZE
    windows: str = WINDOWS

    def window(self, layer: int) -> int:
        """How many tokens a layer looks back, its own among them."""
        is_long = layer == self.depth - 1 or self.windows[layer % len(self.windows)] == "L"
        return self.context if is_long else self.context // 2


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """No bias; the float32 weight is cast to the activations' type."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: (B, T, heads, head_size) with tables (T, 1, head_size / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def seen(window: int) -> Callable[..., Tensor]:
    """Which keys a query sees, as FlexAttention asks for it."""

    def mask(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < window)

    return mask


def attend(q: Tensor, k: Tensor, v: Tensor, window: int, mask: BlockMask | None) -> Tensor:
    """Attention of (B, heads, T, head_size) to the last `window` tokens. By FlexAttention where a mask of it is given,
    which has to be compiled to be fast; else by the ordinary kernels, which compute and throw away what is masked."""
    if mask is not None:
        y = flex_attention(q, k, v, block_mask=mask)
        assert isinstance(y, Tensor)
        return y
    length = q.size(2)
    if window >= length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    place = torch.arange(length, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen(window)(place, place, place[:, None], place))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        width = config.width
        self.heads, self.head_size, self.window = width // config.head_size, config.head_size, config.window(layer)
        self.query, self.key, self.value = Linear(width, width), Linear(width, width), Linear(width, width)
        self.out = Linear(width, width)
        self.up, self.down = Linear(width, 4 * width), Linear(4 * width, width)
        has_values = layer % 2 == (config.depth - 1) % 2
        self.value_embed = nn.Embedding(config.vocab_size, width, dtype=DTYPE) if has_values else None
        self.gate = Linear(GATE_CHANNELS, self.heads) if has_values else None

    def forward(self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | None) -> Tensor:
        x = x + self.attention(norm(x), tokens, cos, sin, mask)
        return x + self.down(F.relu(self.up(norm(x))).square())

    def attention(self, x: Tensor, tokens: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | None) -> Tensor:
        shape = (*tokens.shape, self.heads, self.head_size)
        q, k, v = self.query(x).view(shape), self.key(x).view(shape), self.value(x).view(shape)
        if self.value_embed is not None and self.gate is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., :GATE_CHANNELS]))  # 1 at first
            v = v + gate[..., None] * self.value_embed(tokens).view(shape)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.window, mask)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class GPT(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width, dtype=DTYPE)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.head = Linear(config.width, config.vocab_size)
        self.stream_scales = nn.Parameter(torch.empty(config.depth))
        self.embed_scales = nn.Parameter(torch.empty(config.depth))
        self.cos: Tensor
        self.sin: Tensor
        angles = torch.empty(config.context, 1, config.head_size // 2, dtype=DTYPE)
        self.register_buffer("cos", angles, persistent=False)
        self.register_buffer("sin", torch.empty_like(angles), persistent=False)

    @torch.no_grad()
    def initialize(self) -> GPT:
        """Fill the weights at random and the rotary tables as they must be."""
        half = self.config.head_size // 2
        angle = torch.outer(torch.arange(self.config.context), ROPE_BASE ** (-torch.arange(half) / half))[:, None]
        self.cos.copy_(angle.cos())
        self.sin.copy_(angle.sin())
        bound = (3 / self.config.width) ** 0.5
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight", "gate.weight")):
                nn.init.zeros_(p)
            elif name == "embed.weight":
                nn.init.normal_(p, std=1.0)
            elif name == "head.weight":
                nn.init.normal_(p, std=0.001)
            elif name.endswith("scales"):
                nn.init.constant_(p, 1.0 if name.startswith("stream") else 0.1)
            else:
                nn.init.uniform_(p, -bound, bound)
        return self

    def forward(self, tokens: Tensor, masks: Sequence[BlockMask] | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, T, vocab), float32. `masks`, one a layer, choose FlexAttention."""
        cos, sin = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        x = x0 = norm(self.embed(tokens))
        stream, embed = self.stream_scales.to(x.dtype), self.embed_scales.to(x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(stream[i] * x + embed[i] * x0, tokens, cos, sin, masks[i] if masks else None)
        return LOGIT_CAP * torch.tanh(self.head(norm(x)).float() / LOGIT_CAP)

    def loss(self, tokens: Tensor, targets: Tensor, masks: Sequence[BlockMask] | None) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T)."""
        logits = self(tokens, masks)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.flatten())

    def flex_masks(self, device: str) -> list[BlockMask]:
        """For each layer the blocks of the attention matrix that FlexAttention has to look at."""
        length = self.config.context
        windows = [self.config.window(layer) for layer in range(self.config.depth)]
        by_window = {w: create_block_mask(seen(w), None, None, length, length, device=device) for w in set(windows)}
        return [by_window[w] for w in windows]

    def flops_per_token(self) -> float:
        """By the same formula as train.py's: what masks skip, windows included, is not deducted."""
        c = self.config
        weights = c.depth * 12 * c.width**2 + c.width * c.vocab_size
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
    return model.eval()


# Polar Express: coefficients of five odd polynomials of degree 5 that bring singular values near 1.
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(x: Tensor) -> Tensor:
    """(n, rows, columns) -> the nearest (semi-)orthogonal matrices, roughly."""
    x = x.to(DTYPE)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    is_tall = x.size(-2) > x.size(-1)
    if is_tall:
        x = x.mT
    for a, b, c in POLAR:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if is_tall else x).float()


class Muon:
    """Momentum, orthogonalized, its neurons brought to equal size; one stack of equal matrices at a time."""

    def __init__(self, matrices: Sequence[Tensor]):
        shapes = dict.fromkeys(p.shape for p in matrices)
        self.stacks = [[p for p in matrices if p.shape == shape] for shape in shapes]
        self.first = [torch.zeros_like(torch.stack(stack)) for stack in self.stacks]
        # the mean square of a neuron's update: along the longer side
        self.longer = [-1 if m.size(-2) >= m.size(-1) else -2 for m in self.first]
        self.second = [torch.zeros_like(m.mean(d, keepdim=True)) for m, d in zip(self.first, self.longer, strict=True)]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay: float) -> None:
        for stack, first, second, along in zip(self.stacks, self.first, self.second, self.longer, strict=True):
            grad = torch.stack([p.grad for p in stack if p.grad is not None])
            first.lerp_(grad, 1 - momentum)
            update = orthogonalize(grad.lerp(first, momentum))  # Nesterov's
            second.lerp_(update.square().mean(along, keepdim=True), 1 - MUON_BETA2)
            even = update * second.clamp_min(1e-10).rsqrt()
            even *= update.norm(dim=(-2, -1), keepdim=True) / even.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10)
            rate = lr * max(1.0, update.size(-2) / update.size(-1)) ** 0.5
            for p, u in zip(stack, even.unbind(), strict=True):
                shrinks = u * p >= 0  # cautious: decay only what the update makes smaller anyway
                p.sub_(rate * (u + decay * p * shrinks))


def make_optimizers(model: GPT) -> tuple[Muon, torch.optim.AdamW]:
    embeds = [p for name, p in model.named_parameters() if name.endswith("embed.weight")]
    matrices = [p for name, p in model.blocks.named_parameters() if not name.endswith("embed.weight")]
    by_width = (model.config.width / 768) ** -0.5
    groups = [
        {"params": embeds, "lr": EMBED_LR * by_width},
        {"params": [model.head.weight], "lr": HEAD_LR * by_width},
        {"params": [model.stream_scales], "lr": SCALAR_LR * 0.01},
        {"params": [model.embed_scales], "lr": SCALAR_LR, "betas": (0.96, 0.95)},
    ]
    adam = torch.optim.AdamW(groups, betas=BETAS, eps=1e-10, weight_decay=0.0, fused=True)
    for group in adam.param_groups:
        group["peak"] = group["lr"]
    return Muon(matrices), adam


def schedule(used: float) -> float:
    """The share of the peak rates, from the share of the budget used."""
    if used < WARMUP:
        return used / WARMUP
    return FINAL_LR + (1 - FINAL_LR) * min(1.0, (1 - used) / WARMDOWN)


class Trainer:
    """The model, its optimizers, and one step of training."""

    def __init__(self, config: Config, device: str):
        self.model = new_model(config, device)
        self.masks = self.model.flex_masks(device) if CUDA else None
        self.muon, self.adam = make_optimizers(self.model)
        self.loss_of = torch.compile(self.model.loss, dynamic=False) if CUDA else self.model.loss
        fits = not CUDA or torch.cuda.get_device_properties(0).total_memory > FULL_ROWS_GB * 1e9
        self.rows = DEVICE_ROWS if fits else DEVICE_ROWS // 2
        self.passes = max(1, STEP_TOKENS // (self.rows * config.context))  # through the model, for one update
        self.steps = 0

    def compile(self, batch: Tensor) -> None:
        """Take the time of compiling before the budget's clock runs, on made-up rows and without leaving a trace."""
        self.step(iter([batch] * self.passes), 0.0)  # a rate of 0 leaves the weights; the optimizers start afresh
        self.muon, self.adam = make_optimizers(self.model)
        self.steps = 0
        if CUDA:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def step(self, batches: Iterator[Tensor], used: float) -> Tensor:
        """One update from `passes` batches of rows (B, T + 1), at the share `used` of the budget; the loss before."""
        total = torch.zeros((), device=self.model.embed.weight.device)
        for _ in range(self.passes):
            batch = next(batches)
            loss = self.loss_of(batch[:, :-1], batch[:, 1:], self.masks) / self.passes
            loss.backward()
            total += loss.detach()
        share = schedule(used)
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * share
        rise = min(1.0, self.steps / MOMENTUM_STEPS)
        self.muon.step(MATRIX_LR * share, MOMENTUM[0] + rise * (MOMENTUM[1] - MOMENTUM[0]), WEIGHT_DECAY * (1 - used))
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        self.steps += 1
        return total


def on_device(data: prepare.TrainData, rows: int) -> Iterator[Tensor]:
    for batch in data.batches(rows):
        tokens = torch.from_numpy(batch)
        yield tokens.pin_memory().to("cuda", non_blocking=True) if CUDA else tokens


def train(trainer: Trainer, data: prepare.TrainData, budget: prepare.Budget) -> tuple[float, float, float]:
    """Train until the budget is used. The smoothed loss at the end, the seconds it took, and those before it."""
    batches, smooth, shown = on_device(data, trainer.rows), math.log(data.vocab_size), 0.0
    gc.collect()
    gc.freeze()  # looking through the objects there are, again and again, would stop the loop for a while each time
    gc.disable()
    startup = budget.start()
    print(f"step 0 | loss {smooth:.4f} | 0.0%", flush=True)
    while (used := budget.used(data.served)) < 1.0:
        loss = trainer.step(batches, used).item()
        if not math.isfinite(loss):
            raise SystemExit(f"the loss is {loss} at step {trainer.steps}")
        smooth += 0.1 * (loss - smooth)
        if budget.elapsed - shown > 0.5:
            shown = budget.elapsed
            speed = data.served / shown / 1000
            share = 100 * budget.used(data.served)
            print(f"step {trainer.steps} | loss {smooth:.4f} | {share:.1f}% | {speed:.0f}k tok/s", flush=True)
    return smooth, budget.elapsed, startup


def main() -> None:
    device = "cuda" if CUDA else "cpu"
    torch.manual_seed(prepare.SEED)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    data, budget = prepare.TrainData(), prepare.Budget()
    config = Config(data.vocab_size, data.context)
    trainer = Trainer(config, device)
    if CUDA:
        trainer.compile(torch.randint(data.vocab_size, (trainer.rows, data.context + 1), device=device))
    smooth, seconds, startup = train(trainer, data, budget)
    os.makedirs(prepare.OUTPUT, exist_ok=True)
    metadata = {"config": json.dumps(asdict(config)), "data_hash": data.data_hash}
    save_file(trainer.model.state_dict(), prepare.CHECKPOINT, metadata=metadata)
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
