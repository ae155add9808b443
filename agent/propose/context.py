"""What a proposer is told: the contract, the state, the history of experiments and the files, as a prompt.

The texts are Jinja2 templates in prompts/; a folder prompts/ in the person's repository takes their place, file by
file. What code under test or a model has written (logs, tracebacks, reasons) is data: control characters removed,
bounded, and fenced so that it can't end its fence.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import tiktoken
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent.errors import ProgramError
from agent.program import Program
from agent.propose.edits import CATEGORIES
from agent.protocols import Request
from agent.records import Experiment, Turn

PROMPTS = Path(__file__).parents[2] / "prompts"
RECENT = 15  # experiments told in detail
HISTORY_TOKENS = 6_000  # for the whole history, newest first
LOG_CHARACTERS = 4_000  # of a log or traceback, its end
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
    prompts: Path | None = None,
) -> Request:
    """The prompt for experiment `number`.

    `files`: the editable files at the incumbent. `history`: finished experiments, oldest first. `facts`: what else
    is known now, printed as `name: value`; `noise` is special: the smallest difference of the metric that means
    anything. `prompts`: a folder whose templates take the place of the packaged ones. Raises ProgramError where a
    template can't be rendered.
    """
    done = [e for e in history if e.verdict]
    kept = [i for i, e in enumerate(done) if e.verdict and e.verdict.kept]
    incumbent = done[kept[-1]] if kept else None
    since = done[kept[-1] + 1 :] if kept else done
    detailed, older_kept, older_failed = _split(done)
    values: dict[str, Any] = {
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
    system = _render("system.j2", prompts, values)
    user = Turn(role="user", text=_render("propose.j2", prompts, values))
    return Request(
        number=number, system=system, turns=(user,), program=program, files=dict(files), history=tuple(history)
    )


def repair(request: Request, reply_text: str, error: str, attempt: int, prompts: Path | None = None) -> Request:
    """Send an unusable reply back with the reason; `attempt` counts from 1, the third asks for the whole file."""
    return _answered(request, reply_text, "repair.j2", prompts, {"error": error, "whole": attempt >= 3})


def slip(request: Request, reply_text: str, traceback: str, prompts: Path | None = None) -> Request:
    """Send back a change that crashed within seconds, with its traceback."""
    return _answered(request, reply_text, "slip.j2", prompts, {"traceback": traceback})


def estimate_tokens(text: str) -> int:
    """Tokens of a text beforehand, by `tokens_counted_by`; no provider's own count, so about right."""
    encoding = _encoding() if len(text) <= 1_000_000 else None
    if encoding is None:
        return int(len(text) / CHARACTERS_PER_TOKEN) + 1
    return len(encoding.encode(text, disallowed_special=()))


def tokens_counted_by() -> str:
    """How `estimate_tokens` counts on this machine."""
    return f"tiktoken {ENCODING}" if _encoding() else f"characters / {CHARACTERS_PER_TOKEN}"


def clean(text: str, limit: int = LOG_CHARACTERS) -> str:
    """Text without control, direction and other invisible characters; the last `limit` characters of it."""
    text = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])", "", text[-8 * limit :])
    text = re.sub(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]", "\n", text)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return text if len(text) <= limit else f"[... {len(text) - limit:,} characters left out]\n" + text[-limit:]


def fence(text: str, language: str = "") -> str:
    """The text in a Markdown fence longer than any run of backticks in it: it can't end its own fence."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.rstrip(chr(10))}\n{ticks}"


def one_line(text: object, limit: int = 300) -> str:
    """Somebody else's words in one line of a list."""
    words = " ".join(clean(str(text), 4 * limit).split())
    return words if len(words) <= limit else words[: limit - 3] + "..."


def _answered(request: Request, reply: str, template: str, prompts: Path | None, values: dict[str, Any]) -> Request:
    said = reply if len(reply) <= REPLY_CHARACTERS else reply[:REPLY_CHARACTERS] + "\n[... cut off]"
    text = _render(template, prompts, {"program": request.program, **values})
    turns = (Turn(role="assistant", text=said.strip() or "(empty reply)"), Turn(role="user", text=text))
    return request.model_copy(update={"turns": request.turns + turns})


def _split(done: Sequence[Experiment]) -> tuple[list[str], list[str], list[str]]:
    """The history as lines, oldest first: recent ones in detail, older kept ones, older failed ones by category."""
    room = HISTORY_TOKENS
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


def _render(name: str, prompts: Path | None, values: dict[str, Any]) -> str:
    folders = [folder for folder in (prompts, PROMPTS) if folder is not None]
    env = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folders), undefined=jinja2.StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    env.filters.update(clean=clean, fence=fence, one_line=one_line)
    try:
        return env.get_template(name).render(values)
    except jinja2.TemplateSyntaxError as error:
        raise ProgramError(f"prompts/{error.name or name}, line {error.lineno}: {error.message}") from None
    except Exception as error:  # a template is the person's program: whatever it raises is theirs to mend
        raise ProgramError(f"prompts/{name} can't be rendered: {error}") from None


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
