"""What comes from a proposer is made text that everything behind can hold; what goes there has no empty message."""

import json

from hypothesis import given
from hypothesis import strategies as st

from agent.propose.reply import reply_text
from agent.records import Reply

REPLY = "Hypothesis: a lower rate helps\nCategory: optimizer\n"


@given(st.text(st.characters() | st.sampled_from("\0\ud800\udc00\udfff<think>/\n")))
def test_any_reply_can_be_recorded(raw: str) -> None:
    text = reply_text(raw)
    reply = Reply(text=text, proposer="x")
    assert Reply.model_validate_json(reply.model_dump_json()) == reply
    assert json.loads(json.dumps(text)) == text and text.encode() and "\0" not in text or not text
    assert reply_text(text) == text or "</think" in text


def test_halves_of_a_character_are_joined_and_damage_is_marked() -> None:
    assert reply_text("a\ud83d\ude00b") == "a😀b"
    assert reply_text("a\ud83db\0c") == "a\ufffdb\ufffdc"


def test_thoughts_before_the_reply_are_left_out() -> None:
    draft = "Hypothesis: draft\ntrain.py\n<<<<<<< SEARCH\nA\n=======\nB\n>>>>>>> REPLACE\n"
    for thoughts in (f"<think>\n{draft}</think>\n", f"so\n{draft}</think>\n", f"\n<thinking>{draft}</thinking>  \n"):
        assert reply_text(thoughts + REPLY) == REPLY
    quoted = REPLY + "train.py\n<<<<<<< SEARCH\nEND = 1\n=======\nEND = '''\n</think>\n'''\n>>>>>>> REPLACE\n"
    assert reply_text(quoted) == quoted
    assert reply_text("<think>nothing else</think>") == ""
