"""What a worker of `prepare` does with each of some files: cause, seconds and memory, as JSON."""

import json
import sys
import tempfile
import time
from pathlib import Path

from distgan.config import PrepareConfig
from distgan.data.prepare_video import ClipSettings, prepare_video
from distgan.data.spooling import VideoJob, open_spool


def peak_bytes() -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    settings = ClipSettings(prepare=PrepareConfig(), resolution=16, stored_frames=8)
    for number, path in enumerate(map(Path, sys.argv[1:])):
        with tempfile.TemporaryDirectory() as folder:
            spool = str(Path(folder, "spool.tar"))
            job = VideoJob(number=number, root=str(path.parent), path=path.name, spool=spool)
            forget_peak()
            before, start, cpu = peak_bytes(), time.monotonic(), time.process_time()
            prepare_video(job, settings)
            taken_s, cpu_s = time.monotonic() - start, time.process_time() - cpu
            grown = peak_bytes() - before
            with open_spool(spool) as reader:
                outcome = reader.outcome
        facts = {
            "seconds": taken_s,
            "cpu_seconds": cpu_s,
            "grown": grown,
            "clips": outcome.counts.get("clips", 0),
        }
        print(json.dumps(facts | {"cause": outcome.cause, "detail": outcome.detail}), flush=True)


if __name__ == "__main__":
    main()
