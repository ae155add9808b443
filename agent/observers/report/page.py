"""The page of a night: one HTML file that needs nothing else, and asks for nothing from anywhere.

What it may do is stated in it (Content-Security-Policy): run the two scripts and use the style that stand in it,
known by their hashes, and nothing more. What models and programs wrote comes as packed data, which scripts read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from agent.files import replace_file
from agent.observers.report import chart
from agent.observers.report.texts import pack

Json = dict[str, Any]


PARTS = ("page.js", "experiment.js")
"""Of the script, which every page has; what it shows comes from the last part."""
ARCHIVED, LIVE = "archived.js", "live.js"


def page(overview: Json, details: Json, library: str) -> str:
    """The whole file. `library`: the drawing library, from `library`."""
    data = {"overview": pack(drawable(overview)), "details": pack(details)}
    return rendered(overview["tag"], overview["metric"]["name"], library, ARCHIVED, **data)


def live_page(tag: str, metric: str, library: str) -> str:
    """The same page, which asks the server that it comes from for what it shows, and nobody else."""
    return rendered(tag, metric, library, LIVE)


def rendered(tag: str, metric: str, library: str, source: str, **data: str) -> str:
    script = "\n".join(text_of(part) for part in (*PARTS, source))
    style = text_of("page.css")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(text_of("page.html")).render(
        tag=tag,
        metric=metric,
        policy=policy(style, library, script, connect="'self'" if source == LIVE else "'none'"),
        style=Markup(style),
        library=Markup(library),
        script=Markup(script),
        live=source == LIVE,
        **data,
    )


def text_of(part: str) -> str:
    return resources.files("agent.observers.report").joinpath(part).read_text("utf-8")


def drawable(overview: Json) -> Json:
    """The overview with what the charts need."""
    return {
        **overview,
        "views": chart.views(overview),
        "specs": {theme: chart.specs(overview, theme) for theme in chart.THEMES},
        "looks": {kind: look._asdict() for kind, look in chart.LOOKS.items()},
        "strip": chart.STRIP,
    }


def policy(style: str, *scripts: str, connect: str) -> str:
    allowed = " ".join(source(script) for script in scripts)
    rules = ("default-src 'none'", f"script-src {allowed}", f"style-src {source(style)}", "img-src data:",
             f"connect-src {connect}", "base-uri 'none'", "form-action 'none'")  # fmt: skip
    return "; ".join(rules)


def source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def library(cache: Path) -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. It takes seconds to put together, so it is kept in `cache`."""
    path = cache / f"vega-{metadata.version('vl-convert-python')}.js"
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    import vl_convert  # 30 MB, and only reports need it

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    with contextlib.suppress(OSError):  # a reader of someone else's night
        replace_file(path, text.encode())
    return text
