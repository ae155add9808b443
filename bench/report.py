"""How large the page of a long night is, and how soon a browser shows it.

    python -m bench.report

Nights of 100 and 1,000 experiments with prompts of about 18 kB are written as the loop journals them, and reported.
Chromium opens each page five times, every time in a new profile without a cache: from the call of the page until the
chart and the table are drawn (median), and from a click on the last experiment until its curves are. Needs playwright
and Chromium. The last line is one JSON object, of the longest night; exit code 1 where it has 6 MB or more, takes 2 s
or more to open, or the click takes a second or more.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from long_night import long_night  # noqa: E402  # pyright: ignore[reportMissingImports]

from agent.observers.report import data  # noqa: E402
from agent.observers.report.page import library, page  # noqa: E402
from agent.observers.report.read import told_of  # noqa: E402

SIZES = (100, 1000)
TIMES = 5
MOST_BYTES, MOST_OPEN_MS, MOST_CLICK_MS = 6_000_000, 2000, 1000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def measured(browser: Any, folder: Path, experiments: int) -> dict[str, int]:
    home = long_night(folder / str(experiments), experiments)
    script = library(folder)  # takes seconds once on a machine, and is kept
    began = time.monotonic()
    told = told_of(home)
    assert told is not None
    written = page(*data.payload(told), script).encode()
    took = time.monotonic() - began
    (file := folder / f"{experiments}.html").write_bytes(written)
    opened, clicked = [], []
    for _ in range(TIMES):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        window = context.new_page()
        began = time.monotonic()
        window.goto(file.as_uri())
        window.wait_for_selector("html[data-ready]")
        opened.append(time.monotonic() - began)
        assert window.locator("#chart g.mark-symbol path").count() == experiments + 1
        last = window.locator("#rows tbody tr").last
        last.scroll_into_view_if_needed()
        began = time.monotonic()
        last.click()
        window.wait_for_selector("#curves svg")
        clicked.append(time.monotonic() - began)
        context.close()
    return {
        "experiments": experiments, "bytes": len(written), "write_ms": round(1000 * took),
        "open_ms": round(1000 * statistics.median(opened)), "click_ms": round(1000 * statistics.median(clicked)),
    }  # fmt: skip


def main() -> int:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        print("error: no Chromium here: apt-get install chromium", file=sys.stderr)
        return 2
    try:
        from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("error: playwright is not installed: pip install playwright", file=sys.stderr)
        return 2
    last: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="report-") as folder, sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root may not have one
        for experiments in SIZES:
            last = measured(browser, Path(folder), experiments)
            if experiments == SIZES[0]:
                print("".join(f"{name:>13}" for name in last))
            print("".join(f"{value:>13,}" for value in last.values()), flush=True)
        browser.close()
    print(json.dumps(last))
    good = last["bytes"] < MOST_BYTES and last["open_ms"] < MOST_OPEN_MS and last["click_ms"] < MOST_CLICK_MS
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
