"""A night as rows of plain values: one for each experiment, or one for each trial; as JSON lines, or as Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from agent.errors import Failure
from agent.program import Program
from agent.records import Experiment, Trial

Row = dict[str, Any]
PARQUET = "--parquet needs pyarrow: pip install 'overnight[parquet]', or pip install pyarrow"
EXPERIMENT: dict[str, str] = {
    "night": "text", "experiment": "int", "created": "time", "verdict": "text", "kept": "bool", "review": "bool",
    "metric": "text", "value": "float", "effect": "float", "interval_low": "float", "interval_high": "float",
    "level": "text", "trials": "int", "hypothesis": "text", "category": "text", "reason": "text", "commit": "text",
    "parent": "text", "proposer": "text", "calls": "int", "input_tokens": "int", "output_tokens": "int", "usd": "float",
    "model_seconds": "float", "startup_seconds": "float", "training_seconds": "float", "evaluation_seconds": "float",
    "peak_memory_gb": "float", "test": "numbers",
}  # fmt: skip
"""Column -> kind of its values; each may be missing. An effect is better where it is positive."""
TRIAL: dict[str, str] = {
    "night": "text", "experiment": "int", "trial": "int", "commit": "text", "seed": "int", "superseded": "bool",
    "outcome": "text", "reason": "text", "metric": "text", "value": "float", "startup_seconds": "float",
    "training_seconds": "float", "evaluation_seconds": "float", "peak_memory_gb": "float", "numbers": "numbers",
    "curve": "curve",
}  # fmt: skip


def experiment_rows(tag: str, program: Program, experiments: Iterable[Experiment]) -> list[Row]:
    """Those under way too: their verdict is missing."""
    return [experiment_row(tag, program, e) for e in experiments]


def experiment_row(tag: str, program: Program, e: Experiment) -> Row:
    verdict, replies, measured = e.verdict, [c.reply for c in e.calls if c.reply], e.measurements
    low, high = verdict.interval if verdict and verdict.interval else (None, None)
    memory = [m.peak_memory_gb for m in measured if m.peak_memory_gb is not None]
    values = (
        tag, e.number, e.created, verdict.kind if verdict else None, bool(verdict and verdict.kept),
        bool(verdict and verdict.review), program.metric.name, finite(verdict.metric if verdict else None),
        finite(verdict.effect if verdict else None), finite(low), finite(high),
        verdict.level if verdict and verdict.interval else None, e.counted,
        e.label if verdict or e.proposal or e.number == 0 else None,
        e.proposal.category if e.proposal else None, verdict.reason if verdict else None, e.commit, e.parent,
        e.proposer or None, len(e.calls), sum(r.input_tokens for r in replies), sum(r.output_tokens for r in replies),
        e.usd, sum(r.seconds for r in replies), sum(m.startup_seconds for m in measured),
        sum(m.training_seconds for m in measured), sum(m.evaluation_seconds for m in measured),
        max(memory, default=None), numbers(e.test_numbers or {}),
    )  # fmt: skip
    return dict(zip(EXPERIMENT, values, strict=True))


def trial_rows(tag: str, program: Program, experiments: Iterable[Experiment]) -> list[Row]:
    """Every trial that has ended."""
    return [trial_row(tag, program, t) for e in experiments for t in e.trials if t.measurement]


def trial_row(tag: str, program: Program, t: Trial) -> Row:
    m = t.measurement
    assert m is not None
    curve = [(share, loss) for share, loss in m.curve if math.isfinite(share) and math.isfinite(loss)]
    values = (
        tag, t.experiment, t.number, t.commit, t.seed, t.superseded, m.outcome, m.reason, program.metric.name,
        finite(m.metric), m.startup_seconds, m.training_seconds, m.evaluation_seconds, m.peak_memory_gb,
        numbers(m.numbers), curve,
    )  # fmt: skip
    return dict(zip(TRIAL, values, strict=True))


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def numbers(found: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if math.isfinite(value)}


def moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")


def json_line(row: Row, columns: Mapping[str, str]) -> str:
    """One row as JSON; times are in UTC, in the form of ISO 8601."""
    shown = {name: moment(value) if columns[name] == "time" else value for name, value in row.items()}
    return json.dumps(clean(shown), ensure_ascii=False, allow_nan=False)


def clean(value: Any) -> Any:
    """The same with valid Unicode only: a half of a surrogate pair can't be written into a file."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {clean(key): clean(inner) for key, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def json_lines(rows: Iterable[Row], columns: Mapping[str, str]) -> bytes:
    return "".join(f"{json_line(row, columns)}\n" for row in rows).encode()


def parquet(rows: Iterable[Row], columns: Mapping[str, str]) -> bytes:
    """Raises Failure where pyarrow is missing."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise Failure(PARQUET) from None
    kinds = {
        "text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(),
        "time": pa.timestamp("us", "UTC"), "numbers": pa.map_(pa.string(), pa.float64()),
        "curve": pa.list_(pa.struct([("share", pa.float64()), ("loss", pa.float64())])),
    }  # fmt: skip
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    ready = [{name: arrow(columns[name], clean(value)) for name, value in row.items()} for row in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ready, schema), sink)
    return sink.getvalue().to_pybytes()


def arrow(kind: str, value: Any) -> Any:
    match kind:
        case "time":
            return datetime.fromtimestamp(value, UTC)
        case "numbers":
            return list(value.items())
        case "curve":
            return [{"share": share, "loss": loss} for share, loss in value]
    return value
