"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table


class Columns(Table):
    """Columns without a frame. No line ends in blanks: they would be copied too, and wrapped where a terminal is made
    narrower."""

    def __init__(self, **further: Any):
        super().__init__(box=None, header_style="bold", pad_edge=False, **further)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:  # type: ignore[override]
        for line in Segment.split_lines(super().__rich_console__(console, options)):  # type: ignore[arg-type]
            while line and not line[-1].text.strip(" "):
                line.pop()
            if line:
                line[-1] = Segment(line[-1].text.rstrip(" "), line[-1].style)
            yield from (*line, Segment.line())
