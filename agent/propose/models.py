"""Before a night begins: is the server there, does it take the key, and has it the model? Its list of models tells that
at no cost. A server without such a list is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from agent.errors import Failure
from agent.propose.failures import status_and_message
from agent.propose.stream import mapping, mappings

NAMED = 8  # models that an error names
Get = Callable[[str], Any]
"""A path -> the JSON of the answer; raises what the SDK raises."""


def check_model(get: Get, path: str, model: str, named: bool, url: str, key_name: str) -> str:
    """The name of the model to use: the only one of a server, where the person has not `named` any. Raises Failure."""
    try:
        listed = mappings(mapping(get(path)).get("data"))
    except Exception as error:  # the SDKs and their transports raise many kinds
        status, said = status_and_message(error)
        if status == 401:
            raise Failure(f"{url} refused the key: put a valid one into {key_name}") from None
        if status == 0:
            raise Failure(
                f"{url} can't be reached ({said}): start the server, or check --base-url (--no-check begins without)"
            ) from None
        return model
    names = [entry["id"] for entry in listed if isinstance(entry.get("id"), str)]
    any_will_do = any(entry.get("owned_by") == "llamacpp" for entry in listed)  # it has one, whatever it is called
    if not names or any_will_do or {model, f"{model}:latest"} & set(names) or known(get, path, model):
        return model
    if not named and len(names) == 1:
        return names[0]
    has = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    raise Failure(f"there is no model {model} at {url}: choose --model of {has} (--no-check begins without asking)")


def known(get: Get, path: str, model: str) -> bool:
    """Also one that the list leaves out: another name of a listed one, or of a page further on."""
    try:
        return bool(get(f"{path}/{quote(model, safe='')}"))
    except Exception as error:
        return status_and_message(error)[0] not in (400, 404)
