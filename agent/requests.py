"""What a person's requests make of the night: pause, skip, suggest, veto, accept, limits. Pure, as night.py, whose
part this is.

A request may come at any moment, and be read late: what it asks for may have become impossible. Then it changes
nothing, and a note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent import events as ev
from agent.lab_note import dollars
from agent.state import Experiment, replace

if TYPE_CHECKING:
    from agent.night import Night

SKIPPED, VETOED = "skipped by the person", "vetoed by the person"
SUGGESTED = "the person's suggestion"


def made_of(night: Night, event: ev.Requested) -> Night:
    """The night after this request."""
    match event.what:
        case "stop":
            return night if night.ended else replace(night, stopping=True)
        case "finish":
            reason = event.text or "a person asked for an end"
            return night if night.ended else replace(night, finishing=reason, after_finish=event.then)
        case "pause":
            said = ev.Paused(at=event.at, reason="a person asked for it", until=event.until, what="person")
            return replace(night, paused=said)
        case "resume":
            return replace(night, paused=None) if night.on_hold else night
        case "limits":
            night = replace(night, stoppers=night.stoppers.stated(event.limits, event.lifted))
            free = {"blocked": "", "unblock": "", "blocked_by_limit": False} if night.blocked_by_limit else {}
            return replace(night, **free)
        case "suggest":
            night = replace(night, suggestions=(*night.suggestions, event.idea))
            free = [e for e in not_started(night) if not e.suggestion and not e.stale]  # it takes the place of one
            return ask_again(night, event.at, SUGGESTED, free[:1])
        case "skip" | "veto" | "accept":
            if refused := senseless(night, event.what, event.experiment):
                return night.noted(event.at, refused)
            do = {"skip": skip, "veto": veto, "accept": accept}[event.what]
            return do(night, event, event.experiment or 0)


def senseless(night: Night, what: str, number: int | None) -> str:
    """Why this can't be asked for experiment `number` now, in one line; "" where it can."""
    e = night.experiments.get(number) if number is not None else None
    if e is None:
        return f"{what}: there is no experiment {number} in this night"
    if e.number == 0:
        return f"{what}: experiment 0 is the unchanged program, which everything is compared with"
    verdict = e.verdict.kind if e.verdict and e.number not in night.undecided else ""
    if what == "skip" and verdict:
        return f"skip: experiment {number} is over already ({verdict})"
    if what == "accept" and verdict != "held":
        return f"accept: experiment {number} is not held for review ({verdict or 'it is not decided yet'})"
    if what == "veto" and verdict and not holding(night, e.number):
        return f"veto: experiment {number} is not on the branch ({verdict})"
    if what in ("skip", "veto") and e.ending:
        return f"{what}: experiment {number} is ending already ({e.ending})"
    return ""


def skip(night: Night, event: ev.Requested, number: int) -> Night:
    return night.change(number, ending=SKIPPED)


def accept(night: Night, event: ev.Requested, number: int) -> Night:
    """It is undecided again, and will be put onto the incumbent of that moment."""
    order = tuple(n for n in night.order if n != number)
    night = replace(night, order=order, undecided=(*night.undecided, number))
    return night.change(number, state="detached", verdict=None, published="", accepted=True)


def veto(night: Night, event: ev.Requested, number: int) -> Night:
    """Off the branch at once, with all that was kept on top of it; what of that is left is an experiment of its own."""
    if number in night.undecided:
        return night.change(number, ending=VETOED)
    holder, night = holding(night, number), vetoed(night, number)
    if holder in night.undecided:
        night = night.change(holder, ending=f"made again without #{number}, which the person vetoed")
        return put_on_again(night, event.at, night.experiments[holder].parts, number)
    chain = list(night.kept.items())
    at = [n for _, n in chain].index(holder)
    gone = [n for _, n in chain[at:]]
    for n in gone:
        night = taken_off(night, n, number)
    night = replace(night, kept=dict(chain[:at]))
    for other in night.open:  # what waits for a trial of the old incumbent is judged again
        if other.state == "waiting":
            night = night.change(other.number, state="measured")
    on_it = [e for e in not_started(night) if e.parent not in night.kept]
    night = ask_again(night, event.at, f"the veto of #{number}", on_it)
    return put_on_again(night, event.at, [part for n in gone for part in night.experiments[n].origins], number)


def holding(night: Night, number: int) -> int:
    """The experiment that holds this one's change, and is on the branch or may come there; 0: there is none."""
    alive = [*night.kept.values(), *(e.number for e in night.open if e.parts and not e.ending)]
    return next((n for n in alive if number in (n, *night.experiments[n].parts)), 0)


def vetoed(night: Night, number: int) -> Night:
    verdict = night.experiments[number].verdict
    assert verdict is not None
    return night.change(number, verdict=verdict.model_copy(update={"kind": "vetoed", "reason": VETOED}))


def taken_off(night: Night, number: int, cause: int) -> Night:
    """It was kept on top of what is vetoed."""
    verdict = night.experiments[number].verdict
    if number == cause or verdict is None:
        return night
    reason = f"taken off the branch with #{cause}, which the person vetoed; it was kept as {verdict.reason}"
    return night.change(number, verdict=verdict.model_copy(update={"kind": "discard", "reason": reason}))


def put_on_again(night: Night, at: float, parts: Sequence[int], without: int) -> Night:
    """An experiment of the changes that were kept, without one of them."""
    left, number = tuple(part for part in parts if part != without), len(night.experiments)
    if not left:
        return night
    new = Experiment(number, parent=night.tip, created=at, state="detached", parts=left, without=without)
    return replace(night, experiments={**night.experiments, number: new}, undecided=(*night.undecided, number))


def left_out(night: Night, event: ev.Rebased) -> Night:
    """Of kept changes those that can't be put on without the vetoed one."""
    e = night.experiments[event.experiment]
    names = ", ".join(f"#{part}" for part in event.left_out)
    night = night.noted(event.at, f"#{e.number} is made without {names}: that can't be put on without #{e.without}")
    return night.change(e.number, parts=tuple(part for part in e.parts if part not in event.left_out))


def not_started(night: Night) -> list[Experiment]:
    """Asked for, or proposed already, but without a trial; of a proposer that reads what the person writes."""
    asked = [e for e in night.open if e.calls and not e.trials and e.state != "judged" and not e.ending]
    return [e for e in asked if night.reads and not e.talk[-1].fallback]


def ask_again(night: Night, at: float, since: str, older: Sequence[Experiment]) -> Night:
    """These proposals are older than what the person says now: each is asked for again."""
    for e in older:
        night = night.change(e.number, stale=since) if e.asking else not_used(night, e.number, at, since)
    return night


def not_used(night: Night, number: int, at: float, since: str) -> Night:
    """What was proposed is not tried, though it was paid for."""
    e = night.experiments[number]
    if night.tried.get(e.fingerprint) == number:
        night = replace(night, tried={mark: n for mark, n in night.tried.items() if mark != e.fingerprint})
    replies = [call.reply.usd for call in e.talk if call.reply]
    if replies:
        cost = dollars(None if None in replies else sum(usd or 0.0 for usd in replies))
        night = night.noted(at, f"#{number} is asked for again: its proposal ({cost}) is older than {since}")
    gone = dict.fromkeys(("refused", "proposal", "category", "files", "fingerprint", "commit"), "")
    return night.change(number, state="ask", stale=since, wanted=0, **gone)


def passed_on(night: Night, number: int, suggestion: str) -> Night:
    """The question about this experiment holds this suggestion, or none."""
    if night.experiments[number].suggestion == suggestion:
        return night
    night = handed_back(night, number)
    waiting = list(night.suggestions)
    if suggestion in waiting:
        waiting.remove(suggestion)
    night = replace(night, suggestions=tuple(waiting)).change(number, suggestion=suggestion)
    for e in [e for e in night.open if e.asking and e.stale == SUGGESTED][len(waiting) :]:
        night = night.change(e.number, stale="")  # another one was asked for in its place
    return night


def handed_back(night: Night, number: int) -> Night:
    """The proposer can't be had for it: what the person suggested waits for the next proposal."""
    e = night.experiments[number]
    if not e.suggestion:
        return night
    return replace(night, suggestions=(e.suggestion, *night.suggestions)).change(number, suggestion="")
