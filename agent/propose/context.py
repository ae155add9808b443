"""What a proposer is told: the contract, the state, the history of experiments and the files, as a prompt."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import tiktoken

from agent.program import Program
from agent.propose.edits import CATEGORIES
from agent.propose.templates import Templates, one_line
from agent.protocols import Request
from agent.records import Experiment, Turn

HISTORY_TOKENS = 6_000  # for the whole history, newest first
SUMS = 300  # tokens that the sums by category take, about
MANY_KEPT = 60  # older kept experiments, of which only number and effect are told where there are more
REPLY_CHARACTERS = 60_000  # of a reply that goes back to its author
PLATEAU = 5  # experiments without a keep before the prompt asks for something else
CHARACTERS_PER_TOKEN = 3.5  # the fallback where tiktoken's file is not on this machine
ENCODING = "o200k_base"
ENCODING_URL = f"https://openaipublic.blob.core.windows.net/encodings/{ENCODING}.tiktoken"
ENCODING_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def first_request(
    number: int,
    program: Program,
    files: Mapping[str, str],
    history: Sequence[Experiment],
    facts: Mapping[str, object],
    templates: Templates,
    history_tokens: int = HISTORY_TOKENS,
    suggestion: str = "",
) -> Request:
    """The prompt for experiment `number`.

    `files`: the editable files at the incumbent. `history`: finished experiments, oldest first. `facts`: what else
    is known now, printed as `name: value`; `noise` is special: the smallest difference of the metric that means
    anything. `history_tokens`: the most that the lines of the history may take. `suggestion`: what the person wants to
    be tried now.
    """
    values = _values(number, program, files, history, facts, history_tokens) | {"suggestion": suggestion}
    return Request(
        number=number,
        system=templates.render("system.j2", values),
        turns=(Turn(role="user", text=templates.render("propose.j2", values)),),
        program=program,
        files=dict(files),
        history=tuple(history),
        suggestion=suggestion,
    )


def repair(request: Request, reply_text: str, error: str, attempt: int, templates: Templates) -> Request:
    """Send an unusable reply back with the reason; `attempt` counts from 1, the third asks for the whole file."""
    return _answered(request, reply_text, "repair.j2", templates, {"error": error, "whole": attempt >= 3})


def slip(request: Request, reply_text: str, traceback: str, templates: Templates) -> Request:
    """Send back a change that crashed within seconds, with its traceback."""
    return _answered(request, reply_text, "slip.j2", templates, {"traceback": traceback})


def shorter(request: Request, facts: Mapping[str, object], templates: Templates) -> Request | None:
    """The request with less to read, for a model whose context it did not fit; None where nothing is left to drop.

    The oldest repair turns go first, one pair at a time, then the lines of the history (its sums by category stay).
    """
    first, *others = request.turns
    if len(others) > 2:
        return request.model_copy(update={"turns": (first, *others[2:])})
    brief = first_request(
        request.number, request.program, request.files, request.history, facts, templates, history_tokens=0,
        suggestion=request.suggestion,
    )  # fmt: skip
    if len(brief.turns[0].text) >= len(first.text):
        return None
    return request.model_copy(update={"turns": (*brief.turns, *others)})


def estimate_tokens(text: str) -> int:
    """Tokens of a text beforehand, by `tokens_counted_by`; no provider's own count, so about right."""
    encoding = _encoding() if len(text) <= 1_000_000 else None
    if encoding is None:
        return int(len(text) / CHARACTERS_PER_TOKEN) + 1
    return len(encoding.encode(text, disallowed_special=()))


def tokens_counted_by() -> str:
    """How `estimate_tokens` counts on this machine."""
    return f"tiktoken {ENCODING}" if _encoding() else f"characters / {CHARACTERS_PER_TOKEN}"


def _values(
    number: int,
    program: Program,
    files: Mapping[str, str],
    history: Sequence[Experiment],
    facts: Mapping[str, object],
    history_tokens: int,
) -> dict[str, Any]:
    """What the templates system.j2 and propose.j2 may use."""
    done = [e for e in history if e.verdict]
    kept = [i for i, e in enumerate(done) if e.verdict and e.verdict.kept]
    incumbent = done[kept[-1]] if kept else None
    baseline = next((e for e in done if e.number == 0), None)
    since = done[kept[-1] + 1 :] if kept else done
    older_failed, older_kept, newer = _table(done, history_tokens)
    return {
        "number": number,
        "program": program,
        "files": {path: text.replace("\r\n", "\n") for path, text in files.items()},
        "noise": facts.get("noise"),
        "facts": {name: value for name, value in facts.items() if name != "noise" and value is not None},
        "categories": CATEGORIES,
        "baseline": baseline,
        "incumbent": incumbent,
        "numbers": _numbers(incumbent, baseline) if incumbent else {},
        "previous": done[-1] if done and done[-1].number > 0 else None,
        "older_failed": older_failed,
        "older_kept": older_kept,
        "newer": newer,
        "plateau": len(since) if len(since) >= PLATEAU else 0,
        "since": Counter(e.proposal.category for e in since if e.proposal).most_common(),
        "untried": sorted(set(CATEGORIES) - {e.proposal.category for e in since if e.proposal} - {"other"}),
    }


def _answered(
    request: Request, reply_text: str, template: str, templates: Templates, values: Mapping[str, Any]
) -> Request:
    said = reply_text if len(reply_text) <= REPLY_CHARACTERS else reply_text[:REPLY_CHARACTERS] + "\n[... cut off]"
    text = templates.render(template, {"program": request.program, **values})
    turns = (Turn(role="assistant", text=said.strip()), Turn(role="user", text=text))
    return request.model_copy(update={"turns": request.turns + turns})


def _table(done: Sequence[Experiment], room: int) -> tuple[list[str], list[str], list[str]]:
    """The history in about `room` tokens, as lines: older experiments by category, older ones that were kept, and all
    newer ones, oldest first.

    A line is never changed while it stands, so that what a provider has cached of the prompt before holds. Where there
    is no room for one more, so many of the oldest give way that half of it is free: that happens rarely.
    """
    tried = [e for e in done if e.number > 0]
    if not room:
        return _by_category(tried), [], []
    lines, costs = zip(*map(_line_and_cost, tried), strict=True) if tried else ((), ())
    first, newer, older = 0, 0, SUMS
    for end, cost in enumerate(costs, 1):
        newer += cost
        if newer + min(older, room // 4) <= room:  # however many were kept
            continue
        while first < end and newer > room / 2:
            newer -= costs[first]
            older += costs[first] if _kept(tried[first]) else 0
            first += 1
    return *_older(tried[:first]), list(lines[first:])


def _kept(e: Experiment) -> bool:
    return e.verdict is not None and e.verdict.kept


def _older(experiments: Sequence[Experiment]) -> tuple[list[str], list[str]]:
    """What is left of them: sums by category, and a short line for each that was kept."""
    kept = [e for e in experiments if _kept(e)]
    groups = _by_category([e for e in experiments if not _kept(e)])
    if len(kept) > MANY_KEPT:
        return groups, [", ".join(f"#{e.number} {e.verdict.effect or 0:+.2g}" for e in kept if e.verdict)]
    return groups, [_line(e, 80) for e in kept]


def _by_category(experiments: Sequence[Experiment]) -> list[str]:
    groups: dict[str, list[Experiment]] = {}
    for e in experiments:
        groups.setdefault(_category(e), []).append(e)
    return [_group(category, group) for category, group in sorted(groups.items())]


LINES: dict[int, tuple[Experiment, str, int]] = {}
"""By number, with the tokens of each, so that a prompt of a long night writes only the newest line."""


def _line_and_cost(e: Experiment) -> tuple[str, int]:
    known = LINES.get(e.number)
    if known is None or known[0] is not e:
        line = _line(e)
        known = LINES[e.number] = e, line, estimate_tokens(line) + 1
    return known[1:]


def _line(e: Experiment, limit: int = 160) -> str:
    """One experiment in one line: number, verdict, metric, effect, category, hypothesis; where it was worse by what is
    told by these, without its reason."""
    assert e.verdict is not None
    metric = "" if e.verdict.metric is None else f", {e.verdict.metric:.6g}"
    effect = "" if e.verdict.effect is None else f" (effect {e.verdict.effect:+.2g})"
    why = "" if e.verdict.effect is not None else f" -- {short(e.verdict.reason, 120)}"
    return f"#{e.number} {e.verdict.kind}{metric}{effect} [{_category(e)}] {short(e.label, limit)}{why}"


short = lru_cache(maxsize=512)(one_line)
"""As one_line; every prompt has the lines of what was kept, and the categories."""


def _category(experiment: Experiment) -> str:
    return short(experiment.proposal.category, 30) if experiment.proposal else "unusable"


def _group(category: str, experiments: Sequence[Experiment]) -> str:
    kinds = Counter(e.verdict.kind for e in experiments if e.verdict)
    effects = [e.verdict.effect for e in experiments if e.verdict and e.verdict.effect is not None]
    best = f"; best effect {max(effects):+.2g}" if effects else ""
    return f"{category}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) + best


def _numbers(incumbent: Experiment, baseline: Experiment | None) -> dict[str, float]:
    """What the incumbent's last measurement printed besides the metric, under names that the evaluation, or the
    unchanged program, printed too: a name is text as well. Held-out test figures never."""
    last = incumbent.measurements[-1] if incumbent.measurements else None
    hidden = set(incumbent.test_numbers or {})
    known = {name for m in (baseline.measurements if baseline else ()) for name in m.numbers}
    known |= set(last.evaluated or ()) if last else set()
    numbers = {k: v for k, v in (last.numbers if last else {}).items() if k in known and k not in hidden}
    return {k: numbers[k] for k in [k for k in numbers if "test" not in k.lower().split("_")][:16]}


@lru_cache(maxsize=1)
def _encoding() -> tiktoken.Encoding | None:
    """tiktoken's encoding if its file is cached here; asked without it, tiktoken would go to the network and wait."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = os.path.join(tempfile.gettempdir(), "data-gym-cache") if folder is None else folder
    try:
        data = (Path(folder) / hashlib.sha1(ENCODING_URL.encode()).hexdigest()).read_bytes()
    except OSError:
        return None
    return tiktoken.get_encoding(ENCODING) if hashlib.sha256(data).hexdigest() == ENCODING_SHA256 else None
