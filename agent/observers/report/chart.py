"""The charts, in the Vega-Lite language: the page draws them in the browser, and `picture` without one.

A verdict has a colour and a shape of its own, from the palette of Okabe and Ito, which colour-blind people can tell
apart too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Json = dict[str, Any]
VERSION = "v6"
"""Of Vega-Lite; older minor versions are chosen by vl-convert."""
HEIGHT, STRIP = 340, 30  # pixels of the chart, and of these those at its foot, where experiments without a number are
HUGE = 1e100  # a metric beyond it is drawn at the edge, whatever became of it
CLOSER = 0.5  # of the whole range: a closer look is offered where it shows less than this
SHOWN = 0.85  # of the experiments that were not kept lie within the range of the chart; the rest at its edge


class Look(NamedTuple):
    shape: str
    """Of Vega."""
    glyph: str
    """The same in a line of text."""
    light: str
    dark: str


LOOKS = {
    "baseline": Look("square", "■", "#1f2328", "#f0f3f6"),
    "keep": Look("circle", "●", "#00805e", "#2ec27e"),
    "simplification": Look("diamond", "◆", "#0072b2", "#56b4e9"),
    "discard": Look("circle", "○", "#8c959f", "#8b949e"),
    "crash": Look("cross", "✚", "#c44e00", "#ff8a4c"),
    "timeout": Look("triangle-up", "▲", "#b07d00", "#f0c000"),
    "invalid": Look("triangle-down", "▼", "#a8447c", "#e08ab8"),
    "duplicate": Look("triangle-left", "◀", "#5b6fb5", "#9aa8e8"),
    "violation": Look("triangle-right", "▶", "#8a2be2", "#c58cff"),
    "other": Look("stroke", "–", "#8c959f", "#8b949e"),
}
THEMES = {
    "light": {"text": "#59636e", "strong": "#1f2328", "grid": "#e9ecef", "band": "#00805e", "ground": "#ffffff"},
    "dark": {"text": "#9198a1", "strong": "#f0f3f6", "grid": "#262c36", "band": "#2ec27e", "ground": "#0d1117"},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def views(overview: Json) -> Json:
    """What the chart of the night can show: all of it, and the latter half closer where the beginning dwarfs it."""
    spans = {"all": domain(overview)}
    close = domain(overview, since=max((r["n"] for r in overview["rows"]), default=0) / 2)
    if close[1] - close[0] < CLOSER * (spans["all"][1] - spans["all"][0]):
        spans["close"] = close
    return {
        name: {"points": points(overview, span), **{theme: night(overview, theme, span) for theme in THEMES}}
        for name, span in spans.items()
    }


def specs(overview: Json, theme: str) -> Json:
    """The charts of one experiment; their data sets are named, and are put in by whoever draws them."""
    return {"curves": curves(overview, theme), "seeds": seeds(overview, theme)}


def points(overview: Json, span: tuple[float, float]) -> list[Json]:
    """The rows that can be drawn, each with what the chart reads. `y` is None where nothing was measured."""
    low, high = span
    found = []
    for r in overview["rows"]:
        if r["kind"] == "open":
            continue
        look = r["kind"] if r["kind"] in LOOKS else "other"
        value = r["metric"]
        point = {"n": r["n"], "look": look, "kept": r["kept"], "y": None, "beyond": False}
        if value is not None:
            y = min(max(value, low), high)
            ends = [min(max(end, low), high) for end in (r["low"], r["high"]) if end is not None and y == value]
            point |= {"y": y, "beyond": y != value, **dict(zip(("from", "to"), ends, strict=False))}
        found.append(point)
    return found


def domain(overview: Json, since: float = 0.0) -> tuple[float, float]:
    """The range of the metric that is shown: all that was the incumbent since that experiment, most of the rest."""
    steps = overview["stairs"]
    measured = [r for r in overview["rows"] if r["metric"] is not None and r["n"] >= since]
    ends = [value for r in measured if r["kept"] for value in (r["metric"], r["low"], r["high"])]
    for step, following in zip(steps, steps[1:], strict=False):
        if following["n"] > since:
            ends += [step["low"], step["high"]]
    rest = sorted(r["metric"] for r in measured if not r["kept"])
    if rest:
        at = int(SHOWN * (len(rest) - 1))
        ends += [rest[0], rest[at]] if overview["metric"]["minimize"] else [rest[len(rest) - 1 - at], rest[-1]]
    ends = [end for end in ends if end is not None and abs(end) < HUGE]
    if not ends:
        return (0.0, 1.0)
    low, high = min(ends), max(ends)
    target = overview["metric"]["target"]
    if target is not None and abs(target - low) < 2 * (high - low):
        low, high = min(low, target), max(high, target)
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - room, high + room


def night(overview: Json, theme: str, span: tuple[float, float]) -> Json:
    """Every experiment: a point with its interval; the kept ones as stairs, with the noise of one trial around them."""
    colors, metric = THEMES[theme], overview["metric"]
    low, high = span
    kinds = list(LOOKS)
    last = max((r["n"] for r in overview["rows"]), default=1)
    x = {
        "field": "n", "type": "quantitative", "title": "experiment",
        "scale": {"domain": [-0.5 - last / 80, last + 0.5 + last / 80], "nice": False, "zero": False},
        "axis": {"grid": False, "tickMinStep": 1, "format": "d"},
    }  # fmt: skip
    scale = {"domain": [low, high], "range": [HEIGHT - STRIP, 6], "nice": False, "zero": False}
    title = f"{metric['name']} ({'lower' if metric['minimize'] else 'higher'} is better)"
    y = {"type": "quantitative", "scale": scale, "title": title, "axis": {"tickCount": 6}}
    color = {
        "field": "look", "type": "nominal", "legend": None,
        "scale": {"domain": kinds, "range": [getattr(LOOKS[k], theme) for k in kinds]},
    }  # fmt: skip
    shape = {
        "field": "look", "type": "nominal", "legend": None,
        "scale": {"domain": kinds, "range": [LOOKS[k].shape for k in kinds]},
    }  # fmt: skip
    size = {"condition": {"test": "datum.kept", "value": 75}, "value": 38 if last < 300 else 22}
    hollow = {"condition": {"test": "datum.look == 'discard'", "value": 0}, "value": 1}
    mark = {"type": "point", "filled": False, "strokeWidth": 1.4, "opacity": 1, "aria": False}
    point = {"color": color, "fill": color, "shape": shape, "size": size, "fillOpacity": hollow}
    stairs = {"data": {"name": "stairs"}}
    top = {"data": {"name": "points"}, "transform": [{"filter": "datum.y !== null"}]}
    foot = {"data": {"name": "points"}, "transform": [{"filter": "datum.y === null"}]}
    step = "step-after"
    layers: list[Json] = [
        stairs | {
            "mark": {"type": "area", "interpolate": step, "color": colors["band"], "opacity": 0.1, "clip": True},
            "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}},
        },
        top | {
            "mark": {"type": "rule", "strokeWidth": 1.2, "aria": False, "opacity": 0.4 if last < 300 else 0.2},
            "encoding": {"x": x, "y": y | {"field": "from"}, "y2": {"field": "to"}, "color": color},
        },
        stairs | {
            "mark": {"type": "line", "interpolate": step, "color": colors["band"], "strokeWidth": 2, "clip": True},
            "encoding": {"x": x, "y": y | {"field": "value"}},
        },
        foot | {
            "mark": mark,
            "encoding": {"x": x, "y": {"value": HEIGHT - STRIP / 2 + 3}, **point},
        },
        top | {"mark": mark, "encoding": {"x": x, "y": y | {"field": "y"}, **point}},
        {
            "data": {"name": "chosen"},
            "mark": {"type": "point", "size": 260, "strokeWidth": 2, "color": colors["strong"]},
            "encoding": {"x": x, "y": y | {"field": "y"}},
        },
    ]  # fmt: skip
    if metric["target"] is not None and low <= metric["target"] <= high:
        rule = {"type": "rule", "strokeDash": [4, 4], "color": colors["text"]}
        aim = {"data": {"values": [{"v": metric["target"]}]}, "mark": rule, "encoding": {"y": y | {"field": "v"}}}
        layers.append(aim)
    return framed(theme, HEIGHT) | {"layer": layers}


def curves(overview: Json, theme: str) -> Json:
    """The training loss of one experiment's trials over that of the incumbent's."""
    color = {
        "field": "who", "type": "nominal", "legend": {"orient": "top", "title": None, "symbolType": "stroke"},
        "scale": {"domain": ["this experiment", "its incumbent"], "range": pair(theme)},
    }  # fmt: skip
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": "share of the budget",
              "axis": {"format": "%", "grid": False, "tickCount": 6}, "scale": {"nice": False}},
        "y": {"field": "y", "type": "quantitative", "title": "training loss", "scale": {"zero": False}},
        "color": color,
        "detail": {"field": "trial", "type": "nominal"},
    }  # fmt: skip
    mark = {"type": "line", "strokeWidth": 1.5, "opacity": 0.85, "clip": True}
    return framed(theme, 220) | {"data": {"name": "curves"}, "mark": mark, "encoding": encoding}


def seeds(overview: Json, theme: str) -> Json:
    """The metric of each trial, beside the incumbent's."""
    encoding = {
        "x": {"field": "metric", "type": "quantitative", "title": overview["metric"]["name"], "scale": {"zero": False},
              "axis": {"tickCount": 5}},
        "y": {"field": "who", "type": "nominal", "title": None, "sort": ["this experiment", "its incumbent"],
              "scale": {"domain": ["this experiment", "its incumbent"]}, "axis": {"domain": False, "ticks": False}},
        "color": {"field": "who", "type": "nominal", "legend": None,
                  "scale": {"domain": ["this experiment", "its incumbent"], "range": pair(theme)}},
    }  # fmt: skip
    mark = {"type": "point", "filled": True, "size": 70, "opacity": 0.75}
    return framed(theme, 64) | {"data": {"name": "seeds"}, "mark": mark, "encoding": encoding}


def pair(theme: str) -> list[str]:
    return [getattr(LOOKS["simplification"], theme), getattr(LOOKS["discard"], theme)]


def framed(theme: str, height: int) -> Json:
    """What all charts have in common."""
    colors = THEMES[theme]
    axis = {
        "labelColor": colors["text"], "titleColor": colors["text"], "gridColor": colors["grid"], "titleFontWeight": 500,
        "domainColor": colors["grid"], "tickColor": colors["grid"], "labelFontSize": 11, "titleFontSize": 11,
        "titlePadding": 8, "labelFlush": False,
    }  # fmt: skip
    legend = {"labelColor": colors["text"], "labelFontSize": 12, "padding": 0, "offset": 8}
    config = {"font": FONT, "axis": axis, "view": {"stroke": None}, "legend": legend, "background": "transparent"}
    size = {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    return {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", **size, "config": config}


def picture(overview: Json, theme: str = "light", width: int = 900) -> bytes:
    """The chart of the night as PNG, for a chat."""
    import vl_convert  # 30 MB, and only reports need it

    facts, metric = overview["facts"], overview["metric"]["name"]
    told = f"{facts['kept']} of {facts['tried']} kept"
    if facts["gain"] is not None and facts["interval"]:
        low, high = facts["interval"]
        told = f"gain {facts['gain']:.4g}, 95% interval {low:.4g} .. {high:.4g}; {told}"
    colors = THEMES[theme]
    title = {"text": f"{overview['tag']}: {metric}", "subtitle": told, "anchor": "start", "color": colors["strong"],
             "subtitleColor": colors["text"], "offset": 14, "fontSize": 16, "subtitleFontSize": 12}  # fmt: skip
    span = domain(overview)
    sets = {"points": points(overview, span), "stairs": overview["stairs"], "chosen": []}
    spec = night(overview, theme, span) | {"width": width, "title": title, "datasets": sets, "padding": 16}
    spec["config"]["background"] = colors["ground"]
    return vl_convert.vegalite_to_png(spec, scale=2, allowed_base_urls=[])


