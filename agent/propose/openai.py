"""Proposals from OpenAI's API, and from every server that speaks it (--base-url): Ollama, vLLM, llama.cpp...

Chat Completions, because that is the one format that all of them know.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from typing import Any, cast
from urllib.parse import urlsplit

import openai
from genai_prices import Usage
from openai.types.chat import ChatCompletionMessageParam

from agent.errors import Failure
from agent.propose.llm import ApiProposer, Heard, Policy
from agent.propose.reply import messages
from agent.protocols import Request

# Of the models in the SDK's list, the newest for coding whose price genai-prices knows: gpt-6.2-sol is listed
# too, but --usd can't bound a price that is not known.
MODEL = "gpt-6.1-sol"
REASONING_LIMIT_HOSTS = (".openai.com", ".azure.com")  # their models refuse the older name, max_tokens
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)  # open models put their thinking into the text


class OpenAIProposer(ApiProposer):
    """Streams, with the usage at the end; the SDK's own retries are off: llm.py has the policy."""

    name = "openai"
    key_name = "OPENAI_API_KEY"
    errors = (openai.APIError,)

    def __init__(self, model: str | None = None, base_url: str | None = None, policy: Policy | None = None):
        """Raises Failure when there is neither a key nor a server that may do without."""
        base_url = base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(self.key_name)
        if not (key or base_url):
            raise Failure(f"--proposer openai needs a key: export {self.key_name}=..., or give --base-url")
        # Local servers ask for no key, but the SDK does.
        self.client = openai.OpenAI(api_key=key or "none", base_url=base_url, max_retries=0)
        super().__init__(model or MODEL, str(self.client.base_url), policy or Policy())

    @property
    def _is_openai(self) -> bool:
        return (urlsplit(self.base_url).hostname or "").endswith(REASONING_LIMIT_HOSTS)

    def open(self, request: Request, timeout: float) -> AbstractContextManager[Any]:
        talk = [{"role": "system", "content": request.system}, *messages(request)]
        return self.client.chat.completions.create(
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

    def hear(self, event: Any, heard: Heard) -> None:
        if event.usage is not None:
            details = event.usage.prompt_tokens_details
            heard.usage = Usage(
                input_tokens=event.usage.prompt_tokens,
                output_tokens=event.usage.completion_tokens,
                cache_read_tokens=(details and details.cached_tokens) or 0,
                cache_write_tokens=(details and details.cache_write_tokens) or 0,
            )
        for choice in event.choices:
            heard.text += choice.delta.content or ""
            if choice.delta.refusal:
                heard.refusal = (heard.refusal or "") + choice.delta.refusal
            if choice.finish_reason:
                heard.stop = choice.finish_reason
                heard.text = THOUGHTS.sub("", heard.text)

    def problem(self, heard: Heard) -> str | None:
        if heard.refusal or heard.stop == "content_filter":
            why = f" ({' '.join(heard.refusal.split())[:200]})" if heard.refusal else " (content_filter)"
            return f"the model refused to answer{why}: choose another --model if it does so again"
        if heard.stop == "length":
            return f"the reply was cut off at {heard.usage.output_tokens} tokens (length)"
        if heard.stop != "stop":
            return f"the reply ended for a reason that makes it unusable: {heard.stop}"
        return None
