"""Which proposer to use. A new one is a file beside this and an entry in PROPOSERS.

`auto` takes the first of these that is configured; what a flag says goes before what the environment holds:
1. command, with --command
2. replay, with --replay
3. openai, with --base-url: the address of a server that speaks its format
4. anthropic, with ANTHROPIC_API_KEY
5. openai, with OPENAI_API_KEY
6. search, which needs nothing
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Failure
from agent.program import Device
from agent.protocols import Proposer


@dataclass(frozen=True)
class Settings:
    """What the person said of proposers."""

    model: str | None = None
    base_url: str | None = None
    command: str | None = None
    replay: str | Path | None = None
    seed: int = 0
    device: Device = "cpu"


@dataclass(frozen=True)
class Kind:
    """One kind of proposer."""

    make: Callable[[Settings], Proposer]
    """Raises Failure where it lacks what it needs."""
    place: Callable[[Settings], int | None]
    """In the order of `auto`; None: it is not configured."""
    key: str = ""
    """The environment variable that holds its key."""


# Each is imported where it is used: an SDK takes up to two seconds to load.


def _command(settings: Settings) -> Proposer:
    from agent.propose.command import CommandProposer

    if not settings.command:
        raise Failure("--proposer command needs --command, for example --command 'claude -p'")
    return CommandProposer(settings.command)


def _replay(settings: Settings) -> Proposer:
    from agent.propose.replay import ReplayProposer

    if not settings.replay:
        raise Failure("--proposer replay needs --replay: a folder or a file of replies")
    return ReplayProposer(Path(settings.replay))


def _anthropic(settings: Settings) -> Proposer:
    from agent.propose.anthropic import AnthropicProposer

    return AnthropicProposer(settings.model, settings.base_url)


def _openai(settings: Settings) -> Proposer:
    from agent.propose.openai import OpenAIProposer

    return OpenAIProposer(settings.model, settings.base_url)


def _search(settings: Settings) -> Proposer:
    from agent.propose.search import SearchProposer

    return SearchProposer(settings.seed, settings.device)


PROPOSERS = {
    "command": Kind(_command, lambda s: 1 if s.command else None),
    "replay": Kind(_replay, lambda s: 2 if s.replay else None),
    "anthropic": Kind(_anthropic, lambda s: 4 if os.environ.get("ANTHROPIC_API_KEY") else None, "ANTHROPIC_API_KEY"),
    "openai": Kind(
        _openai,
        lambda s: 3 if s.base_url else 5 if os.environ.get("OPENAI_API_KEY") else None,
        "OPENAI_API_KEY",
    ),
    "search": Kind(_search, lambda s: 6),
}


def choose_proposer(
    name: str,
    *,
    model: str | None = None,
    base_url: str | None = None,
    command: str | None = None,
    replay: str | Path | None = None,
    seed: int = 0,
    device: Device = "cpu",
) -> Proposer:
    """Raises Failure when the name is unknown, or the proposer lacks what it needs."""
    settings = Settings(model, base_url, command, replay, seed, device)
    if name == "auto":
        places = {kind: PROPOSERS[kind].place(settings) for kind in PROPOSERS}
        name = min((kind for kind in PROPOSERS if places[kind]), key=lambda kind: places[kind] or 0)
    if name not in PROPOSERS:
        raise Failure(f"--proposer {name} is not known: choose one of auto, {', '.join(PROPOSERS)}")
    return PROPOSERS[name].make(settings)


def choose_fallback(name: str | None, proposer: Proposer, device: Device) -> Proposer | None:
    """What proposes while the proposer can't. Raises Failure."""
    if name not in (None, "search"):
        raise Failure(f"--fallback {name} is not known: search is the one that there is")
    return PROPOSERS["search"].make(Settings(device=device)) if name and proposer.name != "search" else None


def keys_that_are_set() -> list[str]:
    """Names of the environment variables that hold a key for one of the proposers."""
    return [kind.key for kind in PROPOSERS.values() if kind.key and os.environ.get(kind.key)]


def banner(proposer: Proposer) -> str:
    """One line: who proposes, and what that means for ideas and money."""
    if proposer.name == "search":
        keys = keys_that_are_set()
        why = f"{keys[0]} is set but not used" if keys else (
            "no API key found: for a model set ANTHROPIC_API_KEY or OPENAI_API_KEY, or use --base-url or --command"
        )  # fmt: skip
        return f"search: no language model, it only tunes constants ({why})"
    if proposer.name == "replay":
        return "replay: proposals from files, no language model"
    if proposer.name == "command":
        return f"command: {proposer.model}, its cost is not known and --usd can't bound it"
    where = " at ".join(filter(None, (proposer.model, getattr(proposer, "base_url", ""))))
    return f"{proposer.name}: {', '.join(filter(None, (where, priced(proposer))))}"


def priced(proposer: Proposer) -> str:
    """What is known of an API proposer's price."""
    from genai_prices import Usage

    from agent.propose.llm import ApiProposer

    if not isinstance(proposer, ApiProposer):
        return "price not known"
    thousand = [proposer.usd(Usage(input_tokens=1000)), proposer.usd(Usage(output_tokens=1000))]
    if thousand[0] is None or thousand[1] is None:
        return "price not known: --usd can't bound it"
    fed, said = (f"${1000 * (usd or 0):g}" for usd in thousand)
    return f"{fed} and {said} per million tokens in and out" if any(thousand) else "free of charge"
