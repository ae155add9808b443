"""What is left on disk of experiments that are long over: the last lines of their logs."""

from __future__ import annotations

from pathlib import Path

from test_ledger import begun
from test_policy import after, measured, proposed, train

from agent import events as ev
from agent.actions import reverted
from agent.records import Verdict
from agent.run.log import SHORT, shorten


def test_a_log_that_is_trimmed_keeps_its_last_lines_and_says_what_is_missing(tmp_path: Path):
    log, short = tmp_path / "1-0.log", tmp_path / "2-0.log"
    lines = [f"step {n} loss 1.0\n" for n in range(5000)]
    log.write_text("".join(lines))
    short.write_text("few words\n")
    for _ in range(2):  # the second time changes nothing
        shorten(log)
        shorten(short)
        shorten(tmp_path / "gone.log")
        first, *kept = log.read_text().splitlines(keepends=True)
        assert first.startswith("[... ") and kept == lines[-len(kept) :] and len(kept) > 100
    assert log.stat().st_size < 2 * SHORT and short.read_text() == "few words\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-0.log", "2-0.log"]


def test_only_experiments_that_are_over_and_were_not_kept_are_trimmed():
    night = begun()
    for number, kind in ((1, "discard"), (2, "keep")):
        ran = [*proposed(number, number - 1), train(number), measured(number, 0)]
        verdict = Verdict(kind=kind, reason="r", metric=1.0)  # type: ignore[arg-type]
        first = ran[0].model_copy(update={"parent": "c"})
        end = [ev.Judged(experiment=number, verdict=verdict), ev.Published(experiment=number, commit=f"k{number}")]
        night = after(night, first, *ran[1:], *end)
    night = after(night, *proposed(3, 2))
    assert [reverted(night, number) for number in (-5, 0, 1, 2, 3, 4)] == [[], [], [0], [], [], []]
