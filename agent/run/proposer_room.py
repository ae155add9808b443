"""The room of a program that proposes (--command): it has the network and its own settings, a copy of the committed
files to read, and nothing else of the person's. What it is fed holds logs of programs that nobody has read.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from agent.errors import Failure
from agent.run.installed import packages_of_node, program
from agent.run.leftovers import remove, temporary
from agent.run.sandbox import SYSTEM, Room, Sandbox, is_below

PERSON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TERM")
XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
PROVIDERS = ("ANTHROPIC", "OPENAI", "AZURE_OPENAI", "GEMINI", "OPENROUTER", "MISTRAL", "GROQ", "DEEPSEEK", "OLLAMA")
# Programs that keep their settings under another name than their own, below ~ or ~/.config
ELSEWHERE = {"llm": ("io.datasette.llm",), "cursor-agent": ("cursor",)}
OF_EVERYONE = ("config", "local", "cache", "share", "state")  # no program's own, whatever it is called
OUT = "--command-unsandboxed runs it with all your rights"
# In the room: what can't be seen of the files that are named, a line each.
LOOK = 'for file do test -e "$file" || echo "$file"; done'


class ProposerRoom:
    """Makes it anew for each call. `folder`: its own, of the night; `export` writes the committed files into a folder,
    of which `holdout` (paths in it) is left out; `project`: the folder in it in which the program starts."""

    def __init__(
        self,
        sandbox: Sandbox,
        folder: Path,
        export: Callable[[Path], None],
        project: str = "",
        holdout: Sequence[Path] = (),
    ):
        self.sandbox, self.folder, self.project = sandbox, folder, project
        self.tree, self.export, self.holdout = folder / "files", export, holdout
        self.fill()

    def fill(self) -> None:
        remove(self.folder)
        self.tree.mkdir(parents=True)
        self.export(self.tree)
        for path in self.holdout:
            remove(self.tree / path)

    def check(self, argv: Sequence[str]) -> None:
        """That the program can be seen in the room, and what runs it. Raises Failure."""
        files = [str(file) for file in program(argv[0], os.environ)]
        with self.entered(argv, ["/bin/sh", "-c", LOOK, "sh", *files]) as (command, cwd, env):
            ran = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        missing = (ran.stdout.splitlines() if ran.returncode == 0 else ran.stderr.splitlines()) or []
        if missing or ran.returncode:
            why = missing[-1].strip() if missing else f"exit code {ran.returncode}"
            raise Failure(f"--command {argv[0]} does not start in its room ({why}): {OUT}")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            remove(self.folder)

    @contextlib.contextmanager
    def entered(
        self, argv: Sequence[str], instead: Sequence[str] = ()
    ) -> Iterator[tuple[list[str], Path, dict[str, str]]]:
        """The command that runs `argv` in its room, the folder and the environment to start it with. `instead`: what to
        run there."""
        if not self.tree.is_dir():  # a person has cleaned up
            self.fill()
        with temporary(self.folder) as scratch:
            (scratch / "output").mkdir()
            room = Room(
                "proposer",
                workdir=self.tree / self.project,
                output=scratch / "output",
                scratch=scratch,
                data=tuple(self._files(argv)),
                env=environment(argv[0], os.environ),
                program=argv[0],
                settings=tuple(settings(argv[0], os.environ)),
            )
            command = self.sandbox.wrap(instead or [argv[0], *map(self._word, argv[1:])], room)
            yield command, room.workdir, dict(room.env)

    def _word(self, word: str) -> str:
        """An argument that names a file which is not among the committed ones names it from anywhere."""
        committed = self.tree / self.project / word
        return os.path.abspath(word) if word and not committed.exists() and os.path.isfile(word) else word

    def _files(self, argv: Sequence[str]) -> Iterator[Path]:
        """Files that the command line names, and what the program is made of, to be read."""
        for word in argv[1:]:
            if os.path.isfile(word) and not is_below(path := Path(os.path.abspath(word)), SYSTEM):
                yield from (path, *packages_of_node(path))
        for name in CERTIFICATES:
            if (path := Path(os.environ.get(name, ""))).is_absolute() and path.exists():
                yield path


def environment(name: str, given: Mapping[str, str]) -> dict[str, str]:
    """Language, proxies and certificates; what begins with the program's name; and the keys of model providers."""
    named = {*PERSON, *XDG, *PROXIES, *map(str.lower, PROXIES), *CERTIFICATES}
    own = tuple(f"{prefix}_" for prefix in (variable(name), *PROVIDERS, "LC"))
    return {key: value for key, value in given.items() if key in named or key.startswith(own)}


def settings(name: str, given: Mapping[str, str]) -> list[Path]:
    """The files and folders in which this program keeps its settings, as far as there are any. Where the program itself
    lies in one of them, that one is left out: it must not change what you start another time."""
    home, called = Path.home(), Path(name).stem
    if called in OF_EVERYONE or not called:
        return []
    names = (called, *ELSEWHERE.get(called, ()))
    bases = [(home, "."), *((home / base, "") for base in (".config", ".local/share", ".local/state", ".cache"))]
    bases += [(Path(given[key]), "") for key in XDG if given.get(key)]
    found = [base / f"{dot}{one}{end}" for base, dot in bases for one in names for end in ("", ".json")]
    told = [given.get(f"{variable(called)}_{end}") for end in ("CONFIG_DIR", "HOME", "USER_PATH")]
    found += [Path(path) for path in told if path and path.startswith("/")]
    installed = list(program(name, given))
    whole = {home, *home.parents}
    return [
        path
        for path in dict.fromkeys(found)
        if path.exists() and path not in whole and not any(file.is_relative_to(path) for file in installed)
    ]


def variable(name: str) -> str:
    """The program's name as it begins the names of its variables."""
    return re.sub(r"\W", "_", Path(name).stem).upper()
