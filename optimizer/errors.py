"""Errors that a user can act on: one line that names what is wrong and what to do."""


class OnnxpressError(Exception):
    """The work could not be done; the message is one line for the user. Exit code 1."""

    exit_code = 1


class UsageError(OnnxpressError):
    """The request itself is wrong: an unknown option, key, name or value. Exit code 2."""

    exit_code = 2
