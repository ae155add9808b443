"""The page of a night: one HTML file that needs nothing else, and asks for nothing from anywhere.

What it may do is stated in it (Content-Security-Policy): run the two scripts and use the style that stand in it,
known by their hashes, and nothing more. What models and programs wrote comes as packed data, which scripts read.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from agent.observers.report import chart
from agent.observers.report.texts import pack

Json = dict[str, Any]


def page(overview: Json, details: Json, library: str) -> str:
    """The whole file. `library`: the drawing library, from `library`."""
    files = resources.files("agent.observers.report")
    template, style, script = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        tag=overview["tag"],
        metric=overview["metric"]["name"],
        policy=policy(style, library, script),
        style=Markup(style),
        library=Markup(library),
        script=Markup(script),
        overview=pack(drawable(overview)),
        details=pack(details),
    )


def drawable(overview: Json) -> Json:
    """The overview with what the charts need."""
    return {
        **overview,
        "views": chart.views(overview),
        "specs": {theme: chart.specs(overview, theme) for theme in chart.THEMES},
        "looks": {kind: look._asdict() for kind, look in chart.LOOKS.items()},
        "strip": chart.STRIP,
    }


def policy(style: str, *scripts: str) -> str:
    allowed = " ".join(source(script) for script in scripts)
    rules = ("default-src 'none'", f"script-src {allowed}", f"style-src {source(style)}", "img-src data:",
             "base-uri 'none'", "form-action 'none'")  # fmt: skip
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


def replace_file(path: Path, content: bytes) -> None:
    """Aside, then renamed: nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    os.replace(aside, path)
