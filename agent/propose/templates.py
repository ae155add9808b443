"""The prompts' texts: Jinja2 templates, a person's own before the packaged ones, file by file.

A template of the person that can't be rendered is reported once, and the packaged one used in its place: a slip in a
prompt costs no night. What code under test or a model has written (logs, tracebacks, reasons) is data in a template:
the filters `clean`, `fence` and `one_line` remove control characters, bound it, and keep it within its fence.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

AGENT = Path(__file__).parents[1]
# In a wheel the folder prompts/ lies inside the package, in the repository beside it.
PROMPTS = next(folder for folder in (AGENT / "prompts", AGENT.parent / "prompts") if folder.is_dir())
LOG_CHARACTERS = 4_000  # of a log or traceback, its end
log = logging.getLogger(__name__)


class Templates:
    """`folder` holds the person's own templates, if it is there; `report` gets one line for each that is broken."""

    def __init__(self, folder: Path | None = None, report: Callable[[str], None] = log.warning):
        self._folder, self._report = folder, report
        self._packaged = environment(PROMPTS)
        self._own = environment(folder, PROMPTS) if folder else None
        self._reported: set[str] = set()

    def render(self, name: str, values: Mapping[str, object]) -> str:
        """The text of a template, like `propose.j2`. Raises Jinja2's errors for a packaged one only: that is a bug."""
        if self._own and self._folder and (self._folder / name).exists():
            try:
                return self._own.get_template(name).render(values)
            except Exception as error:  # a template is the person's program: it may raise anything
                self._tell(f"{_explained(name, error)}; the packaged template is used until it is corrected")
        return self._packaged.get_template(name).render(values)

    def _tell(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._report(text)


def environment(*folders: Path) -> jinja2.Environment:
    """Templates come from the first folder that has them, and are read again when a file changes."""
    env = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folders), undefined=jinja2.StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    env.filters.update(clean=printable, fence=fence, one_line=one_line)
    return env


def printable(text: str, limit: int = LOG_CHARACTERS) -> str:
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
    words = " ".join(printable(str(text), 4 * limit).split())
    return words if len(words) <= limit else words[: limit - 3] + "..."


def _explained(name: str, error: Exception) -> str:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"prompts/{error.name or name}, line {error.lineno}: {one_line(error.message)}"
    return f"prompts/{name} can't be rendered: {one_line(error) or type(error).__name__}"
