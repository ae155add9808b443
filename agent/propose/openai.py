"""Proposals from OpenAI's API, and from every server that speaks it (--base-url): Ollama, vLLM, llama.cpp...

Chat Completions, because that is the one format that all of them know.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, cast
from urllib.parse import urlsplit

import openai
from genai_prices import Usage
from openai.types.chat import ChatCompletionMessageParam

from agent.errors import Failure
from agent.propose.llm import CHECK_SECONDS, Answer, ApiProposer, Policy
from agent.propose.reply import messages
from agent.propose.stream import Heard, mapping, mappings, text_of, tokens_of, usage_of, word_of
from agent.protocols import Request

# Of the models in the SDK's list, the newest for coding whose price genai-prices knows: gpt-6.2-sol is listed
# too, but --usd can't bound a price that is not known.
MODEL = "gpt-6.1-sol"
REASONING_LIMIT_HOSTS = (".openai.com", ".azure.com")  # their models refuse the older name, max_tokens


class OpenAIProposer(ApiProposer):
    """Streams, with the usage at the end; the SDK's own retries are off: llm.py has the policy."""

    name = "openai"
    key_name = "OPENAI_API_KEY"
    errors = openai.APIError
    models = "/models"

    def __init__(self, model: str | None = None, base_url: str | None = None, policy: Policy | None = None):
        """Raises Failure when there is neither a key nor a server that may do without."""
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(self.key_name)
        if not (key or base_url):
            raise Failure(f"--proposer openai needs a key: export {self.key_name}=..., or give --base-url")
        # Local servers ask for no key, but the SDK does.
        self.client = openai.OpenAI(api_key=key or "none", base_url=base_url, max_retries=0)
        super().__init__(model or MODEL, str(self.client.base_url), policy or Policy(), named=model is not None)

    def get(self, path: str) -> Any:
        return self.client.get(path, cast_to=object, options={"timeout": CHECK_SECONDS})

    @property
    def _is_openai(self) -> bool:
        return (urlsplit(self.base_url).hostname or "").endswith(REASONING_LIMIT_HOSTS)

    def open(self, request: Request, timeout: float) -> AbstractContextManager[Answer]:
        talk = [{"role": "system", "content": request.system}, *messages(request)]
        return self.client.chat.completions.with_streaming_response.create(
            model=self.model,
            messages=cast("list[ChatCompletionMessageParam]", talk),
            stream=True,
            stream_options={"include_usage": True},
            timeout=timeout,
            **self._limit(),
        )

    def _limit(self) -> dict[str, Any]:
        """The cap on output: where tokens cost money. A free server's own limit suits its model better."""
        if self._is_openai:
            return {"max_completion_tokens": self.policy.max_output}
        one_token = self.usd(Usage(input_tokens=1, output_tokens=1))
        return {"max_tokens": self.policy.max_output} if one_token else {}

    def hear(self, event: dict[str, Any], heard: Heard) -> None:
        if usage := mapping(event.get("usage")):
            details = mapping(usage.get("prompt_tokens_details"))
            heard.usage = usage_of(
                tokens_of(usage.get("prompt_tokens")) or 0,
                tokens_of(usage.get("completion_tokens")) or 0,
                tokens_of(details.get("cached_tokens")) or 0,
                tokens_of(details.get("cache_write_tokens")) or 0,
            )
        for choice in mappings(event.get("choices"))[:1]:
            delta, message = mapping(choice.get("delta")), mapping(choice.get("message"))
            heard.text += text_of(delta.get("content")) or text_of(choice.get("text"))
            whole = text_of(message.get("content"))  # of a server that does not stream, or says all again at the end
            heard.text = whole if whole.startswith(heard.text) else heard.text + whole
            heard.refusal += text_of(delta.get("refusal")) or text_of(message.get("refusal"))
            heard.stop = word_of(choice.get("finish_reason")) or heard.stop
