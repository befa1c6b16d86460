"""URLs of object storage, and servers' addresses: what is refused before anything is asked."""

import os

from distgan.errors import UserError


def holds_credentials(url: str) -> bool:
    """Whether a URL names a user or password before its host or bucket."""
    _, separator, rest = url.partition("://")
    return bool(separator) and "@" in rest.partition("/")[0]


def check_url(url: str) -> None:
    """Raises `UserError` for one that names no place, and for one with credentials."""
    scheme, _, rest = url.partition("://")
    if holds_credentials(url):
        raise UserError(
            f"a {scheme}:// URL has credentials in it; take them out: they come from the "
            "environment, a profile or a mounted file only"
        )
    if "://" in rest:
        raise UserError(f"{url} has an address in an address; a bucket has a bare name")
    if not rest.partition("/")[0]:
        raise UserError(f"{url!r} names no bucket; write {scheme.lower()}://BUCKET/FOLDER")


def check_server(scheme: str, endpoint_url: str) -> None:
    """Raises `UserError` for an address in the environment that holds credentials, or is empty.

    Args:
        scheme: of the URLs that the server is asked for, in small letters.
        endpoint_url: of the configuration; else the environment may name the server.
    """
    names = [n for n in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if n in os.environ]
    for name in names:
        if holds_credentials(os.environ[name]):  # drivers quote it in their errors
            raise UserError(f"{name} has credentials in it; take them out: they would be of no use")
    is_given = endpoint_url or any(os.environ[name].strip() for name in names)
    if scheme == "s3" and names and not is_given:
        raise UserError(
            f"{names[0]} is empty, which would mean AWS; write the storage's address, or take it "
            "away"
        )
