"""`run --dry-run`: what a night would ask first, and about what it would cost. Nothing is trained; nothing stays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from agent.asking import Asking
from agent.backup import tags_with_refs
from agent.cli.beforehand import check_proposers, so_far
from agent.cli.flags import Flags
from agent.cli.nights import choose_tag, nights
from agent.cli.wiring import ProgramFile, Prompts
from agent.history import History
from agent.judge.noise import baseline_trials
from agent.lab_note import duration
from agent.ledger import Ledger
from agent.night import Night
from agent.observers.columns import Columns
from agent.program import Budget, Program
from agent.propose import context
from agent.propose.choose import banner, choose_fallback, choose_proposer
from agent.propose.templates import Templates
from agent.protocols import Proposer, Request
from agent.run.gpu import find_device
from agent.run.log import clean
from agent.workspace import Workspace, open_repository, project_folder

EVENING, MORNING = 8.0, "8 hours"  # of a night whose end nobody has said
REPLY = 2_500  # tokens of a usual reply, with some thinking
CALLS = 1.15  # for one experiment: about one in seven is sent back once
TRIALS = 1.25  # for one experiment: about one in five looks good, and is confirmed by another seed or more


@dataclass(frozen=True)
class Estimate:
    """What a planned night comes to; each is rough."""

    trial: float
    """Seconds of one trial."""
    measured: bool
    """Whether these are known from an earlier night, or are the training budget alone."""
    experiments: int
    trials: int
    hours: float
    ends: str
    """What ends it."""
    call: float | None
    """Dollars; None: no price is known."""


def preview(flags: Flags, today: str, console: Console) -> None:
    """Prints the first prompt, and what the night would come to. Raises Failure for what would keep it from beginning,
    as far as that can be told without starting anything."""
    root = project_folder(flags.repo)
    tag = choose_tag(root, flags.tag, today, flags.new, tags_with_refs(open_repository(flags.repo)))
    workspace, program = Workspace(root, tag), ProgramFile(root, flags.contract).load()
    device = find_device(program.device)
    budget = program.budget_on(device)
    workspace.check(workspace.head, [*program.edit, *program.protect])
    workspace.check_submodules()
    chosen: dict[str, Any] = {"model": flags.model, "base_url": flags.base_url, "command": flags.command}
    proposer = choose_proposer(flags.proposer, **chosen, replay=flags.replay, device=device)
    fallback, night = choose_fallback(flags.fallback, proposer, device), so_far(workspace.home)
    templates = Templates(root / "prompts", lambda text: console.print(text, markup=False))
    request = first_request(workspace, program, night, proposer, templates, device)

    def say(text: str) -> None:
        console.print(text, markup=False)

    check_proposers(flags.stoppers.usd, not flags.no_check, night, proposer, fallback, request, say)
    if proposer.name != "search":  # it reads the files, and no prompt
        for name, text in (("system", request.system), ("user", request.turns[0].text)):
            console.rule(f"the {name} part of prompt {request.number}", style="dim")
            print("\n".join(clean(line) for line in text.split("\n")))
        console.rule(style="dim")
    tokens = sum(context.estimate_tokens(text) for text in (request.system, request.turns[0].text))
    trial, measured = trial_seconds(root, program, budget)
    plan = planned(flags, night, budget, trial, measured, dollars_of_call(proposer, tokens))
    console.print(table(workspace, program, device, proposer, request, tokens, plan, flags))


def first_request(
    workspace: Workspace, program: Program, night: Night, proposer: Proposer, templates: Templates, device: str
) -> Request:
    """That of the night's next experiment."""
    if not night.tip:
        files = workspace.read(workspace.head, program.edit)
        return context.first_request(1, program, files, (), {}, templates)
    ledger = Ledger(workspace.home, readonly=True)
    asking = Asking(ledger, History(ledger.text), workspace, proposer, Prompts(templates), device)
    return asking.new_question(night, max(night.experiments) + 1, "first", night.tip, "")


def trial_seconds(root: Path, program: Program, budget: Budget) -> tuple[float, bool]:
    """Of one trial, by the newest night here with the same command and budget; otherwise its budget alone."""
    for home in reversed(nights(root)):
        night = so_far(home)
        if not night.contract:
            continue
        history = History(Ledger(home, readonly=True).text)
        if history.program(night.contract).incomparable(program):
            continue
        ended = [t.measurement for e in night.experiments.values() for t in e.trials if t.measurement]
        took = [m.startup_seconds + m.training_seconds + m.evaluation_seconds for m in ended if m.outcome == "ok"]
        if took:
            return sum(took) / len(took), True
    return budget.seconds, False


def dollars_of_call(proposer: Proposer, tokens: int) -> float | None:
    from genai_prices import Usage  # these take long to load, and only this needs them

    from agent.propose.llm import ApiProposer

    if isinstance(proposer, ApiProposer):
        return proposer.usd(Usage(input_tokens=tokens, output_tokens=REPLY))
    return 0.0 if proposer.name in ("search", "replay") else None


def planned(
    flags: Flags, night: Night, budget: Budget, trial: float, measured: bool, call: float | None
) -> Estimate:
    """What is reached first of hours, experiments and dollars; without any of them, what a night of 8 hours brings."""
    most, done = flags.stoppers, max(0, len(night.experiments) - 1)
    first = 0 if night.measured else baseline_trials(budget)
    hours = EVENING if most.hours is None else most.hours
    within = {f"{hours:g} hours": max(0, int((hours * 3600 * flags.slots / trial - first) / TRIALS))}
    if most.experiments is not None:
        within["--experiments"] = max(0, most.experiments - done)
        if most.hours is None:
            del within[f"{hours:g} hours"]
    if most.usd is not None and call:
        within["--usd"] = max(0, int((most.usd - (night.spent or 0.0)) / (call * CALLS)))
    ends, experiments = min(within.items(), key=lambda item: item[1])
    trials = round(first + experiments * TRIALS)
    return Estimate(trial, measured, experiments, trials, trials * trial / 3600 / flags.slots, ends, call)


def table(
    workspace: Workspace, program: Program, device: str, proposer: Proposer, request: Request, tokens: int,
    plan: Estimate, flags: Flags,
) -> Columns:  # fmt: skip
    rows = Columns(show_header=False)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    most = proposer.most_usd(request)

    def row(name: str, *parts: str) -> None:
        rows.add_row(name, escape("; ".join(filter(None, parts))))

    row("night", f"{workspace.tag}: {program.metric.direction} {program.metric.name}, "
        f"{program.budget_on(device)} per trial on {device}")  # type: ignore[arg-type] # fmt: skip
    row("proposer", banner(proposer))
    if proposer.name != "search":
        row("prompt", f"about {tokens:,} tokens, counted by {context.tokens_counted_by()}",
            "" if request.history else "later ones also tell what was tried")  # fmt: skip
    usual = f"with a reply of {REPLY:,} tokens"
    price = f"about {money(plan.call)} {usual}" if plan.call else "free of charge"
    row("one call", "its price is not known" if plan.call is None else price,
        f"at most {money(most)} is set aside for it" if most else "")  # fmt: skip
    took = "as measured in an earlier night" if plan.measured else "by its budget: startup and evaluation come on top"
    row("one trial", f"about {duration(plan.trial)}, {took}")
    row("the night", f"about {plan.experiments} experiments in {plan.trials} trials, {duration(plan.hours * 3600)}",
        f"what ends it: {plan.ends}" if flags.stoppers != type(flags.stoppers)() else
        f"by {MORNING}: no --hours, --experiments or --usd is given")  # fmt: skip
    row("dollars", "not known" if plan.call is None else f"about {money(plan.call * CALLS * plan.experiments)}",
        "" if flags.stoppers.usd is not None or not plan.call else "without --usd nothing bounds it")  # fmt: skip
    if program.prepare:
        row("prepare", f"`{program.prepare}` runs first, and was not run here")
    row("left", "nothing was trained, and nothing is left behind; `doctor` looks at the machine")
    return rows


def money(usd: float) -> str:
    return f"${usd:.4f}" if 0 < usd < 0.1 else f"${usd:.2f}"
