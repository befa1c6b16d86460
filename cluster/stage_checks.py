"""Combinations of ZeRO stages, offloading and losses that are refused before anything starts."""

from distgan.config import Config
from distgan.errors import UserError


def check_sharding(config: Config) -> None:
    """Raises `UserError` for the first combination that can't work."""
    for name in ("generator", "discriminator"):
        sharding = getattr(config.cluster, name)
        key = f"cluster.{name}"
        if sharding.offload_parameters and sharding.zero_stage != 3:
            raise UserError(
                f"{key}.offload_parameters=true needs {key}.zero_stage=3 (it is "
                f"{sharding.zero_stage}): below it every device holds the weights; change one"
            )
        if sharding.offload_optimizer and sharding.zero_stage == 0:
            raise UserError(
                f"{key}.offload_optimizer=true needs {key}.zero_stage of 1, 2 or 3; change one"
            )
    exact = config.loss.penalty != "none" and config.loss.penalty_form == "exact"
    if exact and config.cluster.discriminator.zero_stage == 3:  # measured with loss.gamma=0, too
        raise UserError(
            "loss.penalty_form=exact takes a second derivative, which fails or is wrong under "
            "ZeRO-3; set cluster.discriminator.zero_stage=2, or loss.penalty_form=random_direction"
        )
