"""A program that proposes works in a room of its own: with its settings and the network, and nothing else."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import make_repository
from test_loop import PROGRAM, STORY, TRAIN, kinds, night
from test_sandbox import wall  # noqa: F401 - a fixture

from agent.errors import Failure, ProposerError
from agent.propose.command import CommandProposer
from agent.run.proposer_room import ProposerRoom
from agent.run.sandbox import Sandbox


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a program called `coder`, installed as pipx and npm do, its settings, and what is not its own."""
    home = tmp_path / "home"
    for path, text in {
        ".local/share/pipx/coder/bin/coder": f"#!{sys.executable}\nimport runpy, sys\nrunpy.run_path(sys.argv[1])\n",
        ".local/share/keyrings/login": "a keyring",
        ".coder/token": "its own token",
        ".config/coder/settings": "its own settings",
        ".coder.json": "{}",
        ".ssh/id": "a key",
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
    (home / ".local/bin").mkdir()
    (home / ".local/bin/coder").symlink_to(home / ".local/share/pipx/coder/bin/coder")
    (home / ".local/share/pipx/coder/bin/coder").chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{home}/.local/bin{os.pathsep}{os.environ['PATH']}")
    return home


def enclosed(command: str, wall: Sandbox, folder: Path, files: dict[str, str] | None = None) -> CommandProposer:  # noqa: F811
    def export(tree: Path) -> None:
        for name, text in (files or {}).items():
            (tree / name).write_text(text)

    proposer = CommandProposer(command, deadline=30.0)
    proposer.enclosure = ProposerRoom(wall, folder / "night" / "proposer", export)
    return proposer


LOOKS = """
import json, os, sys
from pathlib import Path
home, found = Path.home(), {}
for name in (".coder/token", ".config/coder/settings", ".coder.json", ".local/share/keyrings/login", ".ssh/id"):
    try: found[name] = (home / name).read_text()
    except OSError: found[name] = None
for name in (".coder/new", ".coder.json", ".local/share/pipx/coder/bin/coder", ".ssh/id"):
    try: found["wrote " + name] = bool((home / name).write_text("new"))
    except OSError: found["wrote " + name] = False
found["prompt"], found["train.py"] = sys.stdin.read(), Path("train.py").read_text()
found["environment"] = sorted(set(os.environ) & {"CODER_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK"})
print(json.dumps(found))
"""


def test_it_has_its_own_settings_the_prompt_and_the_committed_files(
    wall: Sandbox,  # noqa: F811
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CODER_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "secret-value")
    script = tmp_path / "looks.py"
    script.write_text(LOOKS)
    asking = enclosed(f"coder {script}", wall, tmp_path, {"train.py": "RATE = 1\n"})
    found = json.loads(asking.run(b"the prompt"))
    assert found == {
        ".coder/token": "its own token",
        ".config/coder/settings": "its own settings",
        ".coder.json": "{}",
        ".local/share/keyrings/login": None,
        ".ssh/id": None,
        "wrote .coder/new": True,
        "wrote .coder.json": True,
        "wrote .local/share/pipx/coder/bin/coder": False,
        "wrote .ssh/id": found["wrote .ssh/id"],  # in an empty folder of that name, which ends with the room
        "prompt": "the prompt",
        "train.py": "RATE = 1\n",
        "environment": ["CODER_KEY", "OPENAI_API_KEY"],
    }
    assert (home / ".coder/new").read_text() == "new" and (home / ".ssh/id").read_text() == "a key"
    asking.close()
    assert not (tmp_path / "night" / "proposer").exists()


def test_no_key_stands_on_a_command_line(wall: Sandbox, home: Path, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("CODER_KEY", "secret-value")
    asking = enclosed("coder x", wall, tmp_path)
    with asking.enclosure.entered(asking.argv) as (command, _, env):
        assert not any("secret-value" in part for part in command) and env["CODER_KEY"] == "secret-value"


def test_it_reaches_a_server(wall: Sandbox, tmp_path: Path) -> None:  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"a reply"), daemon=True).start()
        port = server.getsockname()[1]
        code = f"import socket; print(socket.create_connection(('127.0.0.1', {port})).recv(99).decode())"
        assert enclosed(f"{sys.executable} -c {shlex.quote(code)}", wall, tmp_path).run(b"") == "a reply\n"


def test_what_does_not_start_or_fails_there_says_how_to_go_on(
    wall: Sandbox,  # noqa: F811
    home: Path,
    tmp_path: Path,
) -> None:
    script = home / "tools" / "ask"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport helper\n")
    script.chmod(0o755)
    (home / "tools" / "helper.py").write_text("")
    asking = enclosed(str(script), wall, tmp_path)
    asking.enclosure.check(asking.argv)
    with pytest.raises(ProposerError, match="No module named 'helper'.*; if it needs more .*--command-unsandboxed"):
        asking.run(b"")
    broken = enclosed(str(script), wall, tmp_path)
    broken.enclosure.sandbox.wrap = lambda argv, room: ["/bin/sh", "-c", "echo no room >&2; exit 127"]
    with pytest.raises(Failure, match=r"does not start in its room \(no room\): --command-unsandboxed runs it"):
        broken.enclosure.check(broken.argv)


@pytest.mark.slow
def test_one_that_hangs_is_ended_with_all_that_it_started(wall: Sandbox, tmp_path: Path) -> None:  # noqa: F811
    mark = f"overnight-{os.getpid()}-{tmp_path.name}"
    code = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    os.setsid()
    os.execvp("sh", ["sh", "-c", "sleep 600; echo {mark}"])
time.sleep(600)
"""
    asking = enclosed(f"{sys.executable} -c {shlex.quote(code)}", wall, tmp_path)
    asking.deadline = 1.0
    with pytest.raises(ProposerError, match="no reply within"):
        asking.run(b"")
    left = subprocess.run(["pgrep", "-f", f"^sh -c sleep 600; echo {mark}"], capture_output=True, text=True)
    assert left.stdout == ""


def test_a_night_is_proposed_from_a_room_and_says_so(tmp_path: Path) -> None:
    """The program is a file of the repository that is not committed; nothing else of that kind can be seen."""
    files = {"train.py": TRAIN, "prepare.py": "#\n", "program.md": PROGRAM, ".gitignore": ".env\npropose.py\n"}
    project = make_repository(tmp_path / "project", files)
    (project / ".env").write_text("KEY=secret-value")
    (project / "propose.py").write_text(
        f"import os\nproject = {str(project)!r}\n"
        "private = ('.env', '.git/HEAD', '.research/night/ledger.db')\n"
        "seen = [name for name in private if os.path.exists(f'{project}/{name}')]\n"
        f"print({STORY[0]!r} if not seen and os.path.exists('train.py') else seen)\n"
    )
    said = night(project, "--command", f"{sys.executable} {project / 'propose.py'}", "--experiments", "1")
    assert "proposes from a room of its own" in said
    assert kinds(project) == ["baseline", "keep"]
