"""One experiment's commit measured again beside the one it was made on, with fresh seeds: `rerun`. Nothing is decided
by it, and the night stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.errors import Failure
from agent.judge.audit import Arm, Difference, Lab, compare, measure
from agent.judge.measured import Measured
from agent.lab_note import number
from agent.program import Program
from agent.protocols import Executor
from agent.records import Experiment
from agent.workspace import Workspace


def rerun(
    experiments: Sequence[Experiment],
    workspace: Workspace,
    executor: Executor,
    program: Program,
    n: int,
    seeds: int,
    beside_incumbent: bool,
    say: Callable[[str], None],
) -> Difference:
    """How much better experiment `n` is, paired on `seeds` fresh seeds. `experiments`: as for audit. Raises Failure."""
    e, other = pair(experiments, n, beside_incumbent)
    if gone := workspace.missing([arm.commit for arm in (other, e)]):
        raise Failure(f"the commit {min(gone)[:12]} is gone from the repository; `run` with this --tag makes it again")
    untested = program.model_copy(update={"test": None})  # the held-out test is for what was kept
    lab = Lab(workspace, executor, untested, seeds, say, Measured(workspace.home, "rerun"))
    table, _ = measure(lab, [other, e])
    lab.measured.close()
    found = compare(program, table)(other.name, e.name)
    told = f"{e.name} is better than {other.name} by {found} ({len(table[e.name])} fresh seeds)"
    say(f"{program.metric.name}: {told}: {meaning(found)}")
    verdict = next(one.verdict for one in experiments if one.number == n)
    if verdict and verdict.effect is not None and not beside_incumbent:
        low, high = verdict.interval or (None, None)
        sure = f", {verdict.level} interval {number(low)} .. {number(high)}" if verdict.interval else ""
        say(f"the night had found {number(verdict.effect)}{sure}: {verdict.kind}")
    return found


def pair(experiments: Sequence[Experiment], n: int, beside_incumbent: bool) -> tuple[Arm, Arm]:
    """The experiment, and what it is measured beside."""
    known = {e.number: e for e in experiments}
    if n not in known:
        raise Failure(f"there is no experiment {n} with a verdict in this night: it has 0 to {max(known, default=0)}")
    e, kept = known[n], [one for one in experiments if one.verdict and one.verdict.kept]
    if not e.commit:
        why = e.verdict.kind if e.verdict else "it has no verdict"
        raise Failure(f"experiment {n} has no commit ({why}): it never ran, so there is nothing to measure again")
    if beside_incumbent:
        best = kept[-1]
        if best.number == n:
            raise Failure(f"experiment {n} is the incumbent: leave --incumbent out, to measure it beside its parent")
        return Arm(f"#{n}", e.commit), Arm(f"#{best.number}", best.commit or "")
    if n == 0:
        raise Failure("the baseline stands on no other commit: --incumbent measures it beside the last kept one")
    name = next((f"#{one.number}" for one in kept if one.commit == e.parent), e.parent[:12])
    return Arm(f"#{n}", e.commit), Arm(name, e.parent)


def meaning(found: Difference) -> str:
    if found.interval[0] > 0:
        return "it is better"
    return "it is worse" if found.interval[1] < 0 else "not to be told from luck with so few"
