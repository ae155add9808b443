"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from agent.errors import Failure


def write_file(path: Path, content: bytes, then: str = "name another file") -> None:
    """Where a person said that it should go. A link is followed, and a device or a pipe is written to: neither is
    replaced. `then`: what the person can do. Raises Failure where it can't be written."""
    try:
        if path.is_dir():
            raise Failure(f"{path.absolute()} is a folder: name a file in it")
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            replace_file(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise Failure(f"{path} can't be written ({error.strerror}): {then}") from None


def replace_file(path: Path, content: bytes) -> None:
    """Aside, then renamed: nobody sees half a file. One that is there already keeps its mode and owner. Raises OSError;
    nothing is left behind then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        with aside.open("xb") as file:
            file.write(content)
        with contextlib.suppress(FileNotFoundError):
            before = path.stat()
            with contextlib.suppress(PermissionError):
                os.chown(aside, before.st_uid, before.st_gid)
            aside.chmod(stat.S_IMODE(before.st_mode))
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
