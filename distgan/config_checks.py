"""The rules that span several configuration keys; each message names the key to change."""

from distgan import storage
from distgan.addresses import holds_credentials
from distgan.attention_checks import check_attention
from distgan.config import Config
from distgan.errors import UserError
from distgan.storage_errors import hide_credentials

PROXY_METRIC = "quality/proxy_frechet_ema"
STOP_METRICS = (
    PROXY_METRIC, "loss/generator", "loss/discriminator", "score/sign", "penalty/r1", "penalty/r2",
)  # fmt: skip


def needed_stored_frames(config: Config) -> int:
    """Frames that a stored clip must have for the clips that training takes from it."""
    return (config.data.clip_frames - 1) * config.data.frame_stride + 1


def stored_frames(config: Config) -> int:
    """Frames that prepare stores per clip."""
    return config.prepare.stored_frames or needed_stored_frames(config)


def check_config(config: Config) -> None:
    """Raises `UserError` for the first impossible combination."""
    _check_shapes(config)
    check_attention(config)
    _check_batch(config)
    _check_storage(config)
    _check_rest(config)


def _check_shapes(config: Config) -> None:
    data, model = config.data, config.model
    for name, channels in (
        ("generator", model.generator.channels),
        ("discriminator", model.discriminator.channels),
    ):
        if not channels or any(width < 1 for width in channels):
            raise UserError(f"model.{name}.channels={list(channels)} must list positive widths")
        stride = model.patch * 2 ** (len(channels) - 1)
        if data.resolution % stride:
            raise UserError(
                f"data.resolution={data.resolution} is not a multiple of {stride}, the stride of "
                f"the {name} (model.patch={model.patch} and {len(channels)} levels in "
                f"model.{name}.channels); change one of them"
            )
        if model.temporal_levels >= len(channels):
            raise UserError(
                f"model.temporal_levels={model.temporal_levels} must be less than the number of "
                f"levels in model.{name}.channels={list(channels)}"
            )
    frames_stride = 2**model.temporal_levels
    if data.clip_frames % frames_stride:
        raise UserError(
            f"data.clip_frames={data.clip_frames} is not a multiple of {frames_stride}, which "
            f"model.temporal_levels={model.temporal_levels} needs; change one of them"
        )
    needed = needed_stored_frames(config)
    if stored_frames(config) < needed:
        raise UserError(
            f"prepare.stored_frames={config.prepare.stored_frames} is less than the {needed} frames"
            f" that data.clip_frames={data.clip_frames} at data.frame_stride={data.frame_stride}"
            " span; raise it, or set it to 0"
        )


def _check_batch(config: Config) -> None:
    train, data = config.train, config.data
    if train.batch_size % data.lanes:
        raise UserError(
            f"train.batch_size={train.batch_size} is not a multiple of data.lanes={data.lanes}; "
            "change one of them"
        )
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.batch_size={train.batch_size} is not a multiple of "
            f"train.accumulation={train.accumulation}; change one of them"
        )
    if data.num_workers > data.lanes:
        raise UserError(
            f"data.num_workers={data.num_workers} is more than data.lanes={data.lanes}: each "
            "worker reads whole lanes; lower it"
        )


def _check_storage(config: Config) -> None:
    """Saved with every run, so these keys must hold no password; the messages repeat none."""
    endpoint = config.storage.endpoint_url
    if "@" in endpoint:
        raise UserError(
            "storage.endpoint_url holds credentials; take them out: they come from the environment,"
            " a profile or a mounted file only"
        )
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError(f"storage.endpoint_url={endpoint} must start with http:// or https://")
    if config.data.cache_dir and not storage.is_local(config.data.cache_dir):
        where = hide_credentials(config.data.cache_dir)
        raise UserError(f"data.cache_dir={where} is a URL; give a folder on a local disk")
    for key, url in (
        ("run.dir", config.run.dir),
        ("run.init_from", config.run.init_from),
        ("data.shards", config.data.shards),
    ):
        if holds_credentials(url):
            raise UserError(
                f"{key} is a URL with credentials in it; take them out: they come from the "
                "environment, a profile or a mounted file only"
            )


def _check_rest(config: Config) -> None:
    conditioning, data = config.conditioning, config.data
    if conditioning.task == "prediction" and conditioning.context_frames >= data.clip_frames:
        raise UserError(
            f"conditioning.context_frames={conditioning.context_frames} leaves nothing to predict "
            f"of data.clip_frames={data.clip_frames}; lower it"
        )
    stop = config.stop
    if stop.target is not None or stop.plateau_steps:
        if stop.metric not in STOP_METRICS:
            raise UserError(
                f"stop.metric={stop.metric} is not logged; choose one of {', '.join(STOP_METRICS)}"
            )
        if stop.metric == PROXY_METRIC and not config.log.proxy_interval_steps:
            raise UserError(
                f"stop.metric={stop.metric} is never measured with log.proxy_interval_steps=0; "
                "set it to some steps"
            )
        kind = stop.metric.removeprefix("penalty/")
        if kind != stop.metric and kind not in config.loss.penalty:
            raise UserError(
                f"stop.metric={stop.metric} is never measured with loss.penalty="
                f"{config.loss.penalty}; take a penalty that has it, or another metric"
            )
        name, interval = "log.interval_steps", config.log.interval_steps
        if stop.metric == PROXY_METRIC:
            name, interval = "log.proxy_interval_steps", config.log.proxy_interval_steps
        elif kind != stop.metric and config.loss.penalty_interval > interval:
            name, interval = "loss.penalty_interval", config.loss.penalty_interval
        if 0 < stop.plateau_steps < interval:
            raise UserError(
                f"stop.plateau_steps={stop.plateau_steps} is over before stop.metric={stop.metric} "
                f"is measured a second time ({name}={interval}); take some times that"
            )
    low, high = config.stop.sign_bounds
    if low > high:
        raise UserError(f"stop.sign_bounds={[low, high]}: the lower bound is above the upper one")
