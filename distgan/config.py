"""The one configuration tree: every key, its type, its default and what it means.

Plain data: importing this module costs milliseconds and pulls in no torch. Presets are in
`distgan/presets.py`, reading and overriding in `distgan/config_loading.py`, what holds of any
section in `distgan/config_section.py`, and the checks that span several keys in
`distgan/config_checks.py`.
"""

from typing import Literal

from pydantic import Field

from distgan.config_section import Section


class RunConfig(Section):
    dir: str = ""
    """Folder of the run; empty means runs/PRESET-SEED. Rerunning the same folder resumes it."""
    init_from: str = ""
    """Run folder whose newest checkpoint gives a new run its starting weights and moving average
    (which then has no ramp); later starts of the run need not name it."""


class AttentionConfig(Section):
    kind: Literal["none", "additive", "dense", "self", "factorised", "window", "sparse"] = "self"
    """none; additive: a learned weight per element, no mixing between elements; dense: one head,
    all pairs; self: several heads, all pairs; factorised: over space, then over time; window: each
    token's neighbourhood in time and space; sparse: near blocks and evenly strided far ones."""
    heads: int = Field(4, ge=1)
    """dense has a single one, of heads x head_dim: as wide as all of the others together."""
    head_dim: int = Field(32, ge=0)
    """Width of a head; 0 means the level's channels divided by heads."""
    resolutions: tuple[int, ...] = (8,)
    """Feature-map heights that get an attention layer, in each network of `placement`."""
    placement: tuple[Literal["encoder", "decoder", "discriminator"], ...] = (
        "encoder", "decoder", "discriminator",
    )  # fmt: skip
    """Where the layers are: the generator's encoder (built where a task gives a video), its
    decoder, the discriminator."""
    positions: Literal["rotary", "none"] = "rotary"
    """How queries and keys know their place in time and space; none: order does not count."""
    scores: Literal["dot", "l2"] = "dot"
    """dot: q k / sqrt(head_dim), of queries and keys that are normalised; l2: -|q - k|^2 /
    sqrt(head_dim), of such that are not, so that how long they are counts too."""
    window: tuple[int, int, int] = (3, 3, 3)
    """Keys that a token sees in time, height and width (window); 0 means all of the axis."""
    block: tuple[int, int, int] = (2, 2, 2)
    """Tokens of a block in time, height and width (sparse). Larger ones are faster."""
    reach: tuple[int, int, int] = (1, 0, 0)
    """Blocks that a block sees to either side in time, height and width (sparse)."""
    density: float = Field(0.25, ge=0, le=1)
    """Share of all blocks that a block sees (sparse): those in reach, then far ones at even
    strides; 1 is all pairs."""
    mlp_width: int = Field(0, ge=0)
    """Hidden channels of an MLP that follows each attention layer; it stands there with kind=none
    too. 0: no MLP. A fine knob to give two kinds the same number of parameters."""


class GeneratorConfig(Section):
    latent_dim: int = Field(64, ge=1)
    """Length of the noise vector z."""
    style_dim: int = Field(128, ge=1)
    """Length of the style vector w that modulates every block."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels per level, finest first; each level halves height and width."""
    blocks: int = Field(1, ge=1, le=64)
    """Residual blocks per level."""


class DiscriminatorConfig(Section):
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels per level, finest first; each level halves height and width."""
    blocks: int = Field(1, ge=1, le=64)
    """Residual blocks per level."""


class ModelConfig(Section):
    patch: int = Field(2, ge=1)
    """Space-to-depth factor at both ends: the finest level works at data.resolution / patch."""
    temporal_levels: int = Field(1, ge=0)
    """How many of the coarsest levels also halve the number of frames."""
    attention: AttentionConfig = AttentionConfig()
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


class DenoiseConfig(Section):
    kind: Literal["none", "atadenoise", "nlmeans", "bm3d", "fftdnoiz"] = "fftdnoiz"
    """FFmpeg's denoising filter; atadenoise is fastest, nlmeans and bm3d are slow, remove more."""
    strength: float = Field(1.0, gt=0, le=10)
    """Multiple of the filter's default strength (measured by `python -m benchmarks denoise`)."""


class CleanConfig(Section):
    black_level: float = Field(0.06, ge=0, le=1)
    """Frames whose brightest luma percentile (98th) stays below this share of white are black."""
    frozen_difference: float = Field(0.002, ge=0, le=1)
    """A clip is frozen if its mean absolute luma change per frame stays below this share."""
    scene_threshold: float = Field(10.0, gt=0, le=100)
    """Scene-change score (FFmpeg's scdet, 0 to 100) that cuts; 100 never cuts."""


class LimitsConfig(Section):
    max_megabytes: float = Field(10_000.0, gt=0)
    """Largest video file; of one on object storage, no more than that is ever fetched."""
    max_pixels: int = Field(8192 * 4320, ge=1)
    """Largest width x height that is decoded."""
    max_frames: int = Field(36_000, ge=1)
    """Most frames of one video that are decoded."""
    max_seconds: float = Field(1800.0, gt=0)
    """Longest video, by its own clock, in seconds."""
    max_cpu_seconds: float = Field(600.0, gt=0)
    """Most CPU time spent on one video, in seconds."""


class PrepareConfig(Section):
    frame_rate_hz: float = Field(8.0, ge=0, le=240)
    """Frames per second of the stored clips; 0 keeps each video's own rate."""
    fit: Literal["crop", "pad"] = "crop"
    """Square by cutting the longer side (crop) or by black bars on the shorter one (pad)."""
    stored_frames: int = Field(0, ge=0)
    """Frames per stored clip; 0 means as many as data.clip_frames and data.frame_stride need."""
    clip_step: int = Field(0, ge=0)
    """Frames from the start of one stored clip to the next; 0 means no overlap."""
    clip_format: Literal["mp4", "npy"] = "mp4"
    """Member that holds the clip: H.264 4:4:4 (small), or raw uint8 (exact, fastest to read)."""
    shard_megabytes: float = Field(64.0, gt=0, le=1024)
    """Shards are closed when they reach this size."""
    num_processes: int = Field(0, ge=0)
    """Worker processes on this machine, without Ray; 0 means one a CPU core."""
    denoise: DenoiseConfig = DenoiseConfig()
    clean: CleanConfig = CleanConfig()
    limits: LimitsConfig = LimitsConfig()


class DataConfig(Section):
    shards: str = ""
    """Folder with manifest.json and the shards that prepare wrote."""
    resolution: int = Field(64, ge=8)
    """Height and width of the clips, in pixels."""
    clip_frames: int = Field(16, ge=1)
    """Frames per clip."""
    frame_stride: int = Field(1, ge=1)
    """Step between a clip's frames within the stored clip."""
    random_stride: bool = False
    """Draw the step from 1 ... frame_stride for each clip, instead of always frame_stride."""
    lanes: int = Field(8, ge=1)
    """Fixed streams the data is dealt to; must divide train.batch_size."""
    num_workers: int = Field(1, ge=0)
    """Processes that read and decode, per training process, at most one a lane; 0 reads inside the
    training process."""
    shards_in_flight: int = Field(8, ge=1)
    """Shards that each of them reads ahead at a time; beside these it holds one a lane in memory,
    and one more. From object storage they share `storage.max_concurrency` requests: more shards
    keep these busy while one waits, and take more memory."""
    cache_dir: str = ""
    """Folder on a local disk for shards from object storage, shared by all processes of a machine;
    empty means no cache."""
    cache_gigabytes: float = Field(100.0, gt=0)
    """Room that the cache may take; the least recently used shards leave."""
    max_damaged_fraction: float = Field(0.001, ge=0, le=1)
    """Share of the data set's samples that may be damaged (each is replaced by another, and
    counted) before training stops."""


class ConditioningConfig(Section):
    task: Literal["none", "prediction"] = "none"
    """none: clips from noise alone. prediction: the first frames are given."""
    context_frames: int = Field(4, ge=1)
    """Frames that are given under prediction."""


class LossConfig(Section):
    kind: Literal["relativistic", "bce", "hinge"] = "relativistic"
    penalty: Literal["none", "r1", "r2", "r1+r2"] = "r1+r2"
    penalty_form: Literal["random_direction", "gradient_direction", "exact"] = "random_direction"
    penalty_interval: int = Field(4, ge=1)
    """Every how many steps the penalty is applied (then weighted by the interval)."""
    penalty_step: float = Field(0.01, gt=0)
    """Finite-difference step on [-1, 1] pixels: per-pixel deviation (random_direction; larger ones
    blind the discriminator to detail of that size) or L2 norm (gradient_direction)."""
    gamma: float = Field(10.0, ge=0)
    """Penalty strength: the loss gains gamma / 2 times the squared gradient norm."""
    gamma_final: float = Field(0.1, ge=0)
    """Share of gamma that remains at the end of its cosine decay."""


class AugmentConfig(Section):
    probability: float = Field(0.0, ge=0, le=1)
    """Chance that each augmentation is applied to a clip, one draw for all its frames."""
    flip: bool = True
    """Mirror left and right."""
    brightness: float = Field(0.2, ge=0, le=1)
    """Largest shift of all channels, on [-1, 1] pixels."""
    contrast: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of contrast about the clip's mean."""
    saturation: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of the distance from grey."""
    instance_noise: float = Field(0.0, ge=0)
    """Deviation of Gaussian noise added to real and generated clips before the discriminator."""


class NetworkOptimConfig(Section):
    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(2e-4, gt=0)
    beta1: float = Field(0.0, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    """Second-moment decay (adam, adamw)."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum (sgd)."""
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(0.0, ge=0)
    """Clip the gradient's global L2 norm to this; 0 switches clipping off."""
    warmup_steps: int = Field(0, ge=0)
    """Linear rise of the learning rate from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    lr_final: float = Field(0.25, ge=0, le=1)
    """Share of the learning rate that remains at the schedule's end."""


class OptimConfig(Section):
    generator: NetworkOptimConfig = NetworkOptimConfig()
    discriminator: NetworkOptimConfig = NetworkOptimConfig()


class TrainConfig(Section):
    batch_size: int = Field(32, ge=1)
    """Global batch, in clips."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches a step; must divide the batch, and the number of workers what that gives."""
    max_steps: int = Field(20_000, ge=1)
    schedule_steps: int = Field(0, ge=0)
    """Length of the schedules of learning rates and gamma; 0 means max_steps at the first start."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto takes bf16 on a GPU that has it, and on a CPU if it is faster, which it measures for a
    second; the answer is kept for the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ema_half_life_clips: float = Field(10_000.0, ge=0)
    """Half-life of the generator's moving average, in clips; 0 switches averaging off."""
    ema_ramp: float = Field(0.05, ge=0)
    """The half-life is at most this share of the clips seen so far, so that the start is forgotten;
    0 switches the ramp off."""
    augment: AugmentConfig = AugmentConfig()


class StopConfig(Section):
    max_epochs: float = Field(0.0, ge=0)
    """Passes over the data; 0 means no limit, as with max_seconds and plateau_steps."""
    max_seconds: float = Field(0.0, ge=0)
    """Training time that led to the present step, over all starts of the run, in seconds."""
    metric: str = "quality/proxy_frechet_ema"
    """Logged metric (lower is better) that target and plateau look at."""
    target: float | None = None
    """Stop when the metric is at or below this."""
    plateau_steps: int = Field(0, ge=0)
    """Stop when the metric has not improved by plateau_delta for so many steps."""
    plateau_delta: float = Field(0.01, ge=0)
    """Least relative improvement that counts."""
    sign_bounds: tuple[float, float] = (0.0, 1.0)
    """Allowed range of the running mean of D's sign statistic, the share of real clips that score
    above their fake partner; outside it the run has diverged (exit code 3)."""
    sign_patience_steps: int = Field(500, ge=1)
    """Length of that running mean, and how long it may stay out of bounds."""
    nonfinite_steps: int = Field(3, ge=1)
    """So many steps in a row with a gradient that is not finite (that network is not updated, nor
    the average) send the run back to its newest checkpoint; when they come again, or there is none,
    it has diverged (exit code 3)."""


class CheckpointConfig(Section):
    interval_steps: int = Field(500, ge=1)
    keep: int = Field(3, ge=2)
    """Newest checkpoints that stay; at least 2, so that a damaged one has a predecessor."""


class LogConfig(Section):
    interval_steps: int = Field(10, ge=1)
    """Steps between lines in metrics.jsonl and TensorBoard; the last step has one anyway."""
    sample_interval_steps: int = Field(500, ge=0)
    """Steps between sample videos; 0 means never."""
    num_samples: int = Field(8, ge=1)
    proxy_interval_steps: int = Field(500, ge=0)
    """Steps between measurements of the proxy Frechet distance; 0 means never."""
    proxy_clips: int = Field(256, ge=16)
    """Real and generated clips for the proxy distance."""


class StorageConfig(Section):
    """How to talk to object storage. Credentials are never keys here: they come from the
    environment (AWS_ACCESS_KEY_ID ...), a profile, or a mounted file."""

    endpoint_url: str = ""
    """Address of an S3-compatible server, such as https://minio.example.org:9000; empty means AWS,
    or what AWS_ENDPOINT_URL says."""
    region: str = ""
    """Region of the bucket; empty means what AWS_DEFAULT_REGION or the profile says."""
    checksums: Literal["when_supported", "when_required"] = "when_supported"
    """Whether CRCs go with requests that need none; some S3-compatible servers refuse them."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket is named in the URL's path or in its host name."""
    retry_seconds: float = Field(300.0, ge=0)
    """How long errors that may pass are met with further attempts, for each object."""
    connect_timeout_seconds: float = Field(10.0, gt=0)
    """Longest wait for a connection."""
    read_timeout_seconds: float = Field(30.0, gt=0)
    """Longest silence of the server within a request."""
    max_concurrency: int = Field(8, ge=1)
    """Most requests under way at a time in each process (a loader worker is one), for all its
    objects together. A read that takes far longer than others did is asked for a second time beside
    these; those are at most 1 in 20 requests, and 4 at once."""
    part_megabytes: float = Field(16.0, ge=5.25)
    """Larger objects travel in parts of this size; S3 refuses less than 5 MiB."""
    upload_interval_seconds: float = Field(30.0, gt=0)
    """How often metrics and events of a run on object storage are uploaded."""


class ShardingConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What ZeRO splits over the workers: nothing, optimizer state (1), gradients (2), weights (3).
    """
    offload_optimizer: bool = False
    """Keep the optimizer's state in CPU memory and update there (stages 1 to 3)."""
    offload_parameters: bool = False
    """Keep the weights in CPU memory between their uses (stage 3)."""


class ClusterConfig(Section):
    num_workers: int = Field(0, ge=0)
    """Worker processes, one a device; 0 is local debug mode: this process, no Ray, no DeepSpeed.
    Of prepare: videos at a time on a Ray cluster; 0 works on this machine, without Ray."""
    min_workers: int = Field(0, ge=0)
    """Go on with so few when devices are lost, or start with them when no more are there or free
    (elastic training); 0 means num_workers."""
    max_workers: int = Field(0, ge=0)
    """Grow to so many when devices come; 0 means num_workers. The global batch stays the same."""
    resize_seconds: float = Field(60.0, gt=0)
    """How often to look whether more workers could train (up to max_workers)."""
    cpus_per_worker: float = Field(1.0, ge=1e-4)
    """CPUs that Ray sets aside for each worker; it counts in steps of 0.0001."""
    max_failures: int = Field(3, ge=0)
    """Faults of workers in a row (storage that stays out of reach is one), without a new checkpoint
    between them, before the run gives up."""
    hang_seconds: float = Field(600.0, gt=0, le=1e9)
    """A worker that makes no step for so long is taken for hanging, and its run starts again from
    the newest checkpoint. Longer than any step, sample drawing and checkpoint take, and than the
    workers take to start, beside 90 s for finding places for them."""
    generator: ShardingConfig = ShardingConfig()
    discriminator: ShardingConfig = ShardingConfig()
    parity_check: bool = False
    """Before training, hold the ZeRO engines against plain PyTorch on small networks for a few
    steps (`launch.py doctor` does, too), and refuse to start if they differ. On up to 4 workers."""


class Config(Section):
    """The whole tree. `distgan.config_loading.load_config` builds and checks it."""

    preset: str = "default"
    """Name of the preset that this configuration started from."""
    seed: int = Field(0, ge=0)
    """Seed of every random draw."""
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    prepare: PrepareConfig = PrepareConfig()
    data: DataConfig = DataConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    stop: StopConfig = StopConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
