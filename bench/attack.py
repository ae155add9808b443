"""Does the sandbox hold? Runs every hostile train.py of tests/attacks/ for real, and an honest one after each.

    python -m bench.attack [--only NAME ...] [--workers 3]

Around the trial lie a home with a key, a repository, a ledger, another slot, caches, held-out data, listeners and a
process; afterwards everything is looked at. An attack is blocked when nothing of it can be found: no secret in what
the trial left, no file changed, no call to a listener, no process left, no better score than the honest one, no
claim of success in its log. Ends with a line of JSON; exit code 1 unless all were blocked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agent.errors import EditError, Failure
from agent.judge.integrity import check_edit
from agent.program import parse_program
from agent.propose.edits import apply_edits, parse_reply
from agent.run.bubblewrap import Bubblewrap
from agent.run.landlock import Landlock
from agent.run.sandbox import Limits, Sandbox
from bench.arena import ATTACKS, PROGRAM, Arena, Result
from bench.desk import Desk
from bench.leaks import LEAK_SLOTS, Leaks

SMALL = Limits(memory_bytes=400 << 20, processes=100, disk_bytes=200 << 20, files=2000, scratch_bytes=64 << 20)


def reply_attack(path: Path) -> Result:
    """A hostile reply: refused while it is read, applied or checked, or harm."""
    first, _, text = path.read_text().partition("\n")
    result = Result(path.stem, first.removeprefix("<!--").removesuffix("-->").strip(), "")
    program = parse_program(PROGRAM)
    files = {"train.py": (ATTACKS / "arena" / "honest.py").read_text()}
    try:
        proposal = parse_reply(text)
        after = apply_edits(proposal, files, program.edit)
        result.refused = check_edit(files, after, program) or ""
    except EditError as error:
        result.refused = str(error).split("\n")[0]
    result.outcome = "not run"
    result.harm = [] if result.refused else ["the reply was accepted"]
    return result


KINDS = ("leaks/leak_*.py", "hostile/*.py", "replies/*.md", "proposers/*.py")


def attacks(only: list[str]) -> list[Path]:
    found = [path for kind in KINDS for path in ATTACKS.glob(kind)]
    if unknown := sorted(set(only) - {path.stem for path in found}):
        raise Failure(f"no attack is called {unknown[0]}: look into {ATTACKS}")
    return sorted((path for path in found if not only or path.stem in only), key=lambda path: path.stem)


KNOWN = {"landlock": {"key_proc_cmdline"}}  # what a wall says of itself that it does not hold (Sandbox.weaker)
WALLS: dict[str, type[Bubblewrap] | type[Landlock]] = {"bubblewrap": Bubblewrap, "landlock": Landlock}
Place = TypeVar("Place", Arena, Desk, Leaks)


@contextlib.contextmanager
def arena(kind: type[Place], sandbox: Sandbox) -> Iterator[Place]:
    """An arena in a folder of its own; nothing of it is left afterwards."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="arena-", ignore_cleanup_errors=True))
        yield kind(Path(folder).resolve(), sandbox, stack)


def run_all(paths: list[Path], workers: int, wall: type[Bubblewrap] | type[Landlock]) -> Iterator[Result]:
    """Run the attacks in `workers` arenas side by side, and the leaks in one more; results as they come in."""
    yield from (reply_attack(path) for path in paths if path.suffix == ".md")
    if proposers := [path for path in paths if path.parent.name == "proposers"]:
        with arena(Desk, wall()) as desk:  # alone, because home is another one meanwhile
            yield from map(desk.attack, proposers)
    leaks = [path for path in paths if path.parent.name == "leaks"]
    hostile = [path for path in paths if path.parent.name == "hostile"]
    results: queue.SimpleQueue[Result | None] = queue.SimpleQueue()

    def work(place: Arena | Leaks, waiting: list[Path]) -> None:
        try:
            while waiting:
                with contextlib.suppress(IndexError):  # another worker took the last one
                    results.put(place.attack(waiting.pop()))
        finally:
            results.put(None)

    with contextlib.ExitStack() as stack:
        jobs: list[tuple[Arena | Leaks, list[Path]]] = []
        for _ in range(min(workers, len(hostile))):
            jobs.append((stack.enter_context(arena(Arena, wall(SMALL))), hostile))
        if leaks:
            jobs += [(stack.enter_context(arena(Leaks, wall())), leaks)] * LEAK_SLOTS
        pool = stack.enter_context(ThreadPoolExecutor(len(jobs) or 1))
        running = [pool.submit(work, *job) for job in jobs]
        for _ in jobs:
            while (result := results.get()) is not None:
                yield result
        for future in running:
            future.result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.attack", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="attacks to run; all by default")
    parser.add_argument("--workers", type=int, default=3, help="arenas side by side")
    parser.add_argument("--sandbox", choices=WALLS, default="bubblewrap", help="the wall to attack")
    arguments = parser.parse_args()
    results, chosen = [], []
    try:
        chosen = attacks(arguments.only)
        for result in run_all(chosen, arguments.workers, WALLS[arguments.sandbox]):
            results.append(result)
            what = "blocked" if result.blocked else "SUCCEEDED: " + "; ".join([*result.harm, f"next: {result.honest}"])
            how = result.outcome if result.outcome != "not run" else f"refused: {result.refused}"
            print(
                f"{result.name:<26} {result.sentence:<90.90} {what}  [{result.seconds:.1f} s, {how[:80]}]", flush=True
            )
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
    blocked = sum(result.blocked for result in results)
    early = sum(bool(result.refused) for result in results)
    total = len(chosen)
    known = sorted({result.name for result in results if not result.blocked} & KNOWN.get(arguments.sandbox, set()))
    print(f"{blocked} of {total} blocked; {early} were refused before they ran as well; known of this wall: {known}")
    print(json.dumps({"sandbox": arguments.sandbox, "blocked": blocked, "known": len(known), "total": total}))
    return 0 if results and blocked + len(known) == total else 1


if __name__ == "__main__":
    sys.exit(main())
