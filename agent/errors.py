"""The few exceptions that steer control flow. Their text is one line and says what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.records import Reply


class Failure(Exception):
    """The person must do something: shown as one line, exit code 2."""


class MachineFault(Exception):
    """The machine failed, not the code under test: no verdict is given. One line; the same command goes on later."""


class ProgramError(Failure):
    """program.md does not say what it must, or the repository does not hold what it names."""


class ProposerError(Failure):
    """No proposal can be had from this proposer now. The fields say what kind of failure it is."""

    def __init__(
        self,
        message: str,
        final: bool = False,
        *,
        status: int = 0,
        retry_after: float | None = None,
        too_long: bool = False,
        exhausted: bool = False,
        reply: Reply | None = None,
    ):
        super().__init__(message)
        self.final = final
        """Asking again can't help before a person, or time, changes something: the key, credit, the model's name."""
        self.status = status
        """HTTP status, 0 where there is none. 401: the key, 402: no credit, 403: not allowed, 404: no such model."""
        self.retry_after = retry_after
        """Seconds that the server asks to wait; None: it asked for nothing."""
        self.too_long = too_long
        """The request does not fit the model's context: a shorter one may (context.shorter)."""
        self.exhausted = exhausted
        """It has nothing more to propose, whatever time brings."""
        self.reply = reply
        """What was paid for all the same: a reply that was cut off or refused, never to be applied."""


class EditError(Failure):
    """A reply that can't be turned into a change; the text goes back to the proposer."""
