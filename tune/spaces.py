"""Ready search spaces, for `--space attention`, `--space optimizer` and `--space both`.

Combinations that a configuration can't have (a head size that does not fit, a window larger than
the feature map) are never sampled.
"""

ATTENTION: dict[str, object] = {
    "model.attention.kind": {
        "choice": ["none", "additive", "dense", "self", "factorised", "window", "sparse"]
    },
    "model.attention.heads": {"choice": [1, 2, 4, 8]},
    "model.attention.head_dim": {"choice": [16, 32, 64]},
    "model.attention.resolutions": {"choice": [[4], [8], [8, 4], [16], [16, 8]]},
    "model.attention.placement": {
        "choice": [
            ["encoder", "decoder", "discriminator"],
            ["encoder", "decoder"],
            ["discriminator"],
        ]
    },
    "model.attention.scores": {"choice": ["dot", "l2"]},
    "model.attention.window": {"choice": [[3, 3, 3], [3, 5, 5], [0, 3, 3]]},
    "model.attention.block": {"choice": [[2, 2, 2], [1, 4, 4], [2, 4, 4]]},
    "model.attention.density": {"choice": [0.125, 0.25, 0.5]},
}

OPTIMIZER: dict[str, object] = {
    "optim.generator.kind": {"choice": ["adam", "adamw"]},
    "optim.generator.lr": {"loguniform": [1e-4, 3e-3]},
    "optim.generator.beta1": {"choice": [0.0, 0.5]},
    "optim.generator.beta2": {"choice": [0.9, 0.95, 0.99, 0.999]},
    "optim.discriminator.lr": {"loguniform": [1e-4, 3e-3]},
    "optim.discriminator.beta2": {"choice": [0.9, 0.95, 0.99, 0.999]},
    "loss.gamma": {"loguniform": [0.3, 30.0]},
    "train.ema_half_life_clips": {"loguniform": [500.0, 20_000.0]},
    "train.batch_size": {"choice": [8, 16, 32]},
}

SPACES: dict[str, dict[str, object]] = {
    "attention": ATTENTION,
    "optimizer": OPTIMIZER,
    "both": ATTENTION | OPTIMIZER,
}
