"""Objects that of several writers one creates at most, also on servers that don't help with it."""

import contextlib
import errno
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from distgan.errors import UserError
from distgan.storage_errors import code_of

if TYPE_CHECKING:
    from distgan.object_store import ObjectStore


@contextlib.contextmanager
def creating(store: "ObjectStore", url: str) -> Iterator[Callable[[bytes], None]]:
    """Within, no other writer creates this small object; yields what does, to be called once.

    A server that knows conditional writes lets one writer in. Others ignore the condition; so each
    writer first leaves a claim beside and then looks: of two, the one that looks last sees the
    other's claim, or the object, and gives up (both may).

    Raises:
        FileExistsError: it is there, or another writer is at it.
    """
    folder, _, name = url.rpartition("/")
    claim = f"{name}.claim-{secrets.token_hex(8)}"

    def create(data: bytes) -> None:
        if not put_new(store, url, data):
            raise _exists(url)

    store.write(f"{folder}/{claim}", b"claimed")
    try:
        seen = [n for n in store.names(folder) if n == name or n.startswith(f"{name}.claim-")]
        if seen != [claim]:
            raise _exists(url)
        yield create
    finally:
        store.remove(f"{folder}/{claim}")


def put_new(store: "ObjectStore", url: str, data: bytes) -> bool:
    """Writes it, and says so, unless the server says that it is there with other bytes."""
    if not store.is_s3:
        store.write(url, data)
        return True
    try:
        store.s3_call("put_object", url, Body=data, IfNoneMatch="*")
    except UserError as error:
        code = code_of(error.__cause__ or error)
        if code in ("NotImplemented", "501"):
            store.write(url, data)
        elif code in ("PreconditionFailed", "412"):
            return store.read(url) == data  # by an attempt of ours whose answer was lost
        else:
            raise
    return True


def _exists(url: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there already, or about to be", url)
