"""What an object store's errors mean: bad input with a remedy, trouble that may pass, or a bug.

Drivers are told apart by the shape and names of their errors, so that none of them is imported
here. Only codes and class names are quoted from a server's answer, never its text: answers about
credentials repeat parts of them.
"""

import errno
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

from distgan.errors import DistganError, UserError

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
PASSING_CODES = frozenset(
    {
        "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
        "RequestTimeoutException", "ThrottlingException", "TooManyRequests", "OperationAborted",
        "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody", "ConditionalRequestConflict",
    }
)  # fmt: skip
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
"""Credentials that a mounted file or a role may have renewed since they were read."""

_PASSING_ERRNOS = frozenset(
    {
        errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT,
        errno.EBUSY, errno.ENETUNREACH, errno.EHOSTUNREACH,
    }
)  # fmt: skip
_PASSING_NAMES = frozenset(
    {
        # What happens on the wire: botocore's and aiohttp's bases (botocore's own ClientError, an
        # answer from the server, is judged by its code), and a body that stops half-way.
        "HTTPClientError", "ConnectionError", "ClientError", "ResponseParserError",
        "IncompleteReadError", "IncompleteRead", "FlexibleChecksumError", "ChecksumError",
        # Credentials that a service hands out, and it is down.
        "CredentialRetrievalError", "MetadataRetrievalError",
    }
)  # fmt: skip
_BAD_CREDENTIALS = frozenset({"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "401"})
_DENIED = frozenset(
    {"AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "403", "405"}
)
_OTHER_REGION = frozenset(
    {
        "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "301", "307",
        "IllegalLocationConstraintException",
    }
)  # fmt: skip
_CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or "
    "AWS_SHARED_CREDENTIALS_FILE for a mounted file"
)


_USER_INFO = re.compile(r"""(://)[^/\s"'@]*@""")


class PassingError(Exception):
    """Found here, not by a driver, and worth another attempt: a body of the wrong length, say."""


def code_of(error: BaseException) -> str:
    """The code in a server's answer, such as NoSuchKey or, without a body, 404; else empty."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def retry_after_s(error: BaseException) -> float:
    """Seconds that the server asked to wait (`Retry-After`, a number or a date), else 0."""
    headers = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    value = str(headers.get("retry-after", "")).strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def final_error(error: Exception, url: str, action: str, endpoint: str) -> Exception | None:
    """What to raise for an error of a driver; None if it may pass.

    Args:
        action: what was tried: "read", "write", "list", ...
        endpoint: the server's address, for the message.
    """
    if isinstance(error, PassingError):
        return None
    if isinstance(error, (DistganError, IsADirectoryError)):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    answer = _answer(error)
    if answer:
        return _judge_answer(error, answer, url, action, endpoint)
    if "NoCredentialsError" in names or "PartialCredentialsError" in names:
        return UserError(f"no credentials to {action} {url}: {_CREDENTIALS_REMEDY}")
    if "ProfileNotFound" in names:
        return UserError(
            f"can't {action} {url}: the profile that AWS_PROFILE names is in no configuration "
            "file; correct it, or name the file by AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE"
        )
    if "ParamValidationError" in names or "InvalidRegionError" in names:
        return UserError(f"can't {action} {url}: not a valid bucket, key or storage.region")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return UserError(
            f"can't {action} {url}: the certificate of {endpoint} is not trusted here; name the "
            "file of its authority by AWS_CA_BUNDLE"
        )
    if "WRONG_VERSION_NUMBER" in str(error):
        return _wrong_scheme(url, action, endpoint)
    if isinstance(error, PermissionError):
        return _denied(url, action, type(error).__name__)
    if isinstance(error, FileNotFoundError):
        return _nothing_there(url)
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
        return UserError(f"can't {action} {url}: AWS_ENDPOINT_URL is not a URL of a server")
    if isinstance(error, NotImplementedError):
        return UserError(f"can't {action} {url}: its scheme has no such operation")
    return None if _may_pass(error, names) else error


def hide_credentials(text: str) -> str:
    """A text without the users and passwords of the URLs in it."""
    return _USER_INFO.sub(r"\1***@", text)


def describe(error: BaseException) -> str:
    """One line about a cause, without anything that a server said in words."""
    answer = _answer(error)
    if answer:
        return f"{code_of(error) or 'no code'} (HTTP {_status(answer)})"
    text = hide_credentials(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _judge_answer(
    error: Exception, answer: dict[str, Any], url: str, action: str, endpoint: str
) -> Exception | None:
    code, status = code_of(error), _status(answer)
    if code in PASSING_CODES | EXPIRED_CODES or status in PASSING_STATUS:
        return None
    if code == "NoSuchBucket":
        bucket = url.partition("://")[2].partition("/")[0]
        return UserError(
            f"can't {action} {url}: there is no bucket {bucket!r} at {endpoint}; create it, or "
            "correct the URL or storage.endpoint_url"
        )
    if code in _BAD_CREDENTIALS:
        return UserError(
            f"can't {action} {url}: the server refused the credentials ({code}); "
            f"{_CREDENTIALS_REMEDY}"
        )
    if code in _OTHER_REGION:
        return UserError(f"can't {action} {url} ({code}): set storage.region to the bucket's own")
    if code == "400" and endpoint.startswith("http:"):  # what TLS servers say to it
        return _wrong_scheme(url, action, endpoint)
    if code == "RequestTimeTooSkewed":
        return UserError(f"can't {action} {url}: the server says that this machine's clock is off")
    if code in _DENIED:
        return _denied(url, action, code)
    if isinstance(error, FileNotFoundError) or status == 404:
        return _nothing_there(url)
    return UserError(
        f"can't {action} {url}: the server refused the request ({describe(error)}); S3-compatible "
        "stores may need storage.checksums=when_required or storage.addressing=path"
    )


def _wrong_scheme(url: str, action: str, endpoint: str) -> UserError:
    speaks = "https, not http" if endpoint.startswith("http:") else "http, not https"
    return UserError(
        f"can't {action} {url}: {endpoint} seems to speak {speaks}; correct storage.endpoint_url "
        "(or AWS_ENDPOINT_URL)"
    )


def _nothing_there(url: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such object", url)


def _denied(url: str, action: str, code: str) -> UserError:
    if action in ("read", "list"):
        remedy = "let these credentials read it (s3:GetObject and s3:ListBucket), or use others"
    else:
        remedy = (
            "it is read-only for these credentials; choose another place, or grant them "
            "s3:PutObject and s3:DeleteObject"
        )
    return UserError(f"can't {action} {url}: denied ({code}); {remedy}")


def _may_pass(error: Exception, names: set[str]) -> bool:
    if names & _PASSING_NAMES or isinstance(error, (TimeoutError, ConnectionError, EOFError)):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    # HTTP errors of other drivers carry the status as a number.
    return any(getattr(error, name, None) in PASSING_STATUS for name in ("status", "code"))


def _answer(error: BaseException) -> dict[str, Any]:
    """A botocore error's parsed answer, also where s3fs has wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        answer = getattr(seen, "response", None)
        if isinstance(answer, dict) and "Error" in answer:
            return answer
        seen = seen.__cause__
    return {}


def _status(answer: dict[str, Any]) -> int:
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(answer["Error"].get("Code", ""))
    return int(status or (code if code.isdigit() else 0))
