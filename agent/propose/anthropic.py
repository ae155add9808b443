"""Proposals from Anthropic's API, or from a server that speaks its format (--base-url)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, cast

import anthropic
from anthropic.types import MessageParam
from genai_prices import Usage

from agent.errors import Failure
from agent.propose.llm import ApiProposer, Heard, Policy
from agent.propose.reply import messages
from agent.protocols import Request

# Of the models in the SDK's list whose price genai-prices knows, the one described as "the best combination
# of speed and intelligence": the GPU may wait for the reply, and a night asks for a hundred of them.
MODEL = "claude-sonnet-5-5"


class AnthropicProposer(ApiProposer):
    """Streams, as the SDK wants for long replies; its own retries are off: llm.py has the policy."""

    name = "anthropic"
    key_name = "ANTHROPIC_API_KEY"
    provider = "anthropic"
    errors = (anthropic.APIError,)

    def __init__(self, model: str | None = None, base_url: str | None = None, policy: Policy | None = None):
        """Raises Failure when there is neither a key nor an address that may do without."""
        key, token = os.environ.get(self.key_name), os.environ.get("ANTHROPIC_AUTH_TOKEN")
        if not (key or token or base_url):
            raise Failure(f"--proposer anthropic needs a key: export {self.key_name}=... or use --proposer search")
        none_needed = None if key or token else "none"
        self.client = anthropic.Anthropic(api_key=key or none_needed, base_url=base_url, max_retries=0)
        super().__init__(model or MODEL, str(self.client.base_url), policy or Policy())

    def open(self, request: Request, timeout: float) -> AbstractContextManager[Any]:
        """The system prompt is the same for every experiment, so it is worth a place in the prompt cache."""
        return self.client.messages.create(
            model=self.model,
            max_tokens=self.policy.max_output,
            system=[{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            messages=cast("list[MessageParam]", messages(request)),
            stream=True,
            timeout=timeout,
        )

    def hear(self, event: Any, heard: Heard) -> None:
        """Thinking is not part of the reply: only text counts."""
        if event.type == "message_start":
            heard.usage = total(event.message.usage, heard.usage)
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            heard.text += event.delta.text
        elif event.type == "message_delta":
            heard.usage = total(event.usage, heard.usage)
            heard.stop = event.delta.stop_reason or heard.stop
            if event.delta.stop_details is not None:
                heard.refusal = event.delta.stop_details.category

    def problem(self, heard: Heard) -> str | None:
        if heard.stop in ("end_turn", "stop_sequence"):
            return None
        if heard.stop == "refusal":
            why = f" ({heard.refusal})" if heard.refusal else ""
            return f"the model refused to answer{why}: choose another --model if it does so again"
        if heard.stop in ("max_tokens", "model_context_window_exceeded"):
            return f"the reply was cut off at {heard.usage.output_tokens} tokens ({heard.stop})"
        return f"the reply ended for a reason that makes it unusable: {heard.stop}"


def total(said: Any, before: Usage) -> Usage:
    """The API's running totals -> Usage. Its input_tokens leave out what the cache read and wrote.

    The last event may give only the output; then the input is as `message_start` said.
    """
    if said.input_tokens is None:
        read, write, fed = before.cache_read_tokens, before.cache_write_tokens, before.input_tokens
    else:
        read, write = said.cache_read_input_tokens or 0, said.cache_creation_input_tokens or 0
        fed = said.input_tokens + read + write
    return Usage(input_tokens=fed, cache_read_tokens=read, cache_write_tokens=write, output_tokens=said.output_tokens)
