"""Where code that nobody has read yet runs: a room with one writable folder and no way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Room:
    """What one command may see and write. All paths are absolute."""

    workdir: Path
    """A copy of the commit, read-only; the current directory of the command."""
    output: Path
    """The only folder that it may write; exists before the start."""
    data: tuple[Path, ...] = ()
    """Read-only folders that must be visible."""
    hidden: tuple[Path, ...] = ()
    """Folders that must not be visible: the held-out data while training."""
    slot: int | None = None
    """Index of the only GPU that it may see; None: no GPU."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The complete environment: an allow-list built by the executor."""
    nested: bool = False
    """True for the evaluation: it may start one sandbox of its own around the model (see `inner`)."""


class Sandbox(Protocol):
    """Puts a room around a command. The caller starts it with env=room.env and cwd=room.workdir."""

    name: str

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        """The command that runs `argv` in the room."""
        ...

    def inner(self, room: Room) -> list[str] | None:
        """Prefix of argv for RESEARCH_MODEL_SANDBOX inside a nested room; None: no second sandbox."""
        ...


class Unsandboxed:
    """--unsafe-no-sandbox: the command runs as the person who started the loop, and may do what they may."""

    name = "none"

    def wrap(self, argv: Sequence[str], room: Room) -> list[str]:
        return list(argv)

    def inner(self, room: Room) -> list[str] | None:
        return None
