"""What can go wrong, as one line each; the classes carry the exit codes of docs/trust.md."""


class GacdError(Exception):
    """An error that the user can mend.

    Args:
        what: what is wrong.
        where: the file, option or index it concerns.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: object = "", fix: str = ""):
        line = what + (f": {where}" if str(where) else "") + (f" ({fix})" if fix else "")
        super().__init__(" ".join(line.split()))


class InputError(GacdError, ValueError):
    """A wrong value, file, data set or device."""


class NotFinite(InputError):
    """A network whose logits or gradients are NaN or infinite."""


class Suspect(GacdError):
    """An evaluation that the audits have doubts about."""

    exit_code = 3


class Invalid(GacdError):
    """An evaluation whose number means nothing."""

    exit_code = 4


class UsageError(GacdError):
    """A wrong command line or configuration."""

    exit_code = 2


class Locked(GacdError):
    """Another process owns the run directory; try later."""

    exit_code = 75


class Diverged(GacdError):
    """The loss or a gradient is not finite; the weights are as they were before the step."""

    exit_code = 80


class Stopped(GacdError):
    """Ended by a signal after saving: 130 for Ctrl-C, 143 for SIGTERM, 129 for a hang-up."""

    def __init__(self, signal: int, where: object):
        self.exit_code = 128 + signal
        super().__init__("stopped, saved", where, "the same command goes on from here")
