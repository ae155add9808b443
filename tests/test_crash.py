"""A loop that is killed with SIGKILL, at named points and at random moments, loses and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_a_few_kills_leave_nothing_wrong():
    ran = subprocess.run([sys.executable, "-m", "bench.crash", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["kills"] >= 15
