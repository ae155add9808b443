"""Whole nights in simulation: some minutes of them belong into `python -m bench.simulate`, one into the test suite."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from bench.mutations import MUTATIONS, caught
from bench.simulate import simulate

NIGHTS = 400


def test_no_promise_is_broken_in_any_night():
    ran = subprocess.run(
        [sys.executable, "-m", "bench.simulate", "--nights", str(NIGHTS), "--seed", "suite"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["nights"] == NIGHTS and found["violations"] == 0
    assert min(found["crashes"], found["kept"], found["rebased"]) > NIGHTS // 4, "the nights are no quiet ones"


@pytest.mark.parametrize("seed", ["third:152", "third:910", "third:2740"])
def test_what_a_person_accepts_without_a_trial_of_its_own_is_decided(seed: str):
    """It does not apply to the incumbent of that moment, and nobody proposed it just now: it is not asked for again."""
    assert simulate(seed).violation == ""


def test_a_stop_waits_no_longer_for_a_trial_than_that_can_take():
    """The trial is cancelled, and its worker is never heard of again."""
    assert simulate("closing:1371").violation == ""


def test_a_night_is_replayed_exactly_from_its_seed():
    assert simulate("suite:3") == simulate("suite:3")


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_promise_that_is_broken_on_purpose_is_noticed(name: str):
    assert caught(name, "0", 1500) is not None
