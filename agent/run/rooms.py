"""What each kind of room of a trial shows, and the environment of what runs in it."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent.places import DATA
from agent.run.cache import compiled_modules
from agent.run.leftovers import remove
from agent.run.sandbox import Room
from agent.run.task import Task

if TYPE_CHECKING:
    from agent.run.trial import Job

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PERSON = ("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "XDG_CACHE_HOME")
MACHINE = ("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_DEVICE_ORDER")


def make_room(job: Job, kind: Literal["training", "feed", "evaluation", "model"], part: str = "") -> Room:
    """What a command of this kind may see. The model's rooms, each with a `part` of their scratch folder, have the
    commit and the checkpoint, and no data at all; nor has the training's where data is fed."""
    task = job.task
    scratch = task.folder / "scratch" / kind / part
    remove(scratch)
    scratch.mkdir(parents=True)
    data = {"training": [] if task.feed else task.data, "feed": task.data, "model": []}
    output = task.output if kind != "feed" else scratch / "output"  # it has nothing to save
    output.mkdir(exist_ok=True)
    room = Room(
        kind=kind,
        workdir=task.place("tree" if kind == "training" else "pristine"),
        output=output,
        scratch=scratch,
        data=(*map(Path, data.get(kind, [*task.data, *task.holdout])), *shown(job, kind)),
        hidden=() if kind == "evaluation" else tuple(map(Path, task.holdout)),
        compiled=task.folder / "compiled" if kind == "training" else None,
        slot=task.card.index if task.card and kind != "feed" else None,
    )
    return dataclasses.replace(room, env=environment(job, room))


def shown(job: Job, kind: str) -> list[Path]:
    """What a command reads beside its data: compiled modules, the project's environment, and, where the project is a
    folder of a repository, what lies beside it."""
    task = job.task
    modules = [job.read_modules] if job.read_modules else []
    beside = [task.folder / ("tree" if kind == "training" else "pristine")] if task.project else []
    return [*modules, *beside, *map(Path, task.interpreter.packages if task.interpreter else ())]


def environment(job: Job, room: Room) -> dict[str, str]:
    """The whole environment of a trial: only what is named here or in the contract."""
    task = job.task
    named = (*PERSON, *MACHINE, *THREADS, DATA, *task.environment)
    env = {name: os.environ[name] for name in named if name in os.environ}
    env |= {name: value for name, value in os.environ.items() if name.startswith("LC_")}
    if not job.sandbox.guarded:
        env["TMPDIR"] = str(room.scratch)  # a sandbox has a place of its own for temporary files
    if task.device == "cpu":
        env = {"GOMP_SPINCOUNT": "10000"} | env  # longer spinning while waiting starves a CPU that is shared
    if task.device == "cpu" and task.slots > 1:
        share = str(max(1, (os.cpu_count() or 1) // task.slots))
        env = {name: share for name in THREADS} | env
    compiled, fills = job.sandbox.compiled(room), job.fills_modules and room.kind == "training"
    env |= compiled_modules(task.output / "modules" if fills else job.read_modules)
    env |= {} if fills else {"PYTHONDONTWRITEBYTECODE": "1"}
    env |= own_interpreter(task, room)
    env |= {"HF_HUB_OFFLINE": "1"} if job.sandbox.guarded else {}  # what was fetched before is used, without asking
    python = task.interpreter.python if task.interpreter else sys.executable
    env |= {
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": str(task.seed % 2**32),
        "CUDA_VISIBLE_DEVICES": task.card.uuid if task.card else "",
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
        "RESEARCH_SEED": str(task.seed),
        "RESEARCH_BUDGET_SECONDS": str(task.budget_seconds),
        "RESEARCH_OUTPUT": str(task.output),
    }
    env |= {"RESEARCH_FEED": "stdin"} if task.feed and room.kind == "training" else {}
    return env if task.budget_tokens is None else env | {"RESEARCH_BUDGET_TOKENS": str(task.budget_tokens)}


def own_interpreter(task: Task, room: Room) -> dict[str, str]:
    """What the project's interpreter needs of the environment. What it imports from the repository (`pip install -e .`)
    is the trial's own copy of that."""
    if task.interpreter is None:
        return {}
    tree = room.workdir if not task.project else room.workdir.parents[len(Path(task.project).parts) - 1]
    inside = os.pathsep.join(str(tree / path) for path in task.interpreter.inside)
    return {task.interpreter.kind: task.interpreter.prefix} | ({"PYTHONPATH": inside} if inside else {})
