"""The story of bench/gpu_night.py is about train.py as it is."""

import pytest

from agent.errors import Failure
from agent.propose.edits import apply_edits, parse_reply
from bench.gpu_night import beginning, story


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_reply_but_the_malformed_one_applies(device):
    kept, malformed = beginning(), []
    for verdict, _, replies in story(device):
        for reply in replies:
            try:
                changed = apply_edits(parse_reply(reply), {"train.py": kept}, ["train.py"])["train.py"]
            except Failure:
                malformed.append(reply)
                continue
            assert changed != kept
        if verdict == "keep":
            kept = changed
    assert [reply[:20] for reply in malformed] == ["I would change the M"]
