"""The process that runs the model which is evaluated, and the other end, which the evaluation holds.

The edited code runs in that process only (`serve`): it sees input tokens in shared memory, and writes logits there. The
evaluation trusts nothing that comes of it; a `ModelServer` reads single bytes, a bounded log and those logits.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from prepare import CHECKPOINT, HERE, LOAD_SECONDS, device_name

LOGITS_DTYPE = {"cpu": "float32", "cuda": "float16"}
CHILD_TIMEOUT = 300.0  # seconds for one answer; the harness bounds the evaluation as a whole
LOAD_RULE = "twice as long as that of the incumbent, and 10 s"  # as the harness reckons RESEARCH_LOAD_SECONDS
LOG_BYTES = 65536


class Violation(Exception):
    """The model does what no honest model does: exit code 3 and a last line `violation: <reason>`."""


def serve(memory: int, commands: int, answers: int) -> None:
    """Wait for the shape of the shared memory to come from `commands`, load the model, and then answer each byte that
    comes there by writing the logits of the tokens in that memory. Nothing of the model runs before the shape came."""
    import torch

    device = device_name()
    torch.zeros(1, device=device)  # takes a second or two on a GPU
    shape = json.loads(os.read(commands, LOG_BYTES))
    sys.path.insert(0, os.getcwd())
    import train  # pyright: ignore[reportMissingImports]

    model = train.load_model(str(CHECKPOINT), device)
    inputs, logits = shared_tensors(memory, shape, device)
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
        self.log, self.closed, self.load_seconds = b"", False, 0.0
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        self.reader.start()

    def open(self, shape: tuple[int, int, int], device: str) -> None:
        """Share memory of this shape (B, T, V) with the child, and wait until its model is loaded and answered once.
        Raises Violation where that takes longer than LOAD_SECONDS: what a model knows it has to learn in training."""
        began = time.monotonic()
        rows, context, vocab = shape
        os.ftruncate(self.memory, rows * context * (8 + vocab * (2 if LOGITS_DTYPE[device] == "float16" else 4)))
        self.device = device
        self.inputs, self.output = shared_tensors(self.memory, shape, device)
        until = began + (LOAD_SECONDS or CHILD_TIMEOUT)
        self._command(json.dumps(shape).encode())
        self._answer(until)
        self.inputs.zero_()
        self._command(b"g")
        self._answer(until)
        self.load_seconds = time.monotonic() - began

    def _read_log(self) -> None:
        assert self.process.stdout
        while block := os.read(self.process.stdout.fileno(), LOG_BYTES):
            self.log = (self.log + block)[-LOG_BYTES:]

    def _command(self, text: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # a dead child is noticed by the missing answer
            os.write(self.commands, text)

    def _answer(self, until: float | None = None) -> None:
        seconds = CHILD_TIMEOUT if until is None else max(0.0, until - time.monotonic())
        if not select.select([self.answers], [], [], seconds)[0]:
            if until is not None and LOAD_SECONDS:
                raise Violation(f"loading the model took longer than {LOAD_SECONDS:g} s; it may take {LOAD_RULE}")
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

    def close(self) -> None:
        """End the process, and the sandbox around it where there is one; return when it has ended for certain."""
        if self.closed:
            return
        self.closed = True
        self.process.terminate() if os.environ.get("RESEARCH_MODEL_SANDBOX") else self.process.kill()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5)  # a thread that is reading while the interpreter ends can abort the process
        for descriptor in (self.memory, self.commands, self.answers):
            os.close(descriptor)
