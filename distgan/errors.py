"""The errors that reach users, each with the exit code that `launch.py` ends with."""

import errno

# Errors of local files that are the user's to mend; others are faults and keep their traceback.
_REMEDIES = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EROFS: "it is read-only; choose another folder",
    errno.EACCES: "choose another folder, or let this user read and write there",
    errno.EPERM: "choose another folder, or let this user read and write there",
    errno.EEXIST: "a file is where a folder is needed; choose another folder",
    errno.ENOENT: "no such file or folder is there, nor can be made; choose another one",
    errno.ENOTDIR: "a file is where a folder is needed; choose another folder",
    errno.EISDIR: "a folder is where a file is needed; move it away",
    errno.ENAMETOOLONG: "choose a shorter one",
}


class DistganError(Exception):
    """Base of all errors that end a command with one clear message and no traceback."""

    exit_code = 1


class UserError(DistganError):
    """Bad input: the message names the value, the place and the remedy."""

    exit_code = 2


class StorageError(DistganError):
    """Object storage failed for longer than `storage.retry_seconds`, or a disk did; it may pass."""


class TooLargeError(UserError):
    """A file has more bytes than its reader takes."""


class DivergedError(DistganError):
    """Training left the region it can come back from; a rerun must not retry it blindly."""

    exit_code = 3


class NonFiniteError(DivergedError):
    """A gradient is not finite: the network was not updated, on no rank. It may pass."""


def kind_of(error: DistganError) -> str:
    """The name of the nearest class in this module, which is all that another process knows."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == __name__)
    return next(kinds).__name__


def of_kind(name: str, message: str) -> DistganError:
    """The error that another process told of by its `kind_of` and its text."""
    error: DistganError = globals()[name](message)
    return error


def for_user(error: OSError) -> UserError | None:
    """What to tell of a local file that the user can mend; None of any other fault."""
    if error.errno not in _REMEDIES:
        return None
    place = error.filename or "a file"
    return UserError(f"{place}: {error.strerror}; {_REMEDIES[error.errno]}")
