"""Where a run's numbers and pictures go: metrics.jsonl for scripts, TensorBoard for eyes.

The only module that imports TensorBoard. Legend: N clips, T frames, H height, W width.
"""

import io
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter

from distgan import storage
from distgan.errors import StorageError, UserError
from distgan.metrics.spool import UploadedFolder
from distgan.pictures import encode_gif, enlarge, grid

METRICS_NAME = "metrics.jsonl"
EVENTS_NAME = "tensorboard"
_FLUSH_INTERVAL_S = 10
_ROLL_BYTES = 8_000_000  # an event file on object storage ends there: growing means uploading again
_HPARAMS_FILE = "events.out.tfevents.hparams"  # letters sort after the digits of the others
_EVENTS_VERSION = "brain.Event:2"
_LEAST_VIDEO_SIZE = 256  # pixels; TensorBoard shows small pictures too small


def tensorboard_command(run_dir: str) -> str:
    """What to type to look at a run: this environment's TensorBoard, quoted for the shell."""
    program = Path(sys.executable).with_name("tensorboard")
    return shlex.join([str(program), "--logdir", run_dir])


class MetricsWriter:
    """Appends to a run folder's `metrics.jsonl` and to the event files in `tensorboard/`.

    The keys of `metrics.jsonl` equal TensorBoard's tags. On resume both forget what came after the
    checkpoint, so that a run reads as if it had never stopped. A run folder on object storage gets
    both every `storage.upload_interval_seconds`, at every `upload` and at the end.
    """

    def __init__(self, run_dir: str, start_step: int = 0) -> None:
        """Opens both, keeping what earlier starts wrote up to and with `start_step`.

        Raises:
            UserError: metrics.jsonl is damaged elsewhere than in its last line.
            StorageError: what earlier starts wrote can't be fetched from object storage.
        """
        self._spool: UploadedFolder | None = None
        folder = storage.local_path(run_dir) if storage.is_local(run_dir) else self._fetch(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_NAME
        _cut_back(str(path), start_step)
        self._metrics = path.open("a", encoding="utf-8")
        self._events_folder = str(folder / EVENTS_NAME)
        self._events = EventFileWriter(self._events_folder, flush_secs=_FLUSH_INTERVAL_S)
        self._events_bytes = 0
        # TensorBoard drops what earlier event files hold from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(start_step + 1, session_log=start)

    def _fetch(self, run_dir: str) -> Path:
        """A local folder that is uploaded from now on, with the metrics of earlier starts."""
        there = storage.join(run_dir, METRICS_NAME)
        found = storage.exists(there)
        before = storage.read_bytes(there, max_bytes=None) if found else b""
        self._spool = UploadedFolder(run_dir, storage.options().upload_interval_seconds)
        (self._spool.path / METRICS_NAME).write_bytes(before)
        return self._spool.path

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of numbers, readable by others at once. NaN and infinities become strings.

        Raises:
            DistganError: an upload to object storage failed meanwhile.
        """
        if self._spool is not None:
            self._spool.check()
        numbers = {tag: float(value) for tag, value in values.items()}
        line = {"step": step} | {tag: _to_json(value) for tag, value in numbers.items()}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()
        scalars = [summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in numbers.items()]
        self._add(step, summary=summary_pb2.Summary(value=scalars))

    def video(
        self, tag: str, step: int, clips: NDArray[np.uint8], frame_rate_hz: float = 8.0
    ) -> None:
        """Clips, uint8 RGB (N, T, H, W, 3), as one animated GIF, side by side."""
        frames = enlarge(grid(clips), _LEAST_VIDEO_SIZE)
        self._add_picture(tag, step, frames.shape[1:3], encode_gif(frames, frame_rate_hz))

    def image(self, tag: str, step: int, picture: NDArray[np.uint8]) -> None:
        """A still picture, uint8 RGB (H, W, 3)."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        self._add_picture(tag, step, picture.shape[:2], buffer.getvalue())

    def text(self, tag: str, text: str) -> None:
        """A text in Markdown, at step 0, such as the run's configuration."""
        self._add(0, summary=text_pb(tag, text))

    def flush(self) -> None:
        """Returns when all that was written is in the files."""
        self._metrics.flush()
        self._events.flush()

    def upload(self) -> None:
        """Returns when all that was flushed is in the run's folder; also from another thread.

        Raises:
            DistganError: it can't be written there.
        """
        if self._spool is not None:
            self._spool.upload()

    def close(self, *, upload: bool = True) -> None:
        """Flushes and closes; twice does no harm. `upload`: on object storage, send the rest."""
        if not self._metrics.closed:
            self._metrics.close()
            self._events.close()
            if self._spool is not None:
                self._spool.close(upload=upload)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # Storage that has just failed for long would only fail for as long again.
        self.close(upload=kind is None or not issubclass(kind, StorageError))

    def _add_picture(self, tag: str, step: int, size: tuple[int, ...], data: bytes) -> None:
        # An image summary holds any encoded picture; browsers play a GIF there.
        image = summary_pb2.Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=data
        )
        value = summary_pb2.Summary.Value(tag=tag, image=image)
        self._add(step, summary=summary_pb2.Summary(value=[value]))

    def _add(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        if self._spool is not None and self._events_bytes > _ROLL_BYTES:
            self._events.close()
            self._events = EventFileWriter(self._events_folder, flush_secs=_FLUSH_INTERVAL_S)
            self._events_bytes = 0
        self._events_bytes += event.ByteSize()
        self._events.add_event(event)


def write_hparams(
    run_dir: str,
    hparams: Mapping[str, Any],
    *,
    group: str,
    step: int,
    values: Mapping[str, float],
    succeeded: bool,
) -> None:
    """Shows an ended run in TensorBoard's HParams, by an event file of its own beside the others.

    TensorBoard reads a run's event files in the order of their names and never goes back, so this
    one sorts last, and a run that still trains must not get it. Written again, it is replaced.

    Args:
        hparams: what the run was given; lists become texts.
        group: runs of one group, that differ only in their seed, share a row.
        step, values: the metrics that count, as the run's last scalars.
    """
    start = plugin_data_pb2.SessionStartInfo(group_name=group)
    for name, value in hparams.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = str(value)
    status = api_pb2.STATUS_SUCCESS if succeeded else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status)
    scalars = [summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in values.items()]
    started = plugin_data_pb2.HParamsPluginData(session_start_info=start)
    ended = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    summaries = [
        _hparams_summary(metadata.SESSION_START_INFO_TAG, started),
        summary_pb2.Summary(value=scalars),
        _hparams_summary(metadata.SESSION_END_INFO_TAG, ended),
    ]
    _write_hparams_file(run_dir, step, summaries)


def write_hparams_overview(
    folder: str, domains: Mapping[str, Sequence[Any]], metrics: Sequence[str]
) -> None:
    """Names the columns of TensorBoard's HParams table over all runs below `folder`.

    Args:
        domains: hyperparameter -> the values that the runs have.
        metrics: tags of the scalars that are shown beside them.
    """
    experiment = api_pb2.Experiment(
        hparam_infos=[_hparam_info(name, values) for name, values in domains.items()],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics],
    )
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    summary = _hparams_summary(metadata.EXPERIMENT_TAG, content)
    _write_hparams_file(folder, 0, [summary])


def _hparam_info(name: str, values: Sequence[Any]) -> api_pb2.HParamInfo:
    """The column of one hyperparameter: a range of numbers, or the values that it takes."""
    info = api_pb2.HParamInfo(name=name, differs=len({str(value) for value in values}) > 1)
    if all(isinstance(value, bool) for value in values):
        info.type = api_pb2.DATA_TYPE_BOOL
        info.domain_discrete.extend(sorted(set(values)))
    elif all(isinstance(value, int | float) for value in values):
        info.type = api_pb2.DATA_TYPE_FLOAT64
        info.domain_interval.min_value = min(values)
        info.domain_interval.max_value = max(values)
    else:
        info.type = api_pb2.DATA_TYPE_STRING
        info.domain_discrete.extend(sorted({str(value) for value in values}))
    return info


def _hparams_summary(tag: str, content: plugin_data_pb2.HParamsPluginData) -> summary_pb2.Summary:
    value = summary_pb2.Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR
    )
    return summary_pb2.Summary(value=[value])


def _write_hparams_file(run_dir: str, step: int, summaries: Sequence[summary_pb2.Summary]) -> None:
    """An event file in one write, on disk as on object storage; none if it is there already."""
    path = storage.join(run_dir, EVENTS_NAME, _HPARAMS_FILE)
    there = storage.read_bytes(path) if storage.exists(path) else b""
    if all(summary.SerializeToString() in there for summary in summaries):
        return
    buffer, now = io.BytesIO(), time.time()
    writer = RecordWriter(buffer)
    writer.write(event_pb2.Event(wall_time=now, file_version=_EVENTS_VERSION).SerializeToString())
    for summary in summaries:
        event = event_pb2.Event(wall_time=now, step=step, summary=summary)
        writer.write(event.SerializeToString())
    storage.write_bytes(path, buffer.getvalue())


def read_metrics(path: str) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, oldest first, `step` first in each.

    The strings "nan", "inf" and "-inf" become floats again. A half-written last line is left out.

    Raises:
        UserError: another line is damaged.
    """
    return [
        {tag: float(value) if isinstance(value, str) else value for tag, value in line.items()}
        for line in map(json.loads, _whole_lines(path))
    ]


def _cut_back(path: str, step: int) -> None:
    """Rewrites metrics.jsonl without lines after `step` and without a half-written last one."""
    if not storage.exists(path):
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
    data = b"".join(line + b"\n" for line in kept)
    if data != storage.read_bytes(path):
        storage.write_bytes(path, data)


def _whole_lines(path: str) -> list[bytes]:
    """All lines but a half-written last one, each checked to be a JSON object with a step."""
    lines = storage.read_bytes(path).split(b"\n")[:-1]  # what follows the last newline is half
    for number, line in enumerate(lines, start=1):
        try:
            whole = isinstance(json.loads(line)["step"], int)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise UserError(f"{path}, line {number} is damaged: delete that line and start again")
    return lines


def _to_json(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are written as "nan", "inf", "-inf"."""
    return value if math.isfinite(value) else str(value)
