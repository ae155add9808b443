"""The GPUs of this machine, as the driver's library (NVML) knows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from agent.errors import Failure
from agent.program import Device


@dataclass(frozen=True)
class Gpu:
    """One GPU. `index` is NVML's; `uuid` names it for CUDA_VISIBLE_DEVICES whatever else is visible."""

    index: int
    uuid: str
    handle: Any

    def used_bytes(self) -> int:
        """Memory in use on the whole device, by whomever; 0 while the driver can't tell."""
        import pynvml

        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)
        except pynvml.NVMLError:
            return 0


def find_device() -> Device:
    """`cuda` where the driver sees a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return "cuda" if pynvml.nvmlDeviceGetCount() else "cpu"
    except pynvml.NVMLError:
        return "cpu"


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use, in CUDA_VISIBLE_DEVICES' order. Raises Failure, one line."""
    import pynvml

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
        names = [str(i) for i in range(pynvml.nvmlDeviceGetCount())] if named is None else named.split(",")
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.strip().isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(name.strip())
            for name in names
            if name.strip()
        ]
        return [Gpu(pynvml.nvmlDeviceGetIndex(h), str(pynvml.nvmlDeviceGetUUID(h)), h) for h in handles]
    except pynvml.NVMLError as error:
        raise Failure(f"the GPU can't be found ({error}): look at nvidia-smi, or use the CPU") from None
