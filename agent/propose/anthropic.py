"""Proposals from Anthropic's API, or from a server that speaks its format (--base-url)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, cast

import anthropic
from anthropic.types import MessageParam
from genai_prices import Usage

from agent.errors import Failure
from agent.propose.llm import CHECK_SECONDS, Answer, ApiProposer, Policy
from agent.propose.reply import messages
from agent.propose.stream import Heard, mapping, text_of, tokens_of, usage_of, word_of
from agent.protocols import Request

# Of the models in the SDK's list whose price genai-prices knows, the one described as "the best combination
# of speed and intelligence": the GPU may wait for the reply, and a night asks for a hundred of them.
MODEL = "claude-sonnet-5-5"


class AnthropicProposer(ApiProposer):
    """Streams, as the SDK wants for long replies; its own retries are off: llm.py has the policy."""

    name = "anthropic"
    key_name = "ANTHROPIC_API_KEY"
    provider = "anthropic"
    errors = anthropic.APIError
    models = "/v1/models"

    def __init__(self, model: str | None = None, base_url: str | None = None, policy: Policy | None = None):
        """Raises Failure when there is neither a key nor an address that may do without."""
        key, token = os.environ.get(self.key_name), os.environ.get("ANTHROPIC_AUTH_TOKEN")
        if not (key or token or base_url):
            raise Failure(f"--proposer anthropic needs a key: export {self.key_name}=... or use --proposer search")
        none_needed = None if key or token else "none"
        self.client = anthropic.Anthropic(api_key=key or none_needed, base_url=base_url, max_retries=0)
        super().__init__(model or MODEL, str(self.client.base_url), policy or Policy(), named=model is not None)

    def get(self, path: str) -> Any:
        return self.client.get(path, cast_to=object, options={"timeout": CHECK_SECONDS})

    def open(self, request: Request, timeout: float) -> AbstractContextManager[Answer]:
        """The system prompt is the same for every experiment, so it is worth a place in the prompt cache."""
        return self.client.messages.with_streaming_response.create(
            model=self.model,
            max_tokens=self.policy.max_output,
            system=[{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            messages=cast("list[MessageParam]", messages(request)),
            stream=True,
            timeout=timeout,
        )

    def hear(self, event: dict[str, Any], heard: Heard) -> None:
        """Thinking is not part of the reply: only text counts."""
        match event.get("type"):
            case "message_start":
                heard.usage = total(mapping(event.get("message")).get("usage"), heard.usage)
            case "content_block_start":
                heard.text += text_of(event.get("content_block"))
            case "content_block_delta":
                heard.text += text_of(event.get("delta"))
            case "message_delta":
                self.end(mapping(event.get("delta")), event.get("usage"), heard)
            case "message_stop":
                heard.stop = heard.stop or ("end_turn" if heard.text else None)
            case "message":  # of a server that does not stream
                heard.text = text_of(event.get("content"))
                self.end(event, event.get("usage"), heard)

    def end(self, message: dict[str, Any], usage: object, heard: Heard) -> None:
        heard.usage = total(usage, heard.usage)
        heard.stop = word_of(message.get("stop_reason")) or heard.stop
        heard.refusal = word_of(mapping(message.get("stop_details")).get("category")) or heard.refusal


def total(usage: object, before: Usage) -> Usage:
    """The API's running totals -> Usage. Its input_tokens leave out what the cache read and wrote.

    The last event may give only the output; then the input is as `message_start` said.
    """
    said = mapping(usage)
    fed, output = tokens_of(said.get("input_tokens")), tokens_of(said.get("output_tokens"))
    output = int(before.output_tokens) if output is None else output
    if fed is None:
        fed = int(before.input_tokens)
        read, written = int(before.cache_read_tokens), int(before.cache_write_tokens)
    else:
        read = tokens_of(said.get("cache_read_input_tokens")) or 0
        written = tokens_of(said.get("cache_creation_input_tokens")) or 0
        fed += read + written
    return usage_of(fed, output, read, written)
