"""Which device to use, and whether bf16 is faster on it; answered by a short measurement."""

import time

import torch
from torch import nn

from distgan.errors import UserError


def pick_device(choice: str) -> torch.device:
    """`auto` takes the GPU if there is one.

    Raises:
        UserError: cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("train.device=cuda, but torch sees no GPU here; use train.device=auto")
    return torch.device("cuda" if available and choice != "cpu" else "cpu")


def exact_float32() -> None:
    """Convolutions of float32 on GPUs keep their 24 bits, in this process. By default they take
    TF32's 11, in which the penalty's small difference of two scores drowns."""
    torch.backends.cudnn.allow_tf32 = False


def pick_precision(choice: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` measures on a CPU, and takes bf16 on a GPU that supports it."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    seconds = measure_precisions(device)
    return "bf16" if seconds["bf16"] < 0.9 * seconds["fp32"] else "fp32"


def measure_precisions(device: torch.device, budget_s: float = 0.5) -> dict[str, float]:
    """Seconds for one forward and backward of a small convolution, the best of each precision."""
    layer = nn.Conv2d(64, 64, 3, padding=1, device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(64, 64, 16, 16, device=device)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    best = {}
    for name in ("fp32", "bf16"):
        times: list[float] = []
        while not times or (sum(times) < budget_s and len(times) < 30):
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                output = layer(images)
            output.float().sum().backward()
            times.append(time.perf_counter() - start)
        best[name] = min(times)
    return best
