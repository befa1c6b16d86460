"""Trials in TensorBoard's HParams, read back as TensorBoard's own plugin reads them."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from distgan.metrics.writer import MetricsWriter, write_hparams, write_hparams_overview

METRIC = "quality/proxy_frechet_ema"
LR = "optim.generator.lr"


def shown(folder: Path) -> tuple[api_pb2.Experiment, list[api_pb2.SessionGroup]]:
    """The columns and rows that TensorBoard's HParams table shows for a folder."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = Context(TBContext(data_provider=provider))
    request_context = RequestContext()
    metadata = context.hparams_metadata(request_context, "")
    experiment = context.experiment_from_metadata(request_context, "", True, metadata, [])
    columns = [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    columns += [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    request = api_pb2.ListSessionGroupsRequest(
        col_params=columns,
        allowed_statuses=list(api_pb2.Status.values()),
        start_index=0,
        slice_size=100,
        include_metrics=True,
        aggregation_type=api_pb2.AGGREGATION_AVG,
    )
    handler = Handler(request_context, context, "", request)
    return experiment, list(handler.run().session_groups)


def write_trial(folder: Path, name: str, *, group: str, lr: float, value: float) -> None:
    run_dir = folder / "trials" / name
    with MetricsWriter(str(run_dir)) as writer:
        writer.scalars(4, {METRIC: value + 1, "loss/generator": 1.0})
    write_hparams(
        str(run_dir),
        {LR: lr, "model.attention.kind": "self", "data.random_stride": True, "levels": [8, 16]},
        group=group,
        step=8,
        values={METRIC: value},
        succeeded=True,
    )


def test_the_table_has_a_row_a_group_with_hyperparameters_and_final_metrics(tmp_path: Path) -> None:
    write_trial(tmp_path, "a", group="g0", lr=1e-3, value=5.0)
    write_trial(tmp_path, "b", group="g0", lr=1e-3, value=7.0)
    write_trial(tmp_path, "c", group="g1", lr=1e-4, value=9.0)
    write_hparams_overview(
        str(tmp_path), {LR: [1e-3, 1e-3, 1e-4], "model.attention.kind": ["self"]}, [METRIC]
    )
    experiment, groups = shown(tmp_path)
    assert [info.name for info in experiment.hparam_infos] == [LR, "model.attention.kind"]
    assert experiment.hparam_infos[0].differs and not experiment.hparam_infos[1].differs
    assert experiment.hparam_infos[0].domain_interval.min_value == 1e-4
    assert [info.name.tag for info in experiment.metric_infos] == [METRIC]
    rows = {group.name: group for group in groups}
    assert rows["g0"].hparams[LR].number_value == 1e-3
    assert rows["g0"].hparams["data.random_stride"].bool_value is True
    assert rows["g0"].hparams["levels"].string_value == "[8, 16]"
    assert len(rows["g0"].sessions) == 2
    assert rows["g0"].metric_values[0].value == 6.0  # the mean over its seeds' final values
    assert rows["g1"].metric_values[0].value == 9.0


def test_a_failed_trial_is_shown_as_failed(tmp_path: Path) -> None:
    write_hparams(str(tmp_path / "a"), {LR: 1.0}, group="a", step=0, values={}, succeeded=False)
    _, [group] = shown(tmp_path)
    assert group.sessions[0].status == api_pb2.STATUS_FAILURE


def test_writing_again_changes_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trial(tmp_path, "a", group="g0", lr=1e-3, value=5.0)
    [file] = (tmp_path / "trials" / "a" / "tensorboard").glob("*hparams")
    before = file.stat()
    write_trial(tmp_path, "a", group="g0", lr=1e-3, value=5.0)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    write_trial(tmp_path, "a", group="g0", lr=1e-3, value=4.0)
    _, [group] = shown(tmp_path)
    assert group.metric_values[-1].value == 4.0


def test_it_sorts_after_every_other_event_file(tmp_path: Path) -> None:
    write_trial(tmp_path, "a", group="g0", lr=1e-3, value=5.0)
    names = sorted(p.name for p in (tmp_path / "trials" / "a" / "tensorboard").iterdir())
    assert len(names) == 2 and names[-1] == "events.out.tfevents.hparams"
