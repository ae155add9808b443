"""Commits that git has lost (refs/experiments was deleted, and the repository cleaned up) are made again: the journal
holds the files of each by hash, and the same input gives the same commit.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent import events as ev
from agent.errors import Failure
from agent.events import Event
from agent.history import History
from agent.lab_note import lab_note
from agent.night import Night
from agent.program import Program
from agent.protocols import Repository

WITH_COMMIT = (ev.BaselineBegun, ev.Committed, ev.Rebased, ev.Published)


def remake(events: Iterable[Event], history: History, repository: Repository) -> int:
    """Make every commit of the journal that the repository does not hold; how many there were. Raises Failure where
    that can't be done."""
    night, made, told = Night(), 0, list(events)
    gone = repository.missing(list({e.commit for e in told if isinstance(e, WITH_COMMIT) and e.commit}))
    for event in told if gone else ():
        before, night = night, night.after(event)
        if isinstance(event, ev.BaselineBegun) and event.commit in gone:
            raise Failure(
                f"the commit {event.commit[:12]}, on which this night was begun, is gone from the repository: fetch it "
                "again, or choose another --tag"
            )
        if not isinstance(event, ev.Committed | ev.Rebased | ev.Published) or event.commit not in gone:
            continue
        if again(event, before, history, repository) != event.commit:
            raise Failure(
                f"the commit {event.commit[:12]} of experiment {event.experiment} is gone, and can't be made again by "
                "this version of the program: choose another --tag"
            )
        gone.discard(event.commit)
        made += 1
    return made


def again(event: ev.Committed | ev.Rebased | ev.Published, night: Night, history: History, git: Repository) -> str:
    """The commit of this event; `night`: the state before it."""
    e, program = night.experiments[event.experiment], history.program(night.program)
    if isinstance(event, ev.Published):
        return git.commit_tree(e.commit, e.parent, final_note(history, night, e.number, program), e.created)
    files = history.files(event.files if isinstance(event, ev.Rebased) else e.files)
    parent = event.parent if isinstance(event, ev.Rebased) else e.parent
    return git.commit_files(parent, files, first_note(history, night, e.number, program), e.created)


def first_note(history: History, night: Night, number: int, program: Program) -> str:
    """The message of a commit that is to be measured."""
    whole = history.whole(night.experiments[number])
    return lab_note(whole.model_copy(update={"verdict": None}), None, program)


def final_note(history: History, night: Night, number: int, program: Program) -> str:
    """The message of a kept commit."""
    best = night.incumbent
    whole = history.whole(night.experiments[number], brief=True)
    return lab_note(whole, history.brief(best) if best else None, program)
