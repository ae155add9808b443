"""The API proposers through the real SDKs over real HTTP; command, replay and the choice between them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from genai_prices import Usage

from agent.errors import ProposerError
from agent.program import parse_program
from agent.propose.anthropic import AnthropicProposer
from agent.propose.context import shorter
from agent.propose.llm import Policy, UnusableReply, is_loopback, price, retry_after
from agent.propose.openai import OpenAIProposer
from agent.propose.templates import Templates
from agent.protocols import Request
from agent.records import Experiment, Turn
from tests.server import ModelServer, Step

PROGRAM = parse_program("---\nmetric: val_bpb\n---\nTry to make the loss of the small model as low as possible.")
QUICK = Policy(deadline=20.0, silence=5.0, first_wait=0.01, longest_wait=0.05, longest_retry_after=0.05)
REPLY = "Hypothesis: a larger rate learns faster in so few steps\nCategory: optimizer\n"


def request(*turns: Turn, number: int = 1, history: tuple[Experiment, ...] = ()) -> Request:
    return Request(
        number=number,
        system="You improve train.py.",
        turns=turns or (Turn(role="user", text="Propose one change."),),
        program=PROGRAM,
        files={"train.py": "LR = 1e-3\n"},
        history=history,
    )


TALK = (
    Turn(role="user", text="Propose one change."),
    Turn(role="assistant", text="LR = 2"),
    Turn(role="user", text="That block matches nowhere."),
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person's own keys and addresses stay out of the tests."""
    for name in os.environ:
        if name.startswith(("ANTHROPIC_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(params=["anthropic", "openai"])
def api(request: pytest.FixtureRequest) -> str:
    return request.param


def proposer(api: str, server: ModelServer, policy: Policy = QUICK) -> AnthropicProposer | OpenAIProposer:
    if api == "anthropic":
        return AnthropicProposer(base_url=server.url, policy=policy)
    return OpenAIProposer(base_url=server.url + "/v1", policy=policy)


def test_a_reply_comes_with_its_tokens_and_its_cost() -> None:
    step = Step(REPLY, input_tokens=1000, output_tokens=500, cache_read=400, cache_write=200)
    with ModelServer([step]) as server:
        reply = proposer("anthropic", server).propose(request())
    assert reply.text == REPLY
    assert (reply.proposer, reply.input_tokens, reply.output_tokens) == ("anthropic", 1600, 500)
    # Sonnet 5.5: $2 and $10 per million tokens in and out, 0.1 of a cache's reading, 2.5 of its writing.
    assert reply.usd == pytest.approx((1000 * 2 + 400 * 0.1 + 200 * 2.5 + 500 * 10) / 1e6)
    body = server.requests[0]["body"]
    assert body["system"][0]["text"] == "You improve train.py."
    assert body["stream"] is True and body["max_tokens"] == QUICK.max_output


def test_an_openai_reply_from_this_machine_is_free() -> None:
    with ModelServer([Step(REPLY, input_tokens=600, cache_read=400, output_tokens=500)]) as server:
        reply = proposer("openai", server).propose(request())
    assert (reply.text, reply.input_tokens, reply.output_tokens, reply.usd) == (REPLY, 1000, 500, 0.0)
    assert server.requests[0]["body"]["messages"][0] == {"role": "system", "content": "You improve train.py."}
    assert "max_tokens" not in server.requests[0]["body"]


def test_the_whole_talk_is_sent(api: str) -> None:
    with ModelServer([REPLY]) as server:
        proposer(api, server).propose(request(*TALK))
    roles = [message["role"] for message in server.requests[0]["body"]["messages"]]
    assert roles[-3:] == ["user", "assistant", "user"]
    assert server.prompts == ["That block matches nowhere."]


def test_a_reply_that_was_lost_leaves_no_empty_message(api: str) -> None:
    lost = (TALK[0], Turn(role="assistant", text=""), TALK[2])
    with ModelServer([REPLY]) as server:
        proposer(api, server).propose(request(*lost))
    assert all(message["content"].strip() for message in server.requests[0]["body"]["messages"])


def test_a_reply_without_usage_figures_is_estimated() -> None:
    with ModelServer([Step(REPLY, usage=False)]) as server:
        reply = proposer("openai", server).propose(request())
    assert reply.input_tokens > 5 and reply.output_tokens > 5


@pytest.mark.parametrize(
    "step",
    [
        Step(status=429, kind="rate_limit_error", headers={"retry-after": "0.02"}),
        Step(status=429, kind="rate_limit_error", headers={"retry-after": "3600"}),
        Step(status=500, kind="api_error"),
        Step(status=529, kind="overloaded_error"),
        Step(drop="before"),
        Step(REPLY, drop="middle"),
        Step(REPLY, drop="end"),
        Step(REPLY, late_error=True, kind="overloaded_error"),
    ],
    ids=["rate", "far-retry-after", "500", "529", "dropped", "broken", "incomplete", "overloaded-in-stream"],
)
def test_what_passes_is_asked_again(api: str, step: Step) -> None:
    with ModelServer([step, REPLY]) as server:
        reply = proposer(api, server).propose(request())
    assert reply.text == REPLY
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (Step(status=400), "--model"),
        (Step(status=401, kind="authentication_error"), "_API_KEY"),
        (Step(status=403, kind="permission_error"), "another --model or key"),
        (Step(status=404, kind="not_found_error", message="no model x"), "no model x: check --model"),
        (Step(status=429, kind="insufficient_quota"), "add credit"),
        (Step(status=402, kind="billing_error"), "add credit"),
        (Step(REPLY, late_error=True, kind="invalid_request_error"), "refused"),
    ],
    ids=["400", "401", "403", "404", "quota", "billing", "in-stream"],
)
def test_what_asking_again_can_not_help_is_final(api: str, step: Step, says: str) -> None:
    with ModelServer([step, REPLY]) as server, pytest.raises(ProposerError) as caught:
        proposer(api, server).propose(request())
    assert caught.value.final
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.requests) == 1 and not caught.value.too_long
    assert caught.value.status in (400, 401, 402, 403, 404)


@pytest.mark.parametrize(
    "step",
    [
        Step(status=413, kind="request_too_large"),
        Step(status=400, kind="invalid_request_error", message="prompt is too long: 210000 tokens > 200000 maximum"),
        Step(status=400, kind="context_length_exceeded", message="This model's maximum context length is 4096 tokens."),
        Step(status=400, message="the request exceeds the available context size (n_ctx 2048)"),
        Step(status=500, kind="api_error", message="input is too large to process"),
        Step(REPLY, late_error=True, message="requested tokens exceed context window of 2048"),
    ],
    ids=["413", "anthropic", "openai", "llama.cpp", "500", "in-stream"],
)
def test_a_request_too_long_for_the_model_is_told_apart_and_a_shorter_one_goes_through(api: str, step: Step) -> None:
    long = request(*TALK, Turn(role="assistant", text="again"), Turn(role="user", text="Still nowhere."))
    with ModelServer([step, REPLY]) as server:
        with pytest.raises(ProposerError, match="too long for the model") as caught:
            proposer(api, server).propose(long)
        assert caught.value.too_long and not caught.value.final and len(server.requests) == 1
        short = shorter(long, {}, Templates())
        assert short is not None and len(short.turns) == 3
        assert proposer(api, server).propose(short).text == REPLY


def test_how_long_a_server_asks_to_wait_is_told(api: str) -> None:
    policy = Policy(deadline=5.0, longest_retry_after=7200.0)
    busy = Step(status=429, kind="rate_limit_error", headers={"retry-after": "3600"})
    with ModelServer([busy]) as server, pytest.raises(ProposerError) as caught:
        proposer(api, server, policy).propose(request())
    assert (caught.value.retry_after, caught.value.status, caught.value.final) == (3600, 429, False)


@pytest.mark.parametrize(
    ("step", "says"),
    [(Step(REPLY, cut=True), "cut off at 200 tokens"), (Step(REPLY, refuse=True), "refused"), (Step(" \n"), "empty")],
    ids=["cut", "refused", "empty"],
)
def test_a_reply_that_must_not_be_applied_is_an_error_that_knows_its_cost(api: str, step: Step, says: str) -> None:
    with ModelServer([step]) as server, pytest.raises(UnusableReply, match=says) as caught:
        proposer(api, server).propose(request())
    assert not caught.value.final
    assert (caught.value.reply.input_tokens, caught.value.reply.output_tokens) == (1000, 200)
    assert caught.value.reply.usd == (0.0 if api == "openai" else pytest.approx((1000 * 2 + 200 * 10) / 1e6))


def test_a_call_that_broke_is_paid_for_and_stays_below_the_reservation() -> None:
    broken = Step(REPLY * 30, drop="middle")
    with ModelServer([broken, REPLY, REPLY]) as server:
        asking = proposer("anthropic", server)
        twice, once = asking.propose(request()), asking.propose(request())
        most = asking.most_usd(request())
    assert twice.input_tokens == 2 * once.input_tokens
    assert twice.output_tokens > once.output_tokens
    assert twice.usd and once.usd and most and once.usd < twice.usd < most


def test_broken_replies_are_not_paid_for_without_end(api: str) -> None:
    with ModelServer([Step(REPLY, drop="middle")] * 5) as server, pytest.raises(UnusableReply) as caught:
        proposer(api, server).propose(request())
    assert not caught.value.final
    assert len(server.requests) == QUICK.paid_calls
    assert caught.value.reply.output_tokens > 0


@pytest.mark.parametrize("step", [Step(hang=True), Step(ping=True)], ids=["silent", "keep-alives"])
def test_a_hanging_server_meets_the_deadline(api: str, step: Step) -> None:
    policy = Policy(deadline=0.4, silence=5.0, first_wait=0.01)
    with ModelServer([step, step]) as server, pytest.raises(ProposerError, match="gave up") as caught:
        proposer(api, server, policy).propose(request())
    assert not caught.value.final
    assert len(server.requests) == 1


def test_a_wait_that_would_pass_the_deadline_is_not_begun(api: str) -> None:
    policy = Policy(deadline=60.0, longest_retry_after=7200.0)
    busy = Step(status=429, kind="rate_limit_error", headers={"retry-after": "3600"})
    with ModelServer([busy, REPLY]) as server, pytest.raises(ProposerError, match="HTTP 429") as caught:
        proposer(api, server, policy).propose(request())
    assert not caught.value.final and len(server.requests) == 1


def test_a_model_that_is_silent_for_too_long_may_have_been_paid_for() -> None:
    policy = Policy(deadline=30.0, silence=0.2, first_wait=0.01)
    with ModelServer([Step(hang=True)] * 4) as server, pytest.raises(UnusableReply, match="2 times") as caught:
        proposer("anthropic", server, policy).propose(request())
    assert len(server.requests) == 2 and caught.value.reply.input_tokens > 10


def test_a_server_that_stays_busy_meets_the_deadline(api: str) -> None:
    policy = Policy(deadline=0.3, first_wait=0.02, longest_wait=0.05)
    with ModelServer([Step(status=503, kind="api_error")] * 100) as server, pytest.raises(ProposerError) as caught:
        proposer(api, server, policy).propose(request())
    assert not caught.value.final and "HTTP 503: the test says so; gave up" in str(caught.value)
    assert len(server.requests) > 1


def test_thoughts_in_the_text_are_no_part_of_the_reply() -> None:
    with ModelServer([f"<think>\nShall I?\n</think>\n{REPLY}"]) as server:
        assert proposer("openai", server).propose(request()).text.strip() == REPLY.strip()


def test_prices() -> None:
    million, two = (Usage(input_tokens=n * 10**6, output_tokens=n * 10**6) for n in (1, 2))
    known = price("claude-sonnet-5-5", million, provider="anthropic")  # what it is today is the vendor's business
    assert known and price("claude-sonnet-5-5", two, provider="anthropic") == pytest.approx(2 * known, rel=0.5)
    assert price("no-such-model", million, provider="anthropic") is None
    assert price("anything", million, url="http://localhost:11434/v1/") == 0.0
    assert price("anything", million, url="http://192.168.1.5:8000/v1/") is None
    assert (price("gpt-4o", million, url="https://api.openai.com/v1/") or 0) > 1
    assert is_loopback("http://[::1]:80") and not is_loopback("https://api.openai.com")


def test_retry_after_in_each_of_its_forms() -> None:
    assert retry_after({"retry-after-ms": "1500"}) == 1.5
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({}) is None
    assert (retry_after({"retry-after": "Fri, 31 Dec 2999 23:59:59 GMT"}) or 0) > 1e9
    for nonsense in ("soon", "-5", "nan", "inf", "1e999", "Fri, 99 Foo 0 99:99:99 GMT", "\x00"):
        assert not retry_after({"retry-after": nonsense})


def test_openai_itself_gets_the_limit_by_its_newer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert OpenAIProposer()._limit() == {"max_completion_tokens": Policy().max_output}
    paid = OpenAIProposer("anthropic/claude-sonnet-5.5", "https://openrouter.ai/api/v1")
    assert paid._limit() == {"max_tokens": Policy().max_output}
    most = paid.most_usd(request())
    assert most is not None and most > 0.1


def test_the_scripted_server_runs_by_itself(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text('{"status": 529, "kind": "overloaded_error"}')
    (tmp_path / "2.txt").write_text(REPLY)
    argv = [sys.executable, str(Path(__file__).parent / "server.py"), "--replies", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        try:
            reply = OpenAIProposer(base_url=f"http://127.0.0.1:{port}/v1", policy=QUICK).propose(request())
        finally:
            process.terminate()
    assert reply.text == REPLY


def test_a_wrong_path_of_the_server_is_told(api: str) -> None:
    with ModelServer([REPLY]) as server, pytest.raises(ProposerError, match="--base-url") as caught:
        if api == "openai":
            OpenAIProposer(base_url=server.url, policy=QUICK).propose(request())
        else:
            AnthropicProposer(base_url=server.url + "/v1", policy=QUICK).propose(request())
    assert caught.value.final
