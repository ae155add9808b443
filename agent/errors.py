"""The few exceptions that steer control flow. Their text is one line and says what to do next."""

from agent.records import Reply


class Stop(Exception):
    """The night ends: nothing new is begun, what runs is finished or interrupted. Its text says why."""


class Failure(Exception):
    """The person must do something: shown as one line, exit code 2."""


class MachineFault(Exception):
    """The machine failed, not the code under test: no verdict is given. One line; the same command goes on later."""


class ProgramError(Failure):
    """program.md does not say what it must, or the repository does not hold what it names."""


class ProposerError(Failure):
    """No proposal can be had from this proposer; `final` when asking again can't help."""

    reply: Reply | None = None
    """What was paid for all the same: a reply that was cut off or refused, never to be applied."""

    def __init__(self, message: str, final: bool = False):
        super().__init__(message)
        self.final = final


class EditError(Failure):
    """A reply that can't be turned into a change; the text goes back to the proposer."""
