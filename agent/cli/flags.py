"""The flags of `run`, each with its help, as one record: typer makes the command's parameters of its fields."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from agent.cli.show import Repo
from agent.limits import MOST_HOURS
from agent.propose.choose import PROPOSERS
from agent.records import Stoppers

CONTRACT = {
    "metric.name": "metric",
    "metric.direction": "direction",
    "metric.target": "target",
    "metric.pattern": "pattern",
    **{name: name for name in ("run", "evaluate", "edit", "protect", "budget", "device")},
}
"""Keys of program.md's front matter, and the flags that go over them."""


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    tag: Annotated[
        str | None, Option(help="Name of the night; an existing one goes on. Default: the unfinished one, or today.")
    ] = None
    experiments: Annotated[int | None, Option(min=1, help="End after this many experiments.")] = None
    hours: Annotated[
        float | None, Option(min=0, max=MOST_HOURS, help="Begin nothing new after this many hours.")
    ] = None
    usd: Annotated[float | None, Option(min=0, help="Never spend more on calls, in dollars.")] = None
    tokens: Annotated[int | None, Option(min=1, help="End when calls have used this many tokens.")] = None
    plateau: Annotated[int | None, Option(min=1, help="End after so many in a row without a keep.")] = None
    proposer: Annotated[str, Option(help=f"auto, {', '.join(PROPOSERS)}.")] = "auto"
    model: Annotated[str | None, Option(help="Model name for anthropic or openai.")] = None
    base_url: Annotated[
        str | None, Option(help="A compatible server: Ollama, vLLM, llama.cpp, OpenRouter, a proxy.")
    ] = None
    command: Annotated[
        str | None, Option(help="Program that reads the prompt and prints the reply, like 'claude -p'.")
    ] = None
    command_unsandboxed: Annotated[
        bool, Option("--command-unsandboxed", help="Run that program with all your rights, not in a room of its own.")
    ] = False
    replay: Annotated[Path | None, Option(help="Folder or file of replies to run again, in order.")] = None
    fallback: Annotated[
        str | None, Option(help="What proposes while the model can't be had: search. Default: wait for it.")
    ] = None
    new: Annotated[bool, Option("--new", help="Begin another night, though one is not finished.")] = False
    no_check: Annotated[
        bool, Option("--no-check", help="Don't ask the model's server beforehand whether it is there.")
    ] = False
    budget: Annotated[str | None, Option(help="Training per trial: 20s, 5m, or 2M tokens within 60s.")] = None
    repo: Repo = Path(".")
    metric: Annotated[str | None, Option(help="Contract: name of the metric, as printed.")] = None
    direction: Annotated[str | None, Option(help="Contract: minimize or maximize.")] = None
    target: Annotated[float | None, Option(help="Contract: end when a keep reaches this.")] = None
    pattern: Annotated[str | None, Option(help="Contract: regex whose group is the metric.")] = None
    run: Annotated[str | None, Option(help="Contract: the training command.")] = None
    evaluate: Annotated[str | None, Option(help="Contract: the evaluation command.")] = None
    edit: Annotated[list[str] | None, Option(help="Contract: file the agent may edit; repeatable.")] = None
    protect: Annotated[list[str] | None, Option(help="Contract: file that must not change; repeatable.")] = None
    device: Annotated[str | None, Option(help="Contract: cuda or cpu; default: a GPU that can be seen.")] = None
    sandbox: Annotated[str, Option(help="auto, bubblewrap, landlock, docker or podman.")] = "auto"
    unsafe_no_sandbox: Annotated[
        bool, Option("--unsafe-no-sandbox", help="Run model-written code with all your rights.")
    ] = False
    notify: Annotated[
        str | None,
        Option(
            help="Where to say that the night pauses, ends or has a new best: a URL of apprise, "
            "which may also be in OVERNIGHT_NOTIFY."
        ),
    ] = None
    push: Annotated[
        str | None, Option(help="Remote that gets the night's refs and a copy of its ledger after each keep.")
    ] = None
    track: Annotated[
        list[str] | None,
        Option(help="Send each experiment to mlflow[:URI], wandb, tensorboard[:FOLDER] or trackio; repeatable."),
    ] = None
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show the first prompt and what the night would cost; begin nothing.")
    ] = False
    plain: Annotated[bool, Option("--plain", help="Lines alone, on any terminal.")] = False
    watch: Annotated[bool, Option("--watch", help="Show the night as a page too, as `watch` does.")] = False
    port: Annotated[int | None, Option(min=1, max=65535, help="With --watch: where the page is.")] = None
    no_lookahead: Annotated[
        bool, Option("--no-lookahead", help="Ask for no proposal while a trial runs: only after its verdict.")
    ] = False
    slots: Annotated[int, Option(min=1, hidden=True)] = 1

    @property
    def contract(self) -> dict[str, Any]:
        """What lies over program.md's front matter."""
        said = {key: getattr(self, flag) for key, flag in CONTRACT.items()}
        return {key: value for key, value in said.items() if value is not None}

    @property
    def stoppers(self) -> Stoppers:
        return Stoppers(
            experiments=self.experiments, hours=self.hours, usd=self.usd, tokens=self.tokens, plateau=self.plateau
        )


def takes_flags(command: Callable[[Flags], None]) -> Callable[..., None]:
    """The command with a parameter for each field of Flags, as typer reads them."""

    @functools.wraps(command)
    def called(**values: Any) -> None:
        command(Flags(**values))

    hints = get_type_hints(Flags, include_extras=True)
    called.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(Flags)
    ])  # fmt: skip
    return called
