"""Which proposer to use.

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
from pathlib import Path

from agent.errors import Failure
from agent.program import Device
from agent.protocols import Proposer

PROPOSERS = ("auto", "anthropic", "openai", "command", "search", "replay")


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
    if name == "auto":
        name = configured(base_url, command, replay)
    # Imported where they are used: an SDK takes up to two seconds to load.
    if name == "anthropic":
        from agent.propose.anthropic import AnthropicProposer

        return AnthropicProposer(model, base_url)
    if name == "openai":
        from agent.propose.openai import OpenAIProposer

        return OpenAIProposer(model, base_url)
    if name == "command":
        from agent.propose.command import CommandProposer

        if not command:
            raise Failure("--proposer command needs --command, for example --command 'claude -p'")
        return CommandProposer(command)
    if name == "replay":
        from agent.propose.replay import ReplayProposer

        if not replay:
            raise Failure("--proposer replay needs --replay: a folder or a file of replies")
        return ReplayProposer(Path(replay))
    if name == "search":
        from agent.propose.search import SearchProposer

        return SearchProposer(seed, device)
    raise Failure(f"--proposer {name} is not known: choose one of {', '.join(PROPOSERS)}")


def configured(base_url: str | None, command: str | None, replay: str | Path | None) -> str:
    """What `auto` stands for here."""
    order = (
        ("command", command),
        ("replay", replay),
        ("openai", base_url),
        ("anthropic", os.environ.get("ANTHROPIC_API_KEY")),
        ("openai", os.environ.get("OPENAI_API_KEY")),
    )
    return next((name for name, given in order if given), "search")


def banner(proposer: Proposer) -> str:
    """One line: who proposes, and what that means for ideas and money."""
    if proposer.name == "search":
        keys = [key for key in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY") if os.environ.get(key)]
        why = f"{keys[0]} is set but not used" if keys else (
            "no API key found: for a model set ANTHROPIC_API_KEY or OPENAI_API_KEY, or use --base-url or --command"
        )  # fmt: skip
        return f"search: no language model, it only tunes constants ({why})"
    if proposer.name == "replay":
        return "replay: proposals from files, no language model"
    if proposer.name == "command":
        return f"command: {proposer.model}, its cost is not known and --usd can't bound it"
    url = getattr(proposer, "base_url", "")
    return f"{proposer.name}: {proposer.model} at {url}, {priced(proposer)}"


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
