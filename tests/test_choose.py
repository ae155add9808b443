"""Commands and replays as proposers, and which proposer is taken."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import pytest
from test_proposers import REPLY, TALK, no_keys, request  # noqa: F401

from agent.errors import Failure, ProposerError
from agent.propose.choose import banner, choose_proposer
from agent.propose.command import CommandProposer
from agent.propose.replay import ReplayProposer
from agent.records import Call, Experiment, Reply

# command


def python(code: str) -> str:
    return f"{sys.executable} -c {shlex.quote(code)}"


def test_a_command_reads_the_talk_and_prints_the_reply() -> None:
    shout = python("import sys; print(sys.stdin.read().upper())")
    reply = CommandProposer(shout).propose(request(*TALK))
    assert "YOU IMPROVE TRAIN.PY." in reply.text
    assert reply.text.index("LR = 2") < reply.text.index("THAT BLOCK MATCHES NOWHERE.")
    assert reply.input_tokens > 10 and reply.usd is None


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(ProposerError, match="exit code 3, last said: not logged in") as caught:
        fail = "import sys; print('hm\\nnot logged in', file=sys.stderr); sys.exit(3)"
        CommandProposer(python(fail)).propose(request())
    assert not caught.value.final
    with pytest.raises(ProposerError, match="printed nothing"):
        CommandProposer(python("pass")).propose(request())
    with pytest.raises(ProposerError, match="can't be started") as caught:
        CommandProposer("/no/such/program").propose(request())
    assert caught.value.final
    with pytest.raises(Failure, match="quote"):
        CommandProposer("claude 'oops")


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid)!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    with pytest.raises(ProposerError, match="no reply within"):
        CommandProposer(python(code), deadline=2.0).propose(request())
    child = Path("/proc") / pid.read_text()
    until = time.monotonic() + 10
    while child.exists() and (child / "stat").read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.01)
    assert not child.exists() or (child / "stat").read_text().split()[2] == "Z"


# replay


def test_replay_goes_on_where_the_history_ends(tmp_path: Path) -> None:
    for name in ("2.txt", "1.txt", "3.txt"):
        (tmp_path / name).write_text(f"reply {name}")
    replay = ReplayProposer(tmp_path)
    call = Call(turn=0, kind="first", question="?", reserved_usd=0.0, reply=Reply(text="x", proposer="replay"))
    unanswered = call.model_copy(update={"turn": 1, "reply": None})
    done = Experiment(number=1, state="published", parent="c", calls=(call, unanswered))
    assert replay.propose(request()).text == "reply 1.txt"
    assert replay.propose(request(*TALK)).text == "reply 2.txt"
    assert replay.propose(request(*TALK, history=(done,))).text == "reply 3.txt"
    with pytest.raises(ProposerError, match="exhausted after 3 replies") as caught:
        replay.propose(request(*TALK, history=(done, done)))
    assert caught.value.exhausted


def test_replay_of_one_file(tmp_path: Path) -> None:
    file = tmp_path / "night.txt"
    file.write_text("first\n\n--- reply ---\nsecond\n--- reply ---\n")
    replay = ReplayProposer(file)
    assert [text.strip() for text in replay.replies] == ["first", "second"]
    with pytest.raises(Failure, match="can't be read"):
        ReplayProposer(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="holds no replies"):
        ReplayProposer(tmp_path / "empty")


# choose


def test_auto_takes_what_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(REPLY)
    assert choose_proposer("auto").name == "search"
    assert "no API key found" in banner(choose_proposer("auto"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert choose_proposer("auto").name == "openai"
    assert "$2 and $10 per million" in banner(choose_proposer("auto"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    assert choose_proposer("auto").name == "anthropic"
    assert "claude-sonnet-5-5" in banner(choose_proposer("auto"))
    assert "price not known" in banner(choose_proposer("auto", model="claude-new"))
    local = choose_proposer("auto", base_url="http://127.0.0.1:9/v1", model="qwen")
    assert (local.name, local.model) == ("openai", "qwen") and "free" in banner(local)
    assert choose_proposer("auto", replay=tmp_path).name == "replay"
    assert choose_proposer("auto", command="claude -p", replay=tmp_path).name == "command"
    assert "ANTHROPIC_API_KEY is set but not used" in banner(choose_proposer("search"))


def test_an_address_is_checked() -> None:
    with pytest.raises(Failure, match="http://127.0.0.1"):
        choose_proposer("openai", base_url="localhost:11434")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("anthropic", "export ANTHROPIC_API_KEY"),
        ("openai", "export OPENAI_API_KEY"),
        ("command", "--command 'claude -p'"),
        ("replay", "--replay"),
        ("gpt", "choose one of auto"),
    ],
)
def test_a_proposer_that_lacks_what_it_needs_says_so(name: str, says: str) -> None:
    with pytest.raises(Failure, match=says):
        choose_proposer(name)
