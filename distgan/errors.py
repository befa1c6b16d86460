"""The errors that reach users, each with the exit code that `launch.py` ends with."""


class DistganError(Exception):
    """Base of all errors that end a command with one clear message and no traceback."""

    exit_code = 1


class UserError(DistganError):
    """Bad input: the message names the value, the place and the remedy."""

    exit_code = 2


class StorageError(DistganError):
    """Object storage failed for longer than `storage.retry_seconds`."""


class TooLargeError(UserError):
    """A file has more bytes than its reader takes."""


class DivergedError(DistganError):
    """Training left the region it can come back from; a rerun must not retry it blindly."""

    exit_code = 3


class NonFiniteError(DivergedError):
    """A gradient is not finite: the network was not updated, on no rank. It may pass."""
