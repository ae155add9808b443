"""The command `service`: a systemd user unit with which a night goes on after a reboot."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from agent.cli import night
from agent.cli.nights import choose_tag
from agent.cli.show import Repo
from agent.errors import Failure
from agent.files import write_file
from agent.typed import typed
from agent.workspace import Workspace, project_folder

MARK = "# Written by `overnight service`, and overwritten by it."
UNIT = """{mark}
[Unit]
Description=overnight: the night {tag}

[Service]
Type=exec
WorkingDirectory={folder}
Environment={path}
EnvironmentFile=-{secrets}
ExecStart={command}
# A killed loop begins again at once, and every loop after a reboot. Exit code 0 is a finished night, 2 something for a
# person to mend, 3 a night that was asked to stop or has used up its hours.
Restart=on-abnormal
RestartSec=10
KillMode=mixed
TimeoutStopSec=60
{disable}
[Install]
WantedBy=default.target
"""
DISABLE = "# A finished night is not begun again at the next boot.\nExecStopPost={stop}\n"


def service(
    repo: Repo = Path("."),
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After --: the flags of `run`, like -- --hours 10 --usd 5.")
    ] = None,
) -> None:
    """Write a systemd user unit that goes on with a night after a reboot; where there is no systemd, say how else."""
    flags = checked(list(arguments or ()))
    root = project_folder(repo)
    if "--repo" not in names(flags):
        flags += ["--repo", str(root)]
    if "--tag" not in names(flags):
        flags += ["--tag", choose_tag(root, None, date.today().isoformat(), new=False)]
    tag = Workspace(root, value_of(flags, "--tag")).tag  # which refuses what can't name a branch
    command = [sys.executable, "-m", "agent.loop", *flags]
    if not (shutil.which("systemctl") and Path("/run/systemd/system").is_dir()):
        typer.echo("there is no systemd here, so after a reboot you begin it again; without a terminal it runs with")
        typer.echo(f"  nohup {shlex.join(command)} > overnight.log 2>&1 &")
        typer.echo(f"  tmux new-session -d -s overnight {shlex.quote(shlex.join(command))}")
        return
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    path = config / "systemd" / "user" / unit_name(tag)
    secrets = config / "overnight" / "environment"
    write_unit(path, unit(tag, Path.cwd(), command, secrets))
    typer.echo(f"wrote {path}; begin the night, now and after every reboot, with")
    typer.echo("  loginctl enable-linger            # so that it needs no login")
    typer.echo(f"  systemctl --user daemon-reload && systemctl --user enable --now {path.name}")
    typer.echo(f"keys go, as lines like ANTHROPIC_API_KEY=..., into {secrets} (chmod 600); look at it with")
    typer.echo(f"  journalctl --user -u {path.name} -f")


def checked(flags: list[str]) -> list[str]:
    """The flags, as `run` would take them. Raises Failure, or what the command line library says."""
    if "--notify" in names(flags):
        raise Failure("--notify holds tokens, which don't belong into a unit: set OVERNIGHT_NOTIFY, as keys are set")
    single = typer.Typer(add_completion=False)
    single.command()(night.run)
    typer.main.get_command(single).make_context(typed("run"), list(flags))
    return flags


def names(flags: list[str]) -> set[str]:
    return {flag.partition("=")[0] for flag in flags}


def value_of(flags: list[str], name: str) -> str:
    """Of a flag that is there, in one word or in two."""
    for flag, after in zip(flags, [*flags[1:], ""], strict=True):
        if flag == name:
            return after
        if flag.startswith(f"{name}="):
            return flag.partition("=")[2]
    raise Failure(f"{name} is missing")


def unit(tag: str, folder: Path, command: list[str], secrets: Path) -> str:
    """The text of the unit."""
    stop = ["/bin/sh", "-c", f'test "$EXIT_STATUS" != 0 || systemctl --user disable {unit_name(tag)}']
    settings = {"PATH": os.environ.get("PATH", os.defpath)}
    package = Path(__file__).parents[2]
    if not any(part.endswith("-packages") for part in package.parts):  # not installed: it is run from its folder
        settings["PYTHONPATH"] = str(package)
    return UNIT.format(
        mark=MARK,
        tag=tag,
        folder=str(folder).replace("%", "%%"),
        path=" ".join(quoted(f"{name}={value}", dollars=False) for name, value in settings.items()),
        secrets=str(secrets).replace("%", "%%"),
        command=" ".join(map(quoted, command)),
        disable=DISABLE.format(stop=" ".join(map(quoted, stop))),
    )


def unit_name(tag: str) -> str:
    return f"overnight-{tag}.service"


def quoted(word: str, dollars: bool = True) -> str:
    """One word of a unit's command line: systemd expands % everywhere, and $ in commands."""
    if re.search(r"[\n\r\0]", word):
        raise Failure("a line break can't stand in a unit: put what holds it into program.md")
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{word.replace("$", "$$") if dollars else word}"'


def write_unit(path: Path, text: str) -> None:
    """Over one of this command's own, and no other. Raises Failure."""
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise Failure(f"{path} was not written by this command: move it away, or choose another --tag")
    write_file(path, text.encode(), "XDG_CONFIG_HOME names another folder than ~/.config")


COMMANDS = (service,)
