"""What a program needs of the places where it is installed, named one by one: beside a Python in ~/.local lie keyrings
and tokens, so no folder is shown because a program lies somewhere below it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# Below an interpreter's prefix. An environment (venv) has a `bin` and a `lib` of its own; others may share theirs.
OF_ENVIRONMENT = ("pyvenv.cfg", "bin", "include", "lib", "lib64")
OF_INTERPRETER = ("bin/python*", "bin/pypy*", "include/python*", "lib*/python*", "lib*/pypy*", "lib*/lib*.so*")


def program_files(name: str, env: Mapping[str, str]) -> list[Path]:
    """Files and folders that this command, or the Python that runs here, needs beside the system's."""
    wanted = [*of_prefix(Path(sys.prefix)), *of_prefix(Path(sys.base_prefix))]
    for file in program(name, env):
        wanted += [file, *of_prefix(file.parent.parent), *packages_of_node(file)]
    for paths in ("LD_LIBRARY_PATH", "PYTHONPATH"):
        wanted += [Path(part) for part in env.get(paths, "").split(":") if part.startswith("/")]
    wanted += [Path(path) for path in sys.path if path.endswith("-packages")]  # pip install --user, and bwrap in it
    unsafe = {Path.home(), *Path.home().parents, Path.cwd(), *Path.cwd().parents}
    found = dict.fromkeys(Path(os.path.normpath(path)) for path in wanted)
    found = [p for p in found if p.exists() and p not in unsafe and not p.is_relative_to("/usr")]
    return [path for path in found if not any(path != other and path.is_relative_to(other) for other in found)]


def of_prefix(prefix: Path) -> list[Path]:
    """What an interpreter installed there needs; nothing where there is none."""
    if (prefix / "conda-meta").is_dir():  # with compilers, certificates and data of its own, and made by conda alone
        return [prefix]
    if (prefix / "pyvenv.cfg").is_file():
        return [path for name in OF_ENVIRONMENT if (path := prefix / name).exists()]
    if prefix == Path("/usr"):
        return []
    return [path for pattern in OF_INTERPRETER for path in sorted(prefix.glob(pattern)) if path.exists()]


def program(name: str, env: Mapping[str, str]) -> Iterator[Path]:
    """The program that is started by this name, all that it is a link to, and what its first line names to run it."""
    path, seen = env.get("PATH", os.defpath), set[Path]()
    if os.sep in name and not os.path.isabs(name):  # it is looked for in the room's own folder
        return
    while found := shutil.which(name, path=path):
        for link in links(Path(os.path.abspath(found))):
            if link in seen:
                return
            seen.add(link)
            yield link
        name = runner(link)


def links(path: Path) -> Iterator[Path]:
    """A file, and all that it is a link to: each one's folder must be there."""
    seen: set[Path] = set()
    while path not in seen:
        seen.add(path)
        yield path
        if not path.is_symlink():
            return
        path = Path(os.path.normpath(path.parent / os.readlink(path)))


def runner(script: Path) -> str:
    """The program that a script's first line names; "" where it is no script."""
    try:
        with open(script, "rb") as file:
            first = file.readline(1000).decode(errors="replace")
        words = shlex.split(first.removeprefix("#!")) if first.startswith("#!") else []
    except (OSError, ValueError):
        return ""
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    return words[0] if words else ""


def packages_of_node(file: Path) -> list[Path]:
    """The folder in which a program of npm finds what it is made of."""
    return [folder for folder in reversed(file.parents) if folder.name == "node_modules"][:1]
