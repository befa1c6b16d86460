"""Named starting points: dotted keys over the defaults in `distgan/config.py`."""

from typing import Any

# Trained in minutes on two CPU cores; what `launch.py demo` runs.
DEMO: dict[str, Any] = {
    "data.resolution": 32,
    "data.clip_frames": 8,
    "data.num_workers": 0,
    "prepare.stored_frames": 12,
    "prepare.clip_format": "npy",
    "prepare.shard_megabytes": 2,
    "prepare.denoise.kind": "none",
    "model.generator.channels": [16, 64, 128],
    "model.discriminator.channels": [16, 64, 128],
    "model.attention.heads": 2,
    "model.attention.resolutions": [4],
    "loss.penalty_interval": 2,
    "loss.gamma_final": 1.0,
    "optim.generator.lr": 1e-3,
    "optim.generator.beta2": 0.95,
    "optim.generator.lr_final": 0.1,
    "optim.discriminator.lr": 4e-4,
    "optim.discriminator.beta2": 0.95,
    "optim.discriminator.lr_final": 0.1,
    "train.batch_size": 16,
    "train.max_steps": 2000,
    "train.ema_half_life_clips": 2500,
    # Without it the generator settles on one or two of the four colours within 300 steps.
    "train.augment.probability": 0.6,
    "train.augment.saturation": 0.95,
    "train.augment.instance_noise": 0.02,
    "log.sample_interval_steps": 300,
    "log.proxy_interval_steps": 300,
}

# One GPU, or a patient CPU.
SMALL_64: dict[str, Any] = {
    "data.resolution": 64,
    "data.clip_frames": 16,
    "model.patch": 4,
    "model.temporal_levels": 2,
    "model.generator.channels": [48, 96, 192],
    "model.generator.latent_dim": 128,
    "model.discriminator.channels": [48, 96, 192],
    "model.attention.resolutions": [8, 4],
    "optim.generator.lr": 6e-4,
    "optim.generator.beta2": 0.95,
    "optim.discriminator.lr": 3e-4,
    "optim.discriminator.beta2": 0.95,
    "train.batch_size": 16,
    "train.augment.probability": 0.5,
    "train.augment.saturation": 0.5,
    "train.augment.instance_noise": 0.02,
}

BASE_128: dict[str, Any] = {
    "data.resolution": 128,
    "data.clip_frames": 16,
    "model.patch": 4,
    "model.generator.channels": [96, 192, 384, 512],
    "model.generator.blocks": 2,
    "model.generator.latent_dim": 256,
    "model.generator.style_dim": 512,
    "model.discriminator.channels": [96, 192, 384, 512],
    "model.discriminator.blocks": 2,
    "model.attention.heads": 8,
    "model.attention.head_dim": 64,
    "model.attention.resolutions": [16, 8],
    "train.max_steps": 200_000,
    "train.ema_half_life_clips": 200_000,
    "train.augment.probability": 0.3,
    "data.num_workers": 4,
}

BASE_256: dict[str, Any] = {
    **BASE_128,
    "data.resolution": 256,
    "model.generator.channels": [64, 128, 256, 512, 512],
    "model.discriminator.channels": [64, 128, 256, 512, 512],
    "train.accumulation": 2,
}

# The source article's numbers: 224x224 RGB, 8 heads of 256, Adam 1e-3, gradient norm clipped at
# 1.0, 100 epochs, binary cross-entropy from logits. The warm-up is ours: without it, three steps at
# this rate took the loss of the discriminator from 1.4 to 3100.
ARTICLE: dict[str, Any] = {
    "data.resolution": 224,
    "data.clip_frames": 16,
    "model.patch": 4,
    "model.generator.channels": [64, 128, 256, 512],
    "model.generator.latent_dim": 256,
    "model.generator.style_dim": 512,
    "model.discriminator.channels": [64, 128, 256, 512],
    "model.attention.heads": 8,
    "model.attention.head_dim": 256,
    "model.attention.resolutions": [14],
    "loss.kind": "bce",
    "loss.penalty": "none",
    "optim.generator.kind": "adam",
    "optim.generator.lr": 1e-3,
    "optim.generator.beta1": 0.9,
    "optim.generator.beta2": 0.999,
    "optim.generator.clip_norm": 1.0,
    "optim.generator.warmup_steps": 1000,
    "optim.generator.schedule": "constant",
    "optim.discriminator.kind": "adam",
    "optim.discriminator.lr": 1e-3,
    "optim.discriminator.beta1": 0.9,
    "optim.discriminator.beta2": 0.999,
    "optim.discriminator.clip_norm": 1.0,
    "optim.discriminator.warmup_steps": 1000,
    "optim.discriminator.schedule": "constant",
    "train.max_steps": 1_000_000,
    "stop.max_epochs": 100,
    "train.ema_half_life_clips": 0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "demo": DEMO,
    "small-64": SMALL_64,
    "base-128": BASE_128,
    "base-256": BASE_256,
    "article": ARTICLE,
}
