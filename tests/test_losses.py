"""Each objective equals its written formula, far out too, and has the slopes that it should."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.losses import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    GENERATOR_LOSSES_THAT_READ_REAL,
)

KINDS = ["relativistic", "bce", "hinge"]
REAL = torch.tensor([-2.0, 0.0, 0.3, 1.5, 4.0], dtype=torch.float64)
FAKE = torch.tensor([1.0, 0.0, -0.7, 2.5, -3.0], dtype=torch.float64)


def formula(kind: str, network: str, real: float, fake: float) -> float:
    """From the papers, in plain arithmetic."""

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    match kind, network:
        case "relativistic", "discriminator":
            return -log_sigmoid(real - fake)
        case "relativistic", _:
            return -log_sigmoid(fake - real)
        case "bce", "discriminator":
            return -log_sigmoid(real) - math.log(1 - 1 / (1 + math.exp(-fake)))
        case "bce", _:
            return -log_sigmoid(fake)
        case "hinge", "discriminator":
            return max(0.0, 1 - real) + max(0.0, 1 + fake)
    return -fake


@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_their_formulas(kind: str) -> None:
    for network, losses in (
        ("discriminator", DISCRIMINATOR_LOSSES),
        ("generator", GENERATOR_LOSSES),
    ):
        expected = [
            formula(kind, network, r, f) for r, f in zip(REAL.tolist(), FAKE.tolist(), strict=True)
        ]
        torch.testing.assert_close(losses[kind](REAL, FAKE), torch.tensor(expected).double())
    assert set(DISCRIMINATOR_LOSSES) == set(GENERATOR_LOSSES) == set(KINDS)


def test_bce_is_binary_cross_entropy_from_logits() -> None:
    def cross_entropy(scores: Tensor, label: float) -> Tensor:
        target = torch.full_like(scores, label)
        return F.binary_cross_entropy_with_logits(scores, target, reduction="none")

    torch.testing.assert_close(
        DISCRIMINATOR_LOSSES["bce"](REAL, FAKE), cross_entropy(REAL, 1.0) + cross_entropy(FAKE, 0.0)
    )
    torch.testing.assert_close(GENERATOR_LOSSES["bce"](REAL, FAKE), cross_entropy(FAKE, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_give_the_known_values(kind: str) -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    log2 = math.log(2)
    wanted = {"relativistic": (log2, log2), "bce": (2 * log2, log2), "hinge": (2.0, 0.0)}[kind]
    assert DISCRIMINATOR_LOSSES[kind](zero, zero).item() == pytest.approx(wanted[0])
    assert GENERATOR_LOSSES[kind](zero, zero).item() == pytest.approx(wanted[1])


def slopes(loss: Tensor, *scores: Tensor) -> list[Tensor]:
    return [
        torch.zeros_like(s) if g is None else g
        for s, g in zip(
            scores, torch.autograd.grad(loss.sum(), scores, allow_unused=True), strict=True
        )
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("real", [-1e4, 0.5, 1e4])
@pytest.mark.parametrize("fake", [-1e4, -0.5, 1e4])
def test_far_scores_stay_finite_and_are_pushed_the_right_way(
    kind: str, real: float, fake: float
) -> None:
    scores = [torch.tensor([value]).requires_grad_() for value in (real, fake)]
    loss = DISCRIMINATOR_LOSSES[kind](*scores)
    up, down = slopes(loss, *scores)
    assert loss.isfinite().all() and up.isfinite().all() and down.isfinite().all()
    assert loss >= 0 and up <= 0 <= down  # D raises real scores and lowers fake ones
    if real < 0 < fake:
        assert loss >= 1e4 and up == -1 and down == 1  # never flat where D is wrong
    loss = GENERATOR_LOSSES[kind](*scores)
    _, upward = slopes(loss, *scores)
    assert loss.isfinite().all() and upward.isfinite().all() and upward <= 0
    if fake < 0 < real:
        assert upward <= -0.5  # never flat where D sees through G


def test_relativistic_losses_do_not_see_a_shift_of_all_scores() -> None:
    for losses in (DISCRIMINATOR_LOSSES, GENERATOR_LOSSES):
        shifted = losses["relativistic"](REAL + 37.5, FAKE + 37.5)
        torch.testing.assert_close(losses["relativistic"](REAL, FAKE), shifted)
        for kind in ("bce", "hinge"):
            moved = losses[kind](REAL + 37.5, FAKE + 37.5)
            assert (moved - losses[kind](REAL, FAKE)).abs().max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_which_generator_losses_read_real_scores(kind: str) -> None:
    changes = not torch.equal(
        GENERATOR_LOSSES[kind](REAL, FAKE), GENERATOR_LOSSES[kind](REAL + 1, FAKE)
    )
    assert changes == (kind in GENERATOR_LOSSES_THAT_READ_REAL)


@pytest.mark.parametrize("kind", KINDS)
def test_one_loss_a_clip(kind: str) -> None:
    for losses in (DISCRIMINATOR_LOSSES, GENERATOR_LOSSES):
        whole = losses[kind](REAL, FAKE)
        assert whole.shape == REAL.shape
        torch.testing.assert_close(losses[kind](REAL[1:2], FAKE[1:2]), whole[1:2])
