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

RECENT = 15  # experiments told in detail
HISTORY_TOKENS = 6_000  # for the whole history, newest first
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
    since = done[kept[-1] + 1 :] if kept else done
    detailed, older_kept, older_failed = _split(done, history_tokens)
    return {
        "number": number,
        "program": program,
        "files": {path: text.replace("\r\n", "\n") for path, text in files.items()},
        "noise": facts.get("noise"),
        "facts": {name: value for name, value in facts.items() if name != "noise" and value is not None},
        "categories": CATEGORIES,
        "baseline": next((e for e in done if e.number == 0), None),
        "incumbent": incumbent,
        "numbers": _numbers(incumbent) if incumbent else {},
        "previous": done[-1] if done and done[-1].number > 0 else None,
        "detailed": detailed,
        "older_kept": older_kept,
        "older_failed": older_failed,
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


def _split(done: Sequence[Experiment], room: int) -> tuple[list[str], list[str], list[str]]:
    """The history in at most `room` tokens, as lines, oldest first: recent experiments in detail, older kept ones,
    older failed ones by category."""
    detailed: list[str] = []
    kept: list[str] = []
    failed: dict[str, list[Experiment]] = {}
    for experiment in reversed([e for e in done if e.number > 0]):
        recent = len(detailed) < RECENT and not kept and not failed
        line = _line(experiment, detail=recent)
        cost = estimate_tokens(line) + 1
        if recent and cost <= room:
            detailed.append(line)
        elif experiment.verdict and experiment.verdict.kept and cost <= room:
            kept.append(line)
        else:
            failed.setdefault(_category(experiment), []).append(experiment)
            continue
        room -= cost
    groups = [_group(category, group) for category, group in sorted(failed.items())]
    return detailed[::-1], kept[::-1], groups


def _line(e: Experiment, detail: bool) -> str:
    """One experiment in one line: number, verdict, category, hypothesis; in detail also numbers and the reason."""
    assert e.verdict is not None
    metric = "" if e.verdict.metric is None else f", {e.verdict.metric:.6g}"
    effect = "" if e.verdict.effect is None else f" (effect {e.verdict.effect:+.2g})"
    line = f"#{e.number} {e.verdict.kind}{metric}{effect} [{_category(e)}] "
    return line + one_line(e.label, 300 if detail else 120) + (f" -- {one_line(e.verdict.reason)}" if detail else "")


def _category(experiment: Experiment) -> str:
    return one_line(experiment.proposal.category, 30) if experiment.proposal else "unusable"


def _group(category: str, experiments: Sequence[Experiment]) -> str:
    kinds = Counter(e.verdict.kind for e in experiments if e.verdict)
    effects = [e.verdict.effect for e in experiments if e.verdict and e.verdict.effect is not None]
    best = f"; best effect {max(effects):+.2g}" if effects else ""
    return f"{category}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) + best


def _numbers(experiment: Experiment) -> dict[str, float]:
    """What the incumbent's last measurement printed besides the metric; held-out test figures never."""
    last = experiment.measurements[-1] if experiment.measurements else None
    hidden = set(experiment.test_numbers or {})
    numbers = last.numbers if last else {}
    shown = [k for k in numbers if k not in hidden and "test" not in k.lower().split("_")]
    return {k: numbers[k] for k in shown[:16]}


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
