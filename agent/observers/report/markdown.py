"""The night as text for a pull request: the summary, and the kept commits. What a model wrote stays text there too."""

from __future__ import annotations

import html
import re
from typing import Any

from agent.lab_note import dollars, duration, number

Json = dict[str, Any]
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~-])")


def markdown(overview: Json) -> str:
    facts, name = overview["facts"], overview["metric"]["name"]
    lines = [f"## {plain(overview['tag'])}: {plain(name)}", ""]
    if facts["kept"]:
        lines += [f"**{number(facts['baseline'])} → {number(facts['best'])}**{certainty(facts)}.", ""]
    lines += [f"- {line}" for line in summary(overview)]
    if facts["kept"]:
        lines += ["", f"| commit | # | {plain(name)} | effect | interval | hypothesis |"]
        lines += ["| --- | ---: | ---: | ---: | --- | --- |"]
        lines += [kept_row(row) for row in overview["rows"] if row["kept"] and row["n"]]
    return "\n".join(lines) + "\n"


def certainty(facts: Json) -> str:
    if facts["gain"] is None or not facts["interval"]:
        return ""
    low, high = facts["interval"]
    return f", a gain of {number(facts['gain'])} (95% interval {number(low)} .. {number(high)})"


def summary(overview: Json) -> list[str]:
    facts = overview["facts"]
    lines = [f"kept {facts['kept']} of {facts['tried']} experiments, {facts['trials']} trials"]
    if facts["hours"] is not None:
        lines[0] += f" in {duration(facts['hours'] * 3600)}"
    for test in facts["test"]:
        before = "" if test["first"] == test["last"] else f"{number(test['before'])} → "
        lines.append(f"held-out {plain(test['name'])}: {before}{number(test['after'])} (#{test['last']})")
    if facts["spent"]:
        lines.append(f"cost {dollars(facts['spent'])}")
    if overview["ended"]:
        lines.append(f"ended: {plain(overview['ended'])}")
    for entry in overview["look"]:
        number_of = f"#{entry['n']} " if "n" in entry else ""
        lines.append(f"**look**: {number_of}{plain(entry['text'])}")
    return lines


def kept_row(row: Json) -> str:
    ends = " .. ".join(number(end) for end in row["interval"]) if row["interval"] else ""
    interval = f"{ends} ({row['level']})" if ends else ""
    mark = " (look)" if row["review"] else ""
    figures = [number(row["metric"]), number(row["effect"]), interval]
    cells = [row["commit"], f"{row['n']}{mark}", *figures, plain(row["label"])]
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """One line without meaning in Markdown or HTML, and without mentions of people."""
    escaped = html.escape(SPECIAL.sub(r"\\\1", " ".join(text.split())), quote=False)
    return escaped.replace("@", "@\u200b").replace("://", ":\u200b//")
