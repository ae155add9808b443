"""What one command takes of its GPU, by the driver's word: how much memory, and whether it was there at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.run.task import Card

if TYPE_CHECKING:
    from agent.run.gpu import Gpu
    from agent.run.process import Ended

CONTEXT_BYTES = 64 << 20  # the least that a process takes of a GPU's memory by starting to use it


class DeviceUse:
    """Made before the command starts; without a card it only passes on what the machine's memory says.

    Each method raises MachineFault where the driver does not answer.
    """

    def __init__(self, card: Card | None):
        self._gpu: Gpu | None = None
        if card:
            from agent.run.gpu import gpu_of  # the driver's library is loaded only where there is a GPU

            self._gpu = gpu_of(card.uuid)
        self.seen = card is None
        """Whether the command was ever seen on its GPU; True where the contract names none."""
        self._before = self._most = self._gpu.used_bytes() if self._gpu else 0
        self._strangers = self._gpu.processes() if self._gpu else set()

    def look(self, pids: set[int]) -> None:
        """`pids`: all processes of the command, as seen from here."""
        if self._gpu:
            self._most = max(self._most, self._gpu.used_bytes())
            new = self._gpu.processes() - self._strangers
            # in some containers the driver names no process, or names it as the host does: then only memory tells
            nameless = not any(os.path.exists(f"/proc/{pid}") for pid in new)
            grown = self._most - self._before >= CONTEXT_BYTES
            self.seen = self.seen or bool(new & pids) or (nameless and grown)

    def most_bytes(self, ended: Ended) -> int:
        """The most memory that the command held, on the GPU or else in the machine."""
        return self._most - self._before if self._gpu else ended.peak_bytes

    @property
    def not_seen(self) -> str:
        """What is wrong where the command was not seen on its GPU."""
        gpu = f"GPU {self._gpu.index} ({self._gpu.name})" if self._gpu else "a GPU"
        return (
            f"it trained without the GPU: nothing of it was ever seen on {gpu}. If training is meant to be on the CPU, "
            "write device: cpu in program.md"
        )
