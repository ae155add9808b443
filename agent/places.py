"""Where the folders that a contract names are: ${NAME} and ${NAME:-otherwise} are environment variables, ~ is home."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.errors import Failure

DATA = "RESEARCH_DATA"
"""The hash of the data as the `prepare` command told it: for paths of the contract, and for every trial."""
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def place(root: Path, name: str) -> Path:
    """A folder of the contract, absolute; a relative one is below `root`. Raises Failure where a variable is
    neither set nor has a value for that case."""

    def value(found: re.Match[str]) -> str:
        said = os.environ.get(found[1]) or found[2]
        if said is None:
            told = "`prepare` printed no line `data_hash: ...`" if found[1] == DATA else f"{found[1]} is not set"
            raise Failure(f"program.md names {name}, but {told}")
        return said

    return Path(os.path.normpath(root / Path(VARIABLE.sub(value, name)).expanduser()))
