"""Numbers in what programs print, however odd: read or passed over, never an error and never a long wait."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.numeric import number
from agent.program import Metric
from agent.run.progress import Progress, find_metric

LOSS = Metric(name="val_loss")
ODD = ["width: 1_", "step 1 loss 2_", "step 1 loss 3.0 | 1_%", "n: 1__2_e5", "a: 1_.5", "step 2 loss 1e5_", "x = ._1",
       "b: 1e", "c: -_", "step 3 loss inf_", "step ٣ loss 1", "d: 1" + "0" * 4000, "e: 1e999999"]  # fmt: skip


@pytest.mark.parametrize("line", ODD)
def test_a_number_that_is_none_ends_nothing(line: str) -> None:
    progress = Progress(10)
    progress.feed(line)
    progress.feed("step 7 loss 1.5 | 50%")
    progress.feed("good: 1_000.5")
    assert progress.numbers["good"] == 1000.5 and progress.curve[-1][1] == 1.5


def test_numbers() -> None:
    assert [number(text) for text in ("1.5", " 2 ", "1_000", "1,000", "-3e2", "1_")] == [1.5, 2, 1000, 1000, -300, 1]
    assert [number(value) for value in (True, None, [], {}, "", "x", "_", 10**400, b"1")] == [None] * 9
    assert (number(3), number("inf")) == (3.0, float("inf"))


@given(st.text(st.sampled_from("0123456789_.eE+-: =%,|[]()steplossvalnainf \t\r\x0b'\"")))
@settings(deadline=None, max_examples=400)
def test_any_line_is_read(line: str) -> None:
    progress = Progress(10)
    progress.feed(line)
    try:
        find_metric(LOSS, line)
    except ValueError as error:
        assert "val_loss" in str(error)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "line",
    ["step" + " " * 4000 + "x", "step 1 " + "a" * 4000, "1" * 4000 + "x", "x: " + "1" * 4000 + "y",
     "loss" + "1_" * 2000, "step 1 loss" + " " * 4000 + "x", "a.b-" * 1000 + ":"],
)  # fmt: skip
def test_a_long_line_takes_no_longer_than_it_is_long(line: str) -> None:
    progress = Progress(10)
    for _ in range(300):
        progress.feed(line)


@pytest.mark.timeout(30)
def test_the_metric_is_found_at_once_in_a_log_of_blank_lines() -> None:
    blank = "\n" * 200_000
    assert find_metric(LOSS, f"val_loss: 1.5{blank}") == 1.5
    with pytest.raises(ValueError, match="no val_loss in the output"):
        find_metric(LOSS, blank)
    assert find_metric(LOSS, "VAL_loss  =  2.5\n") == 2.5
    assert find_metric(Metric(name="loss", pattern=r"\s+([0-9.]+)"), f"end 1.5{blank}x") == 1.5
    assert find_metric(Metric(name="top 1 acc@5"), "top 1 acc@5: 0.25\nx") == 0.25


def test_the_metric_is_on_a_line_of_its_own_and_the_last_one_counts() -> None:
    loss = Metric(name="loss")
    assert find_metric(loss, "loss: 3.5\nmy loss: 1\n  LOSS = 2e-1\nlosses: 4") == 0.2
    with pytest.raises(ValueError, match="loss is nan"):
        find_metric(loss, "loss: 3.5\nloss: nan")
    with pytest.raises(ValueError, match="no measurement is so large"):
        find_metric(loss, "loss: -1e200")


@pytest.mark.timeout(60)
def test_a_pattern_of_the_person_that_would_take_for_ever_is_told() -> None:
    with pytest.raises(ValueError, match="takes too long on the output: write a simpler one"):
        find_metric(Metric(name="acc", pattern=r"acc((?:a|a)*)b"), "acc" + "a" * 5000)
    assert find_metric(Metric(name="acc", pattern=r"^acc=([0-9.]+)$"), "acc=1\nacc=0.5\nend") == 0.5
