"""Keys of this process's environment must not get into a journal, a prompt or a report."""

from __future__ import annotations

import os
from functools import lru_cache

from agent.judge.integrity import keys_of, redact


@lru_cache(maxsize=1)
def keys() -> tuple[str, ...]:
    return keys_of(os.environ)


def hidden(text: str) -> str:
    """Without anything that is, or looks like, a key."""
    return redact(text, keys())
