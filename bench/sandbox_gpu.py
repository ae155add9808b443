"""Does the sandbox cost a GPU anything, and does it hide the other GPUs? For a machine with an NVIDIA GPU.

    python -m bench.sandbox_gpu [--turns 40] [--slot 0] [--sandbox bubblewrap landlock]

A small MLP is trained by two processes, one outside and one inside the room of one slot, for each kind of wall. They
live side by side and take turns of half a second, so that what drifts on the machine falls on both; their speeds are
compared turn by turn. Then tells which GPUs can be seen and opened in the room. Ends with a line of JSON; exit code 1
unless the speed is within 2% and one GPU is seen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from agent.errors import Failure
from agent.run.gpu import Gpu, visible_gpus
from agent.run.probe import probe, rooms_fault
from agent.run.sandbox import Room, Sandbox, Unsandboxed, choose_sandbox

WITHIN = 0.02
WORK = """
import json, os, sys, time
import torch
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:8])  # the same cores, and so the same memory, for both
torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, dtype=torch.bfloat16) for _ in range(8))).cuda()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
host = torch.randn(4096, 2048, dtype=torch.bfloat16).pin_memory()
def step():
    x = host.to("cuda", non_blocking=True)
    loss = model(x).float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
def turn(seconds):
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for _ in range(10): step()
        torch.cuda.synchronize()
        steps += 10
    return steps / (time.monotonic() - began)
def opens(path):
    try: return bool(open(path, "rb+", buffering=0))
    except OSError: return False
turn(1)
nodes = [path for path in (f"/dev/nvidia{n}" for n in range(64)) if opens(path)]
print(json.dumps({"gpus": torch.cuda.device_count(), "nodes": nodes}), flush=True)
for line in sys.stdin: print(turn(float(line)), flush=True)
"""
TURN = 0.5  # seconds
COLUMNS = ("wall", "outside, steps/s", "inside, steps/s", "ratio", "half of the turns within", "GPUs in the room",
           "devices that open", "escapes")  # fmt: skip


class Worker:
    """The work in one process, outside or in a room. Raises Failure with its last line where it ends too soon."""

    def __init__(self, sandbox: Sandbox, room: Room):
        self.name = sandbox.name
        argv, pipe = sandbox.wrap([sys.executable, "-c", WORK], room), subprocess.PIPE
        self.process = subprocess.Popen(
            argv, env=dict(room.env), cwd=room.workdir, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        self.seen = json.loads(self.line())

    def line(self) -> str:
        assert self.process.stdout and self.process.stderr
        if line := self.process.stdout.readline():
            return line
        said = (self.process.stderr.read().strip().splitlines() or ["nothing"])[-1]
        raise Failure(f"{self.name}: the work ended with exit code {self.process.wait()}: {said}")

    def rate(self) -> float:
        """Steps per second of one turn."""
        assert self.process.stdin
        self.process.stdin.write(f"{TURN}\n")
        self.process.stdin.flush()
        return float(self.line())


def compare(sandbox: Sandbox, gpu: Gpu, turns: int) -> dict:
    """Speed outside and inside, in turns; the probe; the GPUs that are seen. Raises Failure."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        work, output, scratch = (Path(folder, name) for name in ("work", "output", "scratch"))
        for part in (work, output, scratch):
            part.mkdir()
        room = Room("training", work, output, scratch, slot=gpu.index, env=environment(gpu.uuid))
        found = probe(sandbox, Path(folder) / "home", Path.cwd(), slot=gpu.index, env=room.env)
        fault = rooms_fault(sandbox, Path(folder), "cuda", gpu.index, room.env)
        outside, inside = Worker(Unsandboxed(), room), Worker(sandbox, room)
        rates: dict[Worker, list[float]] = {outside: [], inside: []}
        for turn in range(turns):  # outside, inside, inside, outside: neither is always the first
            for worker in (outside, inside) if turn % 2 == 0 else (inside, outside):
                rates[worker].append(worker.rate())
        for worker in rates:
            worker.process.kill()
            worker.process.communicate()
    ratios = [a / b for a, b in zip(rates[inside], rates[outside], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "sandbox": sandbox.name,
        "outside_steps_s": round(statistics.median(rates[outside]), 1),
        "inside_steps_s": round(statistics.median(rates[inside]), 1),
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "gpus_in_room": inside.seen["gpus"],
        "devices_in_room": inside.seen["nodes"],
        "escapes": found,
        "fault": fault,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox_gpu")
    parser.add_argument("--turns", type=int, default=40, help="of half a second each, outside and inside")
    parser.add_argument("--slot", type=int, default=0, help="the GPU, as counted by nvidia-smi among the visible ones")
    parser.add_argument("--sandbox", nargs="+", default=["bubblewrap", "landlock"], help="the walls to compare")
    arguments = parser.parse_args()
    try:
        gpus = visible_gpus()
        if arguments.slot >= len(gpus):
            raise Failure(f"there are {len(gpus)} GPUs: --slot {arguments.slot} is none of them")
        rows = []
        print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
        for name in arguments.sandbox:
            row = compare(choose_sandbox(name), gpus[arguments.slot], arguments.turns)
            rows.append(row)
            print("| " + " | ".join(str(row[key]) for key in row if key != "fault") + " |", flush=True)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    print(json.dumps({"gpus_on_machine": len(gpus), "walls": rows}))
    good = all(
        row["ratio"] >= 1 - WITHIN
        and row["gpus_in_room"] == len(row["devices_in_room"]) == 1
        and not row["escapes"]
        and not row["fault"]
        for row in rows
    )
    return 0 if good else 1


def environment(uuid: str) -> dict[str, str]:
    """As the executor's, for one GPU."""
    names = ("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_HOME", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in names if name in os.environ} | {"CUDA_VISIBLE_DEVICES": uuid}


if __name__ == "__main__":
    sys.exit(main())
