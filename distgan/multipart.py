"""Uploads of large objects to S3 in parts, each retried on its own; nothing half-done stays."""

import base64
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from distgan.errors import DistganError
from distgan.retries import Retrier, in_parallel
from distgan.storage_errors import describe

if TYPE_CHECKING:
    from distgan.object_store import ObjectStore

LONGEST_ABORT_S = 10.0
"""Budget for calling an upload off: the storage is likely down when that is needed."""
MOST_PARTS = 10_000

_log = logging.getLogger(__name__)


def upload_in_parts(store: "ObjectStore", url: str, data: bytes) -> None:
    """Writes an object that readers see only once it is complete.

    Raises:
        StorageError: a part failed for longer than the budget; the upload was called off.
        UserError: the server refused it.
    """
    upload = store.s3_call("create_multipart_upload", url)["UploadId"]
    try:
        step = max(store.part_bytes, -(-len(data) // MOST_PARTS))
        starts = range(0, len(data), step)
        view = memoryview(data)

        def send(start: int, retrier: Retrier) -> dict[str, Any]:
            return _send_part(store, url, upload, start // step, bytes(view[start:start + step]),
                              retrier)  # fmt: skip

        parts = in_parallel(
            send, starts, limit=store.config.max_concurrency, budget_s=store.config.retry_seconds
        )
        _complete(store, url, upload, parts, len(data))
    except BaseException:
        _abort(store, url, upload)
        raise


def _send_part(
    store: "ObjectStore", url: str, upload: str, index: int, part: bytes, retrier: Retrier
) -> dict[str, Any]:
    md5 = base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
    answer = store.s3_call(
        "upload_part",
        url,
        size=len(part),
        retrier=retrier,
        UploadId=upload,
        PartNumber=index + 1,
        Body=part,
        ContentMD5=md5,
    )
    return {"PartNumber": index + 1, "ETag": answer["ETag"]}


def _complete(
    store: "ObjectStore", url: str, upload: str, parts: list[dict[str, Any]], size: int
) -> None:
    try:
        store.s3_call(
            "complete_multipart_upload", url, UploadId=upload, MultipartUpload={"Parts": parts}
        )
    except FileNotFoundError:
        # An earlier attempt may have completed it although its answer was lost.
        if store.facts(url).size != size:
            raise


def _abort(store: "ObjectStore", url: str, upload: str) -> None:
    budget_s = min(LONGEST_ABORT_S, store.config.retry_seconds)
    try:
        store.s3_call("abort_multipart_upload", url, retrier=Retrier(budget_s), UploadId=upload)
    except FileNotFoundError:
        return  # completed or gone
    except (DistganError, OSError) as error:
        _log.warning(
            "an unfinished upload of %s stays in the storage (%s): remove it by hand or by a rule "
            "of the bucket for incomplete multipart uploads", url, describe(error),
        )  # fmt: skip
