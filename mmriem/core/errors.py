"""The one exception that mmriem raises for what a user can put right."""


class RiemError(RuntimeError):
    """Bad input, told in one sentence: the file or key, what was expected, what was found, what to do.

    The command line tools print it without a traceback and exit with status 1.
    """


class Interrupted(RiemError):
    """The work could not go on, through no fault of what was asked for; what is finished is worth keeping."""
