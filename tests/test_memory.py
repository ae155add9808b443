"""What a night holds in memory of each experiment, over thousands of them."""

from __future__ import annotations

import gc
import tracemalloc

from test_ledger import begun
from test_policy import after, measured, proposed, train

from agent import events as ev
from agent.night import Night
from agent.observers.follow import without_details
from agent.records import Measurement, Verdict


def long_night(experiments: int) -> Night:
    """As an observer holds it."""
    night = begun()
    for number in range(1, experiments + 1):
        first, *rest = proposed(number, number - 1)
        ran = [first.model_copy(update={"parent": "c"}), *rest, train(number), measured(number, 0)]
        verdict = Verdict(kind="discard", reason=f"{number} worse than the incumbent", metric=2.0 + number)
        end = [ev.Judged(experiment=number, verdict=verdict), ev.Published(experiment=number, commit="")]
        night = without_details(after(night, *ran, *end), number)
    return night


def test_what_is_long_decided_is_held_once_for_all_observers():
    one, other = long_night(3), long_night(3)
    assert [one.experiments[n] is other.experiments[n] for n in range(4)] == [False, True, True, True]
    told = one.experiments[2]
    assert told.verdict and told.verdict.kind == "discard" and told.state == "published" and not told.kept


def test_a_record_that_is_held_takes_less_memory_than_one_that_was_read_and_is_equal_to_it():
    text = '{"outcome": "ok", "metric": 1.0, "startup_seconds": 1.0}'

    def size(make) -> int:
        make()
        gc.collect()
        tracemalloc.start()
        held = [make() for _ in range(500)]
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return used // len(held)

    read = Measurement.model_validate_json(text)
    copied = read.model_copy(update={"curve": ((0.5, 1.0),)})
    assert copied.model_copy(update={"curve": ()}) == read and copied.curve == ((0.5, 1.0),)
    assert Measurement.model_validate_json(copied.model_dump_json()) == copied
    assert size(read.model_copy) < 0.6 * size(lambda: Measurement.model_validate_json(text))
