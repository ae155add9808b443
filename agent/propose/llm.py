"""What the API proposers share: one retry policy, what a call cost, and the most that it may cost.

A proposer reserves `most_usd` before it calls, so a call must never cost more than that: a call that breaks
after the model began to answer may be billed, and is repeated only as often as `Policy.paid_calls` allows.
"""

from __future__ import annotations

import email.utils
import ipaddress
import logging
import math
import random
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2
from genai_prices import Usage, calc_price
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    wait_exponential_jitter,
)

from agent.errors import Failure, ProposerError
from agent.numeric import number
from agent.propose.context import estimate_tokens
from agent.propose.failures import status_and_message
from agent.propose.models import check_model
from agent.propose.reply import reply_text
from agent.propose.stream import DONE, ErrorEvent, Heard, events
from agent.propose.templates import one_line
from agent.protocols import Request
from agent.records import Reply
from agent.uptime import Alarm, now

log = logging.getLogger(__name__)

# tiktoken's count is of another model's tokenizer; newer ones have been seen to need up to 1.4 times as many.
INPUT_MARGIN = 2.0
TEMPORARY = frozenset({0, 408, 409, 425, 429})  # 0: no status, as of a connection that broke
# Servers say in their own words that a request does not fit the context; another wording is a refusal like any other.
TOO_LONG = re.compile(
    r"(?i)context[ _-]?(length|window|size)|n_ctx|(prompt|input|request|message)s?[^.]{0,40} too (long|large)"
    r"|too many (input )?tokens|reduce the (length|number)"
)
CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"})
REFUSED = frozenset({"refusal", "content_filter", "safety"})
UNUSABLE = frozenset({"tool_calls", "tool_use", "function_call", "pause_turn", "abort", "cancelled", "error"})
CHECK_SECONDS = 15.0  # for the list of models
AFTER_STOP = 10.0  # seconds for the figures that may follow a complete reply


@dataclass(frozen=True)
class Policy:
    """How long and how often to ask for one reply. All times are in seconds."""

    deadline: float = 900.0
    """For one reply, with every wait and retry; time in which this program was suspended does not count."""
    silence: float = 300.0
    """Without a byte for so long, a call counts as hung. Some models think for minutes in silence."""
    first_wait: float = 2.0
    """Before the first retry; each further wait is twice as long, up to `longest_wait`, plus some at random."""
    longest_wait: float = 60.0
    longest_retry_after: float = 180.0
    """A server's Retry-After is honoured up to here."""
    paid_calls: int = 2
    """Calls that may be billed for one reply: those that broke half way, and the last one."""
    max_output: int = 32_000
    """Tokens of one reply, with the model's thinking where it counts as output."""


class UnusableReply(ProposerError):
    """A reply that must not be applied (cut off, refused, broken); `reply` says what it cost."""


class Again(ProposerError):
    """A failure that may pass."""


class Answer(Protocol):
    """The part of an SDK's raw response that is used: its body, as the SDKs' own readers raise for odd ones."""

    def iter_bytes(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class ApiProposer:
    """The life of one request to an API; a subclass speaks that API's format."""

    name: str
    key_name: str
    """The environment variable that holds the key."""
    converses = True
    reads = True
    provider: str | None = None
    """As genai-prices names it; None: told by the URL."""
    errors: type[Exception]
    """What the SDK raises when a call fails."""
    models: str
    """Path of the list of models."""

    def __init__(self, model: str, base_url: str, policy: Policy, named: bool = True):
        """Raises Failure when the address is none."""
        if not base_url.startswith(("http://", "https://")):
            raise Failure(f"--base-url {base_url} is no address: write for example http://127.0.0.1:11434/v1")
        self.model = model
        self.base_url = base_url
        self.policy = policy
        self.named = named
        """The person has chosen the model."""

    def get(self, path: str) -> Any:
        """The JSON at a path of the server. Raises what the SDK raises."""
        raise NotImplementedError

    def check(self, request: Request) -> None:
        """Asks the server for its models. Raises Failure."""
        self.model = check_model(self.get, self.models, self.model, self.named, self.base_url, self.key_name)

    def close(self) -> None:
        """A call in flight ends with its thread."""

    def open(self, request: Request, timeout: float) -> AbstractContextManager[Answer]:
        """Send the request; the answer's body is not read yet."""
        raise NotImplementedError

    def hear(self, event: dict[str, Any], heard: Heard) -> None:
        """Take in one JSON object of the answer, whatever it holds."""
        raise NotImplementedError

    def propose(self, request: Request) -> Reply:
        """Ask until there is a reply. Raises ProposerError, or UnusableReply where money was spent."""
        started = now()
        end = started + self.policy.deadline
        lost: list[Usage] = []
        retrying = Retrying(
            retry=retry_if_exception_type(Again),
            wait=self._wait,
            stop=lambda state: now() + state.upcoming_sleep >= end,
            before_sleep=self._say,
            reraise=True,
        )
        try:
            heard = retrying(self._call, request, end, lost)
        except ProposerError as error:
            message = f"{self.name} {self.model}: {error}"
            if isinstance(error, Again):
                message += f"; gave up after {now() - started:.0f} s"
            kind, paid = (UnusableReply, self._reply("", lost, started)) if lost else (ProposerError, None)
            raise kind(
                message,
                error.final,
                status=error.status,
                retry_after=error.retry_after,
                too_long=error.too_long,
                reply=paid,
            ) from None
        reply = self._reply(reply_text(heard.text), [*lost, heard.usage], started)
        if problem := problem_with(heard, reply):
            raise UnusableReply(f"{self.name} {self.model}: {problem}", reply=reply)
        return reply

    def most_usd(self, request: Request) -> float | None:
        """Upper bound of what `propose` may cost; None: the price is not known."""
        tokens = int(INPUT_MARGIN * self._input_tokens(request))
        usage = Usage(input_tokens=tokens, cache_write_tokens=tokens, output_tokens=self.policy.max_output)
        one = self.usd(usage)
        return None if one is None else one * self.policy.paid_calls

    def usd(self, usage: Usage) -> float | None:
        """Dollars for `usage`; None: the price is not known."""
        return price(self.model, usage, provider=self.provider, url=self.base_url)

    def _call(self, request: Request, end: float, lost: list[Usage]) -> Heard:
        """One HTTP call, start to end. Raises ProposerError, as Again where the failure may pass.

        A reply that is complete is taken, whatever breaks after it.
        """
        heard, failure = Heard(), None
        left = max(0.001, end - now())
        try:
            with self.open(request, min(self.policy.silence, left)) as answer:
                self._listen(answer, heard, left)
        except Exception as error:  # the SDKs and their transports raise many kinds, and none may end the night
            # A model that thinks in silence for too long is working, and may be billed.
            heard.started |= isinstance(error.__cause__ or error, httpx2.ReadTimeout)
            failure = self._failure(error, hung_up=now() >= end)
        if heard.stop:
            return self._filled(request, heard)
        failure = failure or Again("the connection broke before the reply was complete")
        if heard.started:
            lost.append(self._filled(request, heard).usage)
            if len(lost) >= self.policy.paid_calls:
                message = f"{failure} ({len(lost)} times, half way through)"
                raise ProposerError(message, failure.final, status=failure.status, too_long=failure.too_long)
        raise failure

    def _listen(self, answer: Answer, heard: Heard, seconds: float) -> None:
        """Read until the server marks the end; after a complete reply it may take AFTER_STOP seconds to do so."""
        # A server that only sends keep-alives never lets the loop below come round: hang up from outside.
        watchdog = Alarm(seconds, answer.close)
        try:
            for event in events(answer.iter_bytes()):
                was_complete = heard.stop is not None
                if event is DONE:
                    heard.stop = heard.stop or ("stop" if heard.text else None)
                    return
                heard.started = True
                self.hear(event, heard)
                if heard.stop and not was_complete:
                    watchdog.cancel()
                    watchdog = Alarm(min(seconds, AFTER_STOP), answer.close)
        finally:
            watchdog.cancel()

    def _failure(self, error: Exception, hung_up: bool) -> ProposerError:
        """Any error of a call -> what it means: Again, or an error for the policy or the person."""
        if isinstance(error, ProposerError):
            return Again(str(error))
        known = isinstance(error, (self.errors, httpx2.HTTPError, ErrorEvent))
        status, said = status_and_message(error)
        if not known and not hung_up:  # hanging up at the deadline makes the transport raise whatever it likes
            log.error("%s %s: an error of a kind that is not expected", self.name, self.model, exc_info=error)
            return ProposerError(f"unexpected {type(error).__name__}: {said}")
        if status == 413 or (status in (0, 400, 422, 500) and TOO_LONG.search(said)):
            return ProposerError(f"the request is too long for the model: {said}", status=status, too_long=True)
        if status in TEMPORARY or status >= 500:
            headers = getattr(getattr(error, "response", None), "headers", {})
            said = f"{f'HTTP {status}: ' if status else ''}{said}"
            return Again(said, status=status, retry_after=retry_after(headers))
        advice = {
            401: f"the key was refused: put a valid one into {self.key_name}",
            402: f"the account has no credit: {said}: add credit, or go on with --proposer search",
            403: f"the key may not do this: {said}: choose another --model or key",
            404: f"{said}: check --model, and --base-url ({self.base_url})",
        }
        refused = f"the request was refused with HTTP {status}: {said}: choose another --model"
        return ProposerError(advice.get(status, refused), final=True, status=status)

    def _wait(self, state: RetryCallState) -> float:
        policy, error = self.policy, state.outcome and state.outcome.exception()
        asked = error.retry_after if isinstance(error, Again) else None
        if asked and asked > 0:
            return min(asked, policy.longest_retry_after) + random.uniform(0, policy.first_wait)
        first, longest = policy.first_wait, policy.longest_wait
        return wait_exponential_jitter(multiplier=first, max=longest, jitter=first)(state)

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        log.warning("%s %s: %s; asking again in %.0f s", self.name, self.model, error, state.upcoming_sleep)

    def _input_tokens(self, request: Request) -> int:
        return estimate_tokens("\n".join([request.system, *(turn.text for turn in request.turns)]))

    def _filled(self, request: Request, heard: Heard) -> Heard:
        """With estimates where the API gave no figures, as for a call that broke."""
        said = heard.usage
        if not said.input_tokens:
            said = said + Usage(input_tokens=self._input_tokens(request))
        if not heard.stop or not said.output_tokens:
            more = estimate_tokens(heard.text) - int(said.output_tokens)
            said = said + Usage(output_tokens=max(0, more))
        heard.usage = said
        return heard

    def _reply(self, text: str, usages: list[Usage], started: float) -> Reply:
        costs = [self.usd(usage) for usage in usages]
        return Reply(
            text=text,
            proposer=self.name,
            model=self.model,
            input_tokens=sum(int(usage.input_tokens) for usage in usages),
            output_tokens=sum(int(usage.output_tokens) for usage in usages),
            usd=None if None in costs else sum(cost for cost in costs if cost is not None),
            seconds=now() - started,
        )


def problem_with(heard: Heard, reply: Reply) -> str | None:
    """Why a complete reply must not be applied; None when it may be. A reason that nobody knows is none."""
    stop = (heard.stop or "").lower()
    if heard.refusal or stop in REFUSED:
        why = one_line(heard.refusal or stop, 200)
        return f"the model refused to answer ({why}): choose another --model if it does so again"
    if stop in CUT:
        return f"the reply was cut off at {reply.output_tokens} tokens ({stop})"
    if stop in UNUSABLE:
        return f"the reply ended for a reason that makes it unusable: {stop}"
    return None if reply.text.strip() else "the reply is empty"


def price(model: str, usage: Usage, *, provider: str | None = None, url: str = "") -> float | None:
    """Dollars by genai-prices: 0 for a server on this machine, None for a model or host it does not know.

    `usage.input_tokens` is the total; the tokens read from and written to a cache are parts of it.
    """
    if provider is None and is_loopback(url):
        return 0.0
    try:
        if provider:
            return float(calc_price(usage, model, provider_id=provider).total_price)
        return float(calc_price(usage, model, provider_api_url=url).total_price)
    except LookupError:
        return None


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine by name or address."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(headers: Any) -> float | None:
    """Seconds, from `retry-after-ms` or `retry-after` (seconds or a date, RFC 9110 section 10.2.3)."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        seconds = number(headers.get(name, ""))
        if seconds is not None and 0 <= seconds < math.inf:
            return seconds * unit
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):  # no date, or one that no clock shows
        return None
