"""Files that grow, for object storage, where nothing can: kept here, uploaded again and again."""

import threading
import time

from distgan import storage
from distgan.errors import DistganError
from distgan.temporary import TemporaryFolder

LARGEST_SHARE = 0.05
"""Of the time may go into uploads in the background: a long file is uploaded less often."""


class UploadedFolder:
    """A local folder whose append-only files are copied below a URL, at intervals and on demand."""

    def __init__(self, url: str, interval_s: float) -> None:
        self.url, self.interval_s = url, interval_s
        self._folder = TemporaryFolder()
        self.path = self._folder.path / "files"
        self.path.mkdir()
        self._uploaded: dict[str, int] = {}  # bytes of each file in storage
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._error: DistganError | OSError | None = None
        # A daemon: the end of the program waits for `close`, never for this.
        self._thread = threading.Thread(target=self._keep_uploading, name="uploads", daemon=True)
        self._thread.start()

    def upload(self) -> None:
        """Returns when all that is in the files is in storage too.

        Raises:
            DistganError: it can't be written there.
        """
        with self._lock:
            for file in sorted(path for path in self.path.rglob("*") if path.is_file()):
                name = file.relative_to(self.path).as_posix()
                data = file.read_bytes()
                if self._uploaded.get(name) != len(data):
                    storage.write_bytes(storage.join(self.url, name), data)
                    self._uploaded[name] = len(data)

    def check(self) -> None:
        """Raises what went wrong in the background since: no loss of metrics stays unsaid."""
        if self._error is not None:
            raise self._error

    def close(self, *, upload: bool = True) -> None:
        """Uploads the rest, unless told otherwise, and removes the local files."""
        self._closing.set()
        try:
            if upload:
                self.upload()
        finally:
            self._folder.remove()

    def _keep_uploading(self) -> None:
        wait_s = self.interval_s
        while not self._closing.wait(wait_s):
            start = time.monotonic()
            try:
                self.upload()
            except (DistganError, OSError) as error:
                if not self._closing.is_set():  # else its files have just gone
                    self._error = error
                return
            wait_s = max(self.interval_s, (time.monotonic() - start) / LARGEST_SHARE)
