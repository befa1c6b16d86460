"""DeepSpeed's configuration for one network, derived from ours and from the network's size."""

from typing import Any

from distgan.config import ShardingConfig

MOST_BUCKET_ELEMENTS = 50_000_000


def deepspeed_settings(
    sharding: ShardingConfig, sizes: list[int], device_type: str
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Everything whose default would change the arithmetic is set, so that a new default of
    DeepSpeed changes nothing. Clipping and averaging over micro-batches are the engine's business.

    Args:
        sizes: the number of elements of each parameter.
    """
    zero: dict[str, Any] = {"stage": sharding.zero_stage}
    if sharding.zero_stage > 0:
        zero |= _zero_settings(sharding, sizes, device_type)
    return {
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own counters
        "gradient_accumulation_steps": 1,  # `ZeroEngine` sets the boundary at each backward
        "gradient_clipping": 0.0,  # its default is 1; 0 is off: `ZeroEngine` clips
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def _zero_settings(sharding: ShardingConfig, sizes: list[int], device_type: str) -> dict[str, Any]:
    total, largest = sum(sizes), max(sizes)
    # The defaults, 5e8 elements, cost a small model on a CPU 200 times its step.
    bucket = min(total, max(largest, MOST_BUCKET_ELEMENTS))
    bucket += bucket % 2  # of stages 1 and 2, DeepSpeed asks for an even number
    if sharding.zero_stage == 3:
        # It stays between steps: at most 1/25 of what a rank of two holds. What is larger than
        # the bucket is reduced by itself.
        bucket = min(total // 10, MOST_BUCKET_ELEMENTS)
    pinned = device_type == "cuda"
    zero: dict[str, Any] = {
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "round_robin_gradients": False,
        "overlap_comm": sharding.zero_stage == 3 and device_type == "cuda",
    }
    if sharding.zero_stage == 3:
        zero |= {
            "sub_group_size": total + 1,  # all in one
            # What stays whole between its uses: as good as nothing, also of a small model.
            "stage3_param_persistence_threshold": min(100_000, total // 1000),
            "stage3_max_live_parameters": max(2 * largest, total // 4),
            "stage3_max_reuse_distance": total // 20,
            "stage3_prefetch_bucket_size": min(total // 10, MOST_BUCKET_ELEMENTS),
            # It would replace torch.nn.functional.linear in the whole process, for good.
            "memory_efficient_linear": False,
        }
    elif not sharding.offload_optimizer:
        zero["compute_grad_norm"] = False  # `ZeroEngine` has computed it already
    if sharding.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if sharding.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return zero
