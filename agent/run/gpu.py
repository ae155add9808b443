"""The GPUs of this machine, as the driver's library (NVML) knows them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pynvml

from agent.errors import Failure, MachineFault

if TYPE_CHECKING:
    from agent.program import Device

NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)


@dataclass(frozen=True)
class Gpu:
    """One GPU. `index` is NVML's; `uuid` names it for CUDA_VISIBLE_DEVICES whatever else is visible."""

    index: int
    uuid: str
    name: str
    handle: Any

    def used_bytes(self) -> int:
        """Memory in use on the whole device, by whomever. Raises MachineFault while the driver can't tell."""
        return int(self._ask(pynvml.nvmlDeviceGetMemoryInfo).used)

    def total_bytes(self) -> int:
        """Raises MachineFault while the driver can't tell."""
        return int(self._ask(pynvml.nvmlDeviceGetMemoryInfo).total)

    def busy_share(self) -> float:
        """Share of the last moment in which it computed. Raises MachineFault while the driver can't tell."""
        return int(self._ask(pynvml.nvmlDeviceGetUtilizationRates).gpu) / 100

    def processes(self) -> set[int]:
        """Ids of the processes that compute on it, as this machine's kernel or the container's host counts them.
        Raises MachineFault while the driver can't tell."""
        return {int(process.pid) for process in self._ask(pynvml.nvmlDeviceGetComputeRunningProcesses)}

    def _ask(self, question: Any) -> Any:
        try:
            return question(self.handle)
        except pynvml.NVMLError as error:
            raise MachineFault(f"GPU {self.index} ({self.name}) does not answer: {error}") from None


def find_device(wanted: Device | None = None) -> Device:
    """`cuda` where there is a GPU to be used, else `cpu`; `wanted` is what the person says. Raises Failure where a GPU
    is wanted, or there, but can't be used: a night never moves to the CPU by itself."""
    if wanted == "cpu":
        return "cpu"
    found: Device = "cuda" if visible_gpus() else "cpu"
    if wanted == "cuda" and found == "cpu":
        raise Failure("no GPU can be seen: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu")
    return found


def device_name(device: Device) -> str:
    """What a night is tied to: `cpu`, or `cuda NVIDIA H100 80GB HBM3`."""
    return f"cuda {visible_gpus()[0].name}" if device == "cuda" else "cpu"


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use, in CUDA_VISIBLE_DEVICES' order; none where there is no driver, or where that
    variable is set and empty. Raises Failure, one line, where there is a driver but no sense in what it says."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in NO_DRIVER and not os.path.exists("/dev/nvidiactl"):
            return []
        raise Failure(f"the GPU's driver does not answer ({error}): look at nvidia-smi, or use --device cpu") from None
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        names = [str(i) for i in range(pynvml.nvmlDeviceGetCount())] if named is None else named.split(",")
        return [_gpu(name.strip()) for name in names if name.strip()]
    except pynvml.NVMLError as error:
        said = f"CUDA_VISIBLE_DEVICES={named} names none" if named else f"the GPU can't be found ({error})"
        raise Failure(f"{said}: look at nvidia-smi, or use --device cpu") from None


def gpu_of(uuid: str) -> Gpu:
    """Raises MachineFault where it has gone."""
    try:
        pynvml.nvmlInit()
        return _gpu(uuid)
    except pynvml.NVMLError as error:
        raise MachineFault(f"the GPU {uuid} has gone: {error}") from None


def _gpu(name: str) -> Gpu:
    """By index, or by (the beginning of) a UUID as CUDA takes it."""
    if name.isdigit():
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
    else:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        handle = next((h for h in handles if _text(pynvml.nvmlDeviceGetUUID(h)).startswith(name)), None)
        if handle is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    uuid, model = _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))
    return Gpu(pynvml.nvmlDeviceGetIndex(handle), uuid, model, handle)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
