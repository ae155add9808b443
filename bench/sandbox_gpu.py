"""Does the sandbox cost a GPU anything, and does it hide the other GPUs? For a machine with an NVIDIA GPU.

    python -m bench.sandbox_gpu [--seconds 10] [--rounds 3] [--slot 0] [--sandbox bubblewrap landlock]

Trains the same small MLP outside and inside the room of one slot, in turns, and compares the speed (the median over
windows of 20 steps), for each kind of wall; then tells which GPUs can be seen and opened in the room. Ends with a line
of JSON; exit code 1 unless the speed is within 2% and one GPU is seen.
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
import json, statistics, sys, time
import torch
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
    return loss
def seconds_of_20():
    began = time.monotonic()
    for _ in range(20): step()
    torch.cuda.synchronize()
    return time.monotonic() - began
warm = time.monotonic() + 2  # until its clock has risen
while time.monotonic() < warm: seconds_of_20()
end, windows = time.monotonic() + float(sys.argv[1]), []
while time.monotonic() < end: windows.append(seconds_of_20())
def opens(path):
    try: return bool(open(path, "rb+", buffering=0))
    except OSError: return False
seen = [path for path in (f"/dev/nvidia{n}" for n in range(64)) if opens(path)]
print(json.dumps({"rate": 20 / statistics.median(windows), "gpus": torch.cuda.device_count(), "nodes": seen}))
"""


def run(sandbox: Sandbox, room: Room, seconds: float) -> dict:
    """Steps per second, GPUs that CUDA counts, and device files, of one run. Raises Failure with its last line."""
    argv = sandbox.wrap([sys.executable, "-c", WORK, str(seconds)], room)
    ran = subprocess.run(argv, env=dict(room.env), cwd=room.workdir, capture_output=True, text=True)
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Failure(f"{sandbox.name}: the work ended with exit code {ran.returncode}: {said}")
    return json.loads(ran.stdout.splitlines()[-1])


def compare(sandbox: Sandbox, gpu: Gpu, seconds: float, rounds: int) -> dict:
    """Speed outside and inside, in turns; the probe; the GPUs that are seen. Raises Failure."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        work, output, scratch = (Path(folder, name) for name in ("work", "output", "scratch"))
        for part in (work, output, scratch):
            part.mkdir()
        room = Room("training", work, output, scratch, slot=gpu.index, env=environment(gpu.uuid))
        found = probe(sandbox, Path(folder) / "home", Path.cwd(), slot=gpu.index, env=room.env)
        fault = rooms_fault(sandbox, Path(folder), "cuda", gpu.index, room.env)
        inside, outside = [], []
        for turn in range(rounds):  # who begins changes, so that a drift of the machine falls on both
            pair = [(outside, Unsandboxed()), (inside, sandbox)]
            for runs, wall in pair if turn % 2 == 0 else reversed(pair):
                runs.append(run(wall, room, seconds))
    rate_in, rate_out = (statistics.median(run["rate"] for run in runs) for runs in (inside, outside))
    by_round = [round(a["rate"] / b["rate"], 4) for a, b in zip(inside, outside, strict=True)]
    return {
        "sandbox": sandbox.name,
        "outside_steps_s": round(rate_out, 1),
        "inside_steps_s": round(rate_in, 1),
        "ratio": round(rate_in / rate_out, 4),
        "by_round": by_round,
        "gpus_in_room": inside[-1]["gpus"],
        "devices_in_room": inside[-1]["nodes"],
        "escapes": found,
        "fault": fault,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox_gpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs outside and inside, in turns")
    parser.add_argument("--slot", type=int, default=0, help="the GPU, as counted by nvidia-smi among the visible ones")
    parser.add_argument("--sandbox", nargs="+", default=["bubblewrap", "landlock"], help="the walls to compare")
    arguments = parser.parse_args()
    try:
        gpus = visible_gpus()
        if arguments.slot >= len(gpus):
            raise Failure(f"there are {len(gpus)} GPUs: --slot {arguments.slot} is none of them")
        rows = []
        print("| wall | outside, steps/s | inside, steps/s | ratio | GPUs in the room | devices that open | escapes |")
        print("|" + " --- |" * 7)
        for name in arguments.sandbox:
            row = compare(choose_sandbox(name), gpus[arguments.slot], arguments.seconds, arguments.rounds)
            rows.append(row)
            print("| " + " | ".join(str(row[key]) for key in row if key not in ("fault", "by_round")) + " |", flush=True)
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
