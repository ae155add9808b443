"""The report of a night: what it says, how large it is, and the page in a real browser that is offline."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_repository
from long_night import HOSTILE, Writer, long_night

from agent import events as ev
from agent.observers.report import chart, data
from agent.observers.report.markdown import markdown
from agent.observers.report.page import library, page
from agent.observers.report.read import told_of
from agent.observers.report.texts import Texts, pack, text_of, unpack
from agent.observers.report.times import Times

Payload = tuple[dict[str, Any], dict[str, Any]]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def built(home: Path) -> Payload:
    told = told_of(home)
    assert told is not None
    return data.payload(told)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_night(tmp_path_factory.mktemp("report") / "night", 40)


@pytest.fixture(scope="module")
def payload(home: Path) -> Payload:
    return built(home)


def test_texts_come_back_as_they_were():
    texts, told = Texts(), ["a\nb\nc\n", "b\nc\na\n", "", "\n\n", "one line", "\u2028 \r\n\ttab\x00", "a\nb\nc\nd"]
    numbers = [texts.add(text) for text in told]
    packed = unpack(pack(texts.packed()))
    assert [text_of(packed, n) if n is not None else "" for n in numbers] == told
    assert texts.add("one line") == numbers[4]


def test_half_a_character_in_a_reply_does_not_stop_the_report():
    assert unpack(pack({"reply": "half \ud83d"})) == {"reply": "half ?"}


def test_what_is_shown_of_a_night(payload: Payload, home: Path):
    overview, details = payload
    told = told_of(home)
    assert told is not None
    kept = [e for e in told.done if e.verdict and e.verdict.kept and e.number]
    facts = overview["facts"]
    assert (facts["kept"], facts["tried"]) == (len(kept), 40) and kept
    assert facts["best_number"] == kept[-1].number
    assert facts["interval"][0] < facts["gain"] < facts["interval"][1]
    assert facts["spent"] == pytest.approx(40 * 0.031)
    assert facts["per_gain"] == pytest.approx(40 * 0.031 / len(kept))
    assert facts["test"][0]["name"] == "test_val_bpb" and facts["test"][0]["last"] == kept[-1].number
    assert sum(group["tried"] for group in overview["categories"]) == 40
    assert sum(group["kept"] for group in overview["categories"]) == len(kept)
    crashes = sum(1 for e in told.done if e.verdict and e.verdict.kind == "crash")
    assert sum(len(group["numbers"]) for group in overview["failures"]) == crashes > 0
    assert overview["ended"] == "40 experiments are done"
    assert overview["rows"][0]["kind"] == "baseline" and len(overview["rows"]) == 41
    assert overview["stairs"][0]["n"] == 0 and overview["stairs"][-1]["value"] == facts["best"]
    first = details["experiments"]["1"]
    diff = text_of(details["texts"], first["diff"])
    assert re.search(r"^-CONSTANT_(\d+) = \1$", diff, re.M) and re.search(r"^\+CONSTANT_\d+ = \d{4}$", diff, re.M)
    assert "You are a researcher" not in text_of(details["texts"], first["calls"][0]["question"])
    assert "CONSTANT_399 = " in text_of(details["texts"], first["calls"][0]["question"])
    assert first["trials"][0]["curve"][-1][0] == 1.0


def test_a_change_is_compared_with_the_commit_that_it_stands_on(payload: Payload):
    """After several keeps a change is still one line, and not all that was kept before it."""
    overview, details = payload
    last = overview["rows"][-1]
    assert last["base"] == overview["facts"]["best_number"] or last["kept"]
    lines = text_of(details["texts"], details["experiments"]["40"]["diff"]).splitlines()
    assert sum(line.startswith("+") for line in lines) == 2  # the header, and the changed line


def test_an_interval_stands_around_the_metric_on_the_side_where_it_belongs(home: Path):
    overview, _ = built(home)
    row = next(row for row in overview["rows"] if row["interval"])
    low, high = row["interval"]
    assert row["low"] == pytest.approx(row["metric"] - (high - row["effect"]))  # better is lower
    assert row["high"] == pytest.approx(row["metric"] + (row["effect"] - low))


def test_a_held_out_figure_that_got_worse_is_among_what_needs_a_look(home: Path):
    told = told_of(home)
    assert told is not None
    last = told.kept[-1].number
    assert not any("held out" in entry["text"] for entry in data.look(told))
    worse = [e.model_copy(update={"test_numbers": {"test_val_bpb": 2.0}}) if e.number == last else e
             for e in told.experiments]  # fmt: skip
    found = [entry for entry in data.look(replace(told, experiments=worse)) if "held out" in entry["text"]]
    assert [entry["n"] for entry in found] == [last]


def test_a_metric_that_exploded_does_not_flatten_the_chart(payload: Payload):
    rows = [{**row, "metric": 1e305} if row["n"] in (5, 6) else row for row in payload[0]["rows"]]
    low, high = chart.domain({**payload[0], "rows": rows})
    assert 0.5 < low < high < 1.5
    assert chart.picture({**payload[0], "rows": [{**row, "metric": 1e305} for row in rows], "stairs": []})


def unmeasured(home: Path) -> Path:
    """A night that was ended while its first trial ran."""
    writer = Writer(home)
    writer.start()
    writer.add(ev.TrialBegun(experiment=0, number=0, attempt=1, commit="base", seed=0, slot=0))
    writer.add(ev.Requested(id="1", what="stop"), 5.0)
    writer.add(ev.Ended(reason="a person asked for an end", code=3))
    writer.ledger.close()
    return home


def test_a_night_in_which_nothing_was_measured_has_a_report_too(tmp_path: Path):
    overview, details = built(unmeasured(tmp_path / "night"))
    assert overview["facts"]["baseline"] is None and overview["ended"] == "a person asked for an end"
    assert chart.picture(overview).startswith(b"\x89PNG")
    assert "a person asked for an end" in markdown(overview)
    assert page(overview, details, "")


def test_use_of_time_is_what_the_journal_says():
    """Two processes; a call while the slot is empty is waiting, and the pause between them does not count."""
    began = {"experiment": 1, "number": 0, "attempt": 1, "commit": "c", "seed": 1, "slot": 0}
    asked = {"experiment": 1, "call": 0, "kind": "first", "parent": "p", "system": "", "question": ""}
    rules = ev.Rules(metric="m", minimize=True, target=None, seeds=1, tests=False, trial_seconds=1)
    start = {"program": "", "rules": rules, "stoppers": {}, "device": "cpu", "sandbox": "none", "proposer": "p"}
    times = Times.of([
        ev.Started(at=100, **start),
        ev.Asked(at=100, **asked, reserved_usd=None),
        ev.CallFailed(at=130, experiment=1, call=0, reason="busy"),
        ev.TrialBegun(at=140, **began),
        ev.Started(at=500, **start),  # killed in the trial; the last that is known of it is its beginning
        ev.TrialBegun(at=500, **began),
        ev.MachineFault(at=560, experiment=1, number=0, attempt=1, reason="the GPU fell off the bus"),
        ev.Paused(at=565, reason="the provider has an outage"),
        ev.Asked(at=600, **asked, reserved_usd=None),
        ev.Resumed(at=605),
        ev.CallFailed(at=605, experiment=1, call=0, reason="busy"),
        ev.Ended(at=605, reason="stopped", code=3),
        ev.Started(at=900, **start),
    ])  # fmt: skip
    assert (times.alive, times.busy, times.waiting, times.paused) == (145, 60, 30, 40)
    assert times.faults == [(1, "the GPU fell off the bus")]
    shares = times.shares(startup=10, training=40, evaluation=5)
    waits = {"waiting for a model": 30, "paused": 40, "idle": 15}
    assert shares == {"training": 40, "startup": 15, "evaluation": 5, **waits}


def test_prompts_of_20_kb_take_a_tenth_of_that_in_the_page(tmp_path: Path):
    """Most of their lines are shared, and are written once."""
    overview, details = built(long_night(tmp_path / "night", 200))
    entries = [entry for n, entry in details["experiments"].items() if n != "0"]
    prompts = sum(len(text_of(details["texts"], entry["calls"][0]["question"])) for entry in entries)
    assert prompts > 200 * 15_000
    assert len(page(overview, details, "")) < 200 * 3_000  # 6 MB at 1,000, with all else that is told of each


def test_nothing_that_a_model_wrote_is_markup_in_the_file(payload: Payload):
    overview = {**payload[0], "tag": HOSTILE}
    written = page(overview, payload[1], "'library';")
    assert "<script>document" not in written and "onerror=\"" not in written
    assert "&lt;script&gt;document" in written  # the tag, in the title
    assert written.count("<script") == written.count("</script>") == 4
    stated = html.unescape(re.findall(r'Policy" content="([^"]*)"', written)[0])
    assert stated.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in stated


def test_markdown_for_a_pull_request_is_text_without_markup_or_mentions(payload: Payload):
    overview = json.loads(json.dumps(payload[0]))
    kept = [row for row in overview["rows"] if row["kept"] and row["n"]]
    kept[0]["label"] = "| <b>bold</b> @someone [x](http://evil) `code` **loud**"
    said = markdown(overview)
    assert len(re.findall(r"^\| c\d+ \|", said, re.M)) == len(kept)
    assert "<b>" not in said and "@someone" not in said and "](http" not in said and "://evil" not in said
    row = next(line for line in said.splitlines() if "someone" in line)
    assert len(re.split(r"(?<!\\)\|", row)) == 8  # six cells
    assert "95% interval" in said and "held-out" in said


def test_the_picture_is_made_without_a_browser(payload: Payload):
    image = chart.picture(payload[0])
    assert image.startswith(b"\x89PNG") and len(image) > 20_000


def agent(*arguments: str) -> str:
    ran = subprocess.run([sys.executable, "-m", "agent", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_command_writes_page_picture_and_text(tmp_path: Path):
    project = make_repository(tmp_path / "project", {"train.py": "", "program.md": "x"})
    night = long_night(project / ".research" / "monday", 5)
    said = agent("report", "--repo", str(project))
    assert "baseline" in said and str(night / "report.html") in said.replace("\n", "")
    written = (night / "report.html").read_text()
    assert "DecompressionStream" in written and "vegaEmbed" in written
    picture = tmp_path / "deep" / "chart.png"
    said = agent("report", "--repo", str(project), "--markdown", "--png", str(picture))
    assert said.startswith("## monday: val") and picture.read_bytes().startswith(b"\x89PNG")


# In a browser.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # root may not have one
        yield started
        started.close()


class Opened:
    """The page of a night in a window, and all that it complained of or asked for."""

    def __init__(self, browser: Any, file: Path, width: int, height: int, dark: bool = False):
        size, scheme = {"width": width, "height": height}, "dark" if dark else "light"
        self.context = browser.new_context(viewport=size, has_touch=width < 500, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.url = file.as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("html[data-ready]")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def place(self, n: int) -> tuple[float, float]:
        """Where the experiment's point is drawn, found in the picture itself."""
        index = self.page.locator("#rows tbody tr").count() - 1
        marks = self.page.locator("#chart g.mark-symbol path")
        boxes = [marks.nth(i).bounding_box() for i in range(marks.count())]
        xs = sorted({round(box["x"] + box["width"] / 2, 1) for box in boxes})
        at = xs[0] + (xs[-1] - xs[0]) * n / index
        box = min(boxes, key=lambda box: abs(box["x"] + box["width"] / 2 - at))
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def close(self) -> None:
        assert self.complaints == []
        assert self.requests == [self.url]
        self.context.close()


@pytest.fixture(scope="module")
def file(home: Path, payload: Payload, bundle: str) -> Path:
    written = home / "report.html"
    written.write_text(page(*payload, bundle), encoding="utf-8")
    return written


@pytest.mark.slow
def test_the_page_in_a_browser(browser: Any, file: Path, payload: Payload):
    overview, details = payload
    opened = Opened(browser, file, 1280, 900)
    window = opened.page
    assert window.locator("#chart g.mark-symbol path").count() == 41
    assert "Confirmed gain" in opened.text("#headline") and "per confirmed gain" in opened.text("#facts")
    assert "waiting for a model" in opened.text("#times")

    window.locator("#chart").scroll_into_view_if_needed()
    window.mouse.move(*opened.place(7))
    assert "#7" in opened.text("#hint") and "<script>document.title" in opened.text("#hint")  # as text
    window.mouse.click(*opened.place(7))
    window.wait_for_selector("#details:not([hidden])")
    assert "onerror=" in opened.text("#shown h2") and overview["tag"] in window.title()
    assert window.locator("#shown img, #shown script, #hint img, #rows img").count() == 0

    row = next(r for r in overview["rows"] if r["kind"] == "discard" and r["n"] > 5)
    window.keyboard.press("Escape")
    assert window.locator("#details").is_hidden()
    window.locator(f"#rows tr[data-n='{row['n']}']").click()
    window.wait_for_selector("#curves svg")
    assert window.locator("#shown .plus").count() == 1 and window.locator("#shown .minus").count() == 1
    assert window.locator("#curves g.mark-line path").count() >= 2  # its own curve and the incumbent's
    assert window.locator("#seeds g.mark-symbol path").count() >= 2
    assert window.locator("#details .scroll tbody tr").count() >= 2  # each seed, with the incumbent's
    for title, content in (("Log", "step 1200 loss"), ("Prompt", "CONSTANT_399 = "), ("Reply", "Hypothesis:")):
        folded = window.locator("#shown details", has=window.locator("summary", has_text=title))
        folded.locator("summary").click()
        assert content in folded.locator("pre").inner_text()
    window.keyboard.press("ArrowRight")
    window.wait_for_function(f"location.hash === '#{row['n'] + 1}'")
    window.locator("#close").click()
    opened.close()


@pytest.mark.slow
def test_filters_narrow_the_table_and_the_chart(browser: Any, file: Path, payload: Payload):
    rows = payload[0]["rows"]
    opened = Opened(browser, file, 1280, 900)
    window = opened.page

    def shows(count: int) -> None:
        window.wait_for_function(
            "count => [...document.querySelectorAll('#rows tbody tr')].filter(row => !row.hidden).length === count"
            " && document.querySelectorAll('#chart g.mark-symbol path').length === count", arg=count)

    window.locator("[data-kind=discard]").click()
    shows(sum(r["kind"] != "discard" for r in rows))
    window.locator("[data-kind=discard]").click()
    window.locator("#category").select_option("optimizer")
    shows(sum(r["category"] == "optimizer" for r in rows))
    window.locator("#category").select_option("")
    window.locator("#search").fill("Idea 13.")
    shows(1)
    assert "1 of 41" in opened.text("#filters")
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_on_a_phone(browser: Any, file: Path, dark: bool):
    opened = Opened(browser, file, 390, 844, dark)
    window = opened.page
    assert window.evaluate("document.documentElement.scrollWidth") <= 390
    window.locator("#chart").scroll_into_view_if_needed()
    window.touchscreen.tap(*opened.place(20))
    window.wait_for_selector("#curves svg")
    assert window.locator("#details").bounding_box()["width"] == 390
    assert window.evaluate("document.querySelector('#details').scrollWidth") <= 390
    opened.close()


@pytest.mark.slow
def test_a_night_in_which_nothing_was_measured_opens(browser: Any, bundle: str, tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text(page(*built(unmeasured(tmp_path / "night")), bundle), encoding="utf-8")
    opened = Opened(browser, file, 1280, 900)
    assert "not measured" in opened.text("#headline") and "asked for an end" in opened.text("#setup")
    opened.close()


@pytest.mark.slow
def test_1000_experiments_open_and_scroll(browser: Any, bundle: str, tmp_path: Path):
    home = long_night(tmp_path / "night", 1000)
    file = tmp_path / "page.html"
    file.write_text(page(*built(home), bundle), encoding="utf-8")
    assert file.stat().st_size < 6_000_000
    opened = Opened(browser, file, 1280, 900)
    window = opened.page
    assert window.locator("#chart g.mark-symbol path").count() == 1001
    last = window.locator("#rows tbody tr").last
    last.scroll_into_view_if_needed()
    last.click()
    window.wait_for_selector("#curves svg")
    assert "#1000" in opened.text("#shown .eyebrow")
    opened.close()
