"""Does the sandbox cost a GPU anything, and does it hide the other GPUs? For a machine with an NVIDIA GPU.

    python -m bench.sandbox_gpu [--seconds 10] [--rounds 3] [--slot 0]

Runs the same matrix products and a small trained MLP outside and inside the room of one slot, in turns, and
compares the speed; then lists what CUDA and /dev show in the room. Ends with a line of JSON; exit code 1 unless
the speed is within 2% and one GPU is seen.
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
from agent.run.gpu import visible_gpus
from agent.run.probe import probe
from agent.run.sandbox import Bubblewrap, Room, Sandbox, Unsandboxed

WITHIN = 0.02
WORK = """
import glob, json, sys, time
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
for _ in range(20): step()
torch.cuda.synchronize()
began, steps = time.monotonic(), 0
while time.monotonic() - began < float(sys.argv[1]):
    for _ in range(20): step()
    torch.cuda.synchronize()
    steps += 20
seen = sorted(glob.glob("/dev/nvidia[0-9]*"))
print(json.dumps({"rate": steps / (time.monotonic() - began), "gpus": torch.cuda.device_count(), "nodes": seen}))
"""


def run(sandbox: Sandbox, room: Room, seconds: float) -> dict:
    """Steps per second, GPUs that CUDA counts, and device files, of one run. Raises Failure with its last line."""
    argv = sandbox.wrap([sys.executable, "-c", WORK, str(seconds)], room)
    ran = subprocess.run(argv, env=dict(room.env), cwd=room.workdir, capture_output=True, text=True)
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Failure(f"{sandbox.name}: the work ended with exit code {ran.returncode}: {said}")
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sandbox_gpu")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs outside and inside, in turns")
    parser.add_argument("--slot", type=int, default=0, help="the GPU, as counted by nvidia-smi among the visible ones")
    arguments = parser.parse_args()
    try:
        gpus = visible_gpus()
        if arguments.slot >= len(gpus):
            raise Failure(f"there are {len(gpus)} GPUs: --slot {arguments.slot} is none of them")
        gpu, sandbox = gpus[arguments.slot], Bubblewrap()
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            room = Room(Path(folder) / "work", Path(folder) / "output", slot=gpu.index, env=environment(gpu.uuid))
            room.workdir.mkdir()
            room.output.mkdir()
            found = probe(sandbox, Path(folder) / "home", Path.cwd(), slot=gpu.index, env=room.env)
            inside, outside = [], []
            for _ in range(arguments.rounds):
                outside.append(run(Unsandboxed(), room, arguments.seconds))
                inside.append(run(sandbox, room, arguments.seconds))
                print(
                    f"outside {outside[-1]['rate']:8.1f} steps/s   inside {inside[-1]['rate']:8.1f} steps/s", flush=True
                )
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    rate_in, rate_out = (statistics.median(run["rate"] for run in runs) for runs in (inside, outside))
    last = inside[-1]
    print(f"the probe broke out by: {found or 'nothing'}")
    print(f"in the room: {last['gpus']} GPU, device files {last['nodes']}; on the machine: {len(gpus)}")
    result = {
        "ratio": round(rate_in / rate_out, 4),
        "gpus_in_room": last["gpus"],
        "gpus_on_machine": len(gpus),
        "escapes": len(found),
    }
    print(json.dumps(result))
    good = rate_in >= rate_out * (1 - WITHIN) and last["gpus"] == len(last["nodes"]) == 1 and not found
    return 0 if good else 1


def environment(uuid: str) -> dict[str, str]:
    """As the executor's, for one GPU."""
    names = ("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_HOME", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in names if name in os.environ} | {"CUDA_VISIBLE_DEVICES": uuid}


if __name__ == "__main__":
    sys.exit(main())
