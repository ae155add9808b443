"""What an SDK, or its transport, raises -> an HTTP status and one line of what it says."""

from __future__ import annotations

from agent.numeric import number
from agent.propose.stream import mapping
from agent.propose.templates import one_line

STATUS_OF = {  # errors inside a stream have a name where others have an HTTP status
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "insufficient_quota": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "invalid_request_error": 400,
}


def status_and_message(error: Exception) -> tuple[int, str]:
    """An SDK's or the transport's error -> (HTTP status, 0 where there is none; one line of what it says)."""
    body = mapping(getattr(error, "body", None))
    inner = mapping(body.get("error", body))
    words = [word for word in (inner.get("code"), inner.get("type")) if isinstance(word, str)]
    named = [STATUS_OF[word] for word in words if word in STATUS_OF]
    code = number(inner.get("code"))
    if not named and code is not None and 400 <= code < 600:
        named = [int(code)]
    status = int(getattr(error, "status_code", 0))
    if 402 in named or status < 400:  # "no credit" comes as 429, and errors in a stream after a 200
        status = 402 if 402 in named else (named or [0])[0]
    said = inner.get("message") or (status or error.__cause__ is None) and str(error) or error.__cause__
    return status, one_line(said or type(error).__name__)
