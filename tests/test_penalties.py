"""Gradient penalties: exact equals closed forms, and finite differences converge to exact."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distgan.penalties import PenaltyTerm, exact, gradient_direction, random_direction
from tests.tiny_networks import in_float64, randomise, tiny_config, tiny_step

SHAPE = (3, 1, 1, 2, 3)  # three clips of six numbers


def draws(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Quadratic(nn.Module):
    """D(x) = x' A x: the gradient is (A + A') x, and all else follows by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Parameter(draws(6, 6))

    def forward(self, video: Tensor) -> Tensor:
        x = video.flatten(1)
        return ((x @ self.form) * x).sum(dim=1)


class Smooth(nn.Module):
    """Has derivatives of every order, and they differ from clip to clip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(draws(6, 5))
        self.second = nn.Parameter(draws(5, seed=1))

    def forward(self, video: Tensor) -> Tensor:
        return torch.tanh(video.flatten(1) @ self.first) @ self.second


Score = Callable[[Tensor], Tensor]


def evaluate(term: PenaltyTerm, score: Score, video: Tensor) -> Tensor:
    """As the step does it: all videos in one forward."""
    videos = [video, *term.moved_videos]
    scores = score(torch.cat(videos)).chunk(len(videos))
    return term.squared_norm(scores[0], scores[1:])


def value_and_gradients(
    term: PenaltyTerm, module: nn.Module, video: Tensor
) -> tuple[Tensor, list[Tensor]]:
    value_B = evaluate(term, module, video)
    weights = [p for p in module.parameters() if p.requires_grad]
    return value_B.detach(), list(torch.autograd.grad(value_B.mean(), weights))


def along_gradient(module: nn.Module, video: Tensor, step: float) -> PenaltyTerm:
    module.requires_grad_(False)
    term = gradient_direction(module, video, step)
    module.requires_grad_(True)
    return term


def test_exact_equals_the_closed_form_of_a_quadratic() -> None:
    module, video = Quadratic(), draws(*SHAPE, seed=2)
    value_B, (gradient,) = value_and_gradients(exact(module, video), module, video)
    x, symmetric = video.flatten(1), (module.form + module.form.T).detach()
    v = x @ symmetric
    torch.testing.assert_close(value_B, v.square().sum(1))
    # d |S x|^2 / dA = 2 (v x' + x v') for S = A + A'.
    by_hand = 2 * (v[:, :, None] * x[:, None] + x[:, :, None] * v[:, None])
    torch.testing.assert_close(gradient, by_hand.mean(0))


def test_along_the_gradient_a_quadratic_is_exact_at_any_step() -> None:
    module, video = Quadratic(), draws(*SHAPE, seed=2)
    wanted = value_and_gradients(exact(module, video), module, video)
    for step in (1e-3, 1.0):
        got = value_and_gradients(along_gradient(module, video, step), module, video)
        torch.testing.assert_close(got[0], wanted[0])
        torch.testing.assert_close(got[1], wanted[1])


def test_along_the_gradient_the_error_falls_with_the_square_of_the_step() -> None:
    module, video = Smooth(), draws(*SHAPE, seed=2)
    value_B, gradients = value_and_gradients(exact(module, video), module, video)
    errors = []
    for step in (0.1, 0.05, 0.025):
        got_B, got = value_and_gradients(along_gradient(module, video, step), module, video)
        of_gradients = sum((a - b).norm() for a, b in zip(got, gradients, strict=True))
        errors.append(torch.stack([(got_B - value_B).norm(), of_gradients]))  # type: ignore[list-item]
    for coarse, fine in itertools.pairwise(errors):
        ratio = coarse / fine
        assert ((ratio > 3.6) & (ratio < 4.4)).all(), ratio
    assert (errors[-1] < 0.02 * torch.stack([value_B.norm(), gradients[0].norm()])).all()


def test_random_directions_have_the_exact_value_on_average() -> None:
    module, video = Smooth(), draws(*SHAPE, seed=2)
    value_B, gradients = value_and_gradients(exact(module, video), module, video)
    count = 20_000
    many = video.repeat(count, 1, 1, 1, 1)
    directions = draws(*many.shape, seed=3)
    term = random_direction(many, directions, 1e-3)
    got_B = evaluate(term, module, many)
    got = torch.autograd.grad(got_B.mean(), list(module.parameters()))
    # The variance of (n . g)^2 is 2 |g|^4.
    mean_B = got_B.detach().view(count, -1).mean(0)
    assert ((mean_B / value_B - 1).abs() < 5 * (2 / count) ** 0.5).all()
    for estimate, wanted in zip(got, gradients, strict=True):
        assert (estimate - wanted).norm() < 0.08 * wanted.norm()


def test_a_random_direction_is_one_difference() -> None:
    video, direction = draws(*SHAPE), draws(*SHAPE, seed=1)
    term = random_direction(video, direction, 0.5)
    (moved,) = term.moved_videos
    torch.testing.assert_close(moved, video + 0.5 * direction)
    value = term.squared_norm(torch.tensor([1.0, 4.0]), [torch.tensor([2.0, 1.0])])
    assert value.tolist() == [4.0, 36.0]


def test_the_moved_copies_lie_at_the_step_on_both_sides() -> None:
    module, video = Smooth(), draws(*SHAPE, seed=2)
    ahead, behind = along_gradient(module, video, 0.3).moved_videos
    distance = torch.full((3,), 0.3, dtype=torch.float64)
    torch.testing.assert_close((ahead - video).flatten(1).norm(dim=1), distance)
    torch.testing.assert_close(ahead - video, video - behind)
    assert (module(ahead) > module(behind)).all()
    assert not ahead.requires_grad


@pytest.mark.parametrize("step", [0.05, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_gives_a_penalty_of_zero(step: float, dtype: torch.dtype) -> None:
    module, video = Smooth(), draws(*SHAPE)
    with torch.no_grad():
        module.second.zero_()
    module, video = module.to(dtype), video.to(dtype)
    for term in (
        along_gradient(module, video, step),
        exact(module, video),
        random_direction(video, torch.ones_like(video), step),
    ):
        value_B, gradients = value_and_gradients(term, module, video)
        assert not value_B.any()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_clips_are_penalised_apart() -> None:
    module, video = Smooth(), draws(*SHAPE, seed=2)
    whole, _ = value_and_gradients(along_gradient(module, video, 0.01), module, video)
    one, _ = value_and_gradients(along_gradient(module, video[1:2], 0.01), module, video[1:2])
    torch.testing.assert_close(whole[1:2], one)


def test_on_the_real_discriminator_the_forms_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config({"model.discriminator.blocks": 2})
    step = tiny_step(config)
    in_float64(step, monkeypatch)
    module = step.discriminator.module
    randomise(module, deviation=0.05)
    video = draws(2, 3, 4, 16, 16, seed=4) / 2
    value_B, gradients = value_and_gradients(exact(module, video), module, video)
    got_B, got = value_and_gradients(
        along_gradient(module, video, config.loss.penalty_step), module, video
    )
    assert value_B.min() > 0
    torch.testing.assert_close(got_B, value_B, rtol=1e-4, atol=0)
    names = [name for name, _ in module.named_parameters()]
    for name, estimate, wanted in zip(names, got, gradients, strict=True):
        scale = max(wanted.norm().item(), 1e-3 * gradients[0].norm().item())
        assert (estimate - wanted).norm() < 2e-4 * scale, name


def test_float32_has_digits_enough_for_the_default_step(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    video = draws(2, 3, 4, 16, 16, seed=4) / 2
    results = []
    for wide in (False, True):
        step = tiny_step(config)
        if wide:
            in_float64(step, monkeypatch)
        module = step.discriminator.module
        clips = video if wide else video.float()
        term = along_gradient(module, clips, config.loss.penalty_step)
        value_B, gradients = value_and_gradients(term, module, clips)
        results.append([value_B.double(), torch.cat([g.double().flatten() for g in gradients])])
    for narrow, wide_one in zip(*results, strict=True):
        assert (narrow - wide_one).norm() < 1e-3 * wide_one.norm()
