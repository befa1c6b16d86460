"""Schedules follow closed forms, updates equal PyTorch's plain ones, the average its half-life."""

import itertools
import math

import pytest
import torch
from torch import nn

from distgan.config import NetworkOptimConfig
from distgan.ema import PlainAverage, ema_decay
from distgan.networks import build_generator
from distgan.optimizers import decay, learning_rate, make_optimizer
from tests.tiny_networks import CPU, tiny_config, weights_of


@pytest.mark.parametrize(
    ("kind", "at_quarter", "at_half"),
    [
        ("constant", 1.0, 1.0),
        ("linear", 0.2 + 0.8 * 0.75, 0.6),
        ("cosine", 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6),
    ],
)
def test_schedules(kind: str, at_quarter: float, at_half: float) -> None:
    end = 1.0 if kind == "constant" else 0.2
    factors = [decay(kind, 0.2, step, 1000) for step in (0, 250, 500, 1000, 5000)]
    assert factors == pytest.approx([1.0, at_quarter, at_half, end, end])
    falling = [decay(kind, 0.2, step, 1000) for step in range(1200)]
    assert all(a >= b for a, b in itertools.pairwise(falling))


def test_warmup_is_linear_and_multiplies_the_schedule() -> None:
    config = NetworkOptimConfig(lr=0.1, warmup_steps=10, schedule="linear", lr_final=0.0)
    assert learning_rate(config, 1, 100) == pytest.approx(0.1 * 0.1 * 0.99)
    assert learning_rate(config, 5, 100) == pytest.approx(0.1 * 0.5 * 0.95)
    assert learning_rate(config, 10, 100) == pytest.approx(0.1 * 0.9)
    assert learning_rate(config, 50, 100) == pytest.approx(0.05)
    assert learning_rate(config, 100, 100) == 0
    assert learning_rate(NetworkOptimConfig(lr=0.1, schedule="constant"), 1, 100) == 0.1


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_update_does_not_depend_on_where_tensors_end(kind: str) -> None:
    """ZeRO updates pieces of one long tensor, cut by the number of ranks; plain PyTorch whole
    parameters. The numbers must be the same to the last bit."""
    config = NetworkOptimConfig.model_validate(
        {"kind": kind, "lr": 0.1, "beta1": 0.5, "beta2": 0.95, "momentum": 0.7, "weight_decay": 0.1}
    )
    sizes = [1, 2, 3, 5, 7, 12, 16, 33, 130, 1003]
    seeded = torch.Generator().manual_seed(0)
    values = torch.randn(sum(sizes), generator=seeded)
    whole = nn.Parameter(values.clone())
    pieces = [nn.Parameter(piece.clone()) for piece in values.split(sizes)]
    optimizers = make_optimizer([whole], config), make_optimizer(pieces, config)
    for _ in range(5):
        whole.grad = torch.randn(sum(sizes), generator=seeded)
        for piece, gradient in zip(pieces, whole.grad.split(sizes), strict=True):
            piece.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(whole, torch.cat(pieces))
    for key in ("exp_avg", "exp_avg_sq") if kind != "sgd" else ("momentum_buffer",):
        held = torch.cat([optimizers[1].state[piece][key] for piece in pieces])
        assert torch.equal(optimizers[0].state[whole][key], held)
    assert (whole - values).abs().median() > 0.05


def test_adam_by_hand() -> None:
    config = NetworkOptimConfig(lr=0.1, beta1=0.0, beta2=0.99)
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer([parameter], config)
    second = torch.zeros(2)
    expected = parameter.detach().clone()
    for step in range(1, 5):
        gradient = torch.tensor([0.5 * step, -3.0 / step])
        parameter.grad = gradient.clone()
        optimizer.step()
        second = 0.99 * second + 0.01 * gradient**2
        expected -= 0.1 * gradient / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach(), expected)


def test_each_network_s_own_numbers_reach_its_optimizer() -> None:
    config = NetworkOptimConfig(kind="adamw", lr=3e-4, beta1=0.3, beta2=0.7, weight_decay=0.2)
    (group,) = make_optimizer([nn.Parameter(torch.zeros(2))], config).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.3, 0.7), 0.2)


def test_the_average_halves_its_memory_at_its_half_life() -> None:
    step_decay = ema_decay(32, 10**9, 640.0, 0.05)
    assert step_decay**20 == pytest.approx(0.5)
    assert ema_decay(32, 10**9, 640.0, 0.0) == pytest.approx(step_decay)
    assert ema_decay(64, 10**9, 640.0, 0.0) == pytest.approx(step_decay**2)


def test_the_ramp_bounds_the_half_life_by_the_clips_seen() -> None:
    assert ema_decay(32, 6400, 10_000.0, 0.05) == pytest.approx(0.5 ** (32 / 320))
    assert ema_decay(32, 6400, 100.0, 0.05) == pytest.approx(0.5 ** (32 / 100))
    assert ema_decay(32, 200_000, 10_000.0, 0.05) == pytest.approx(0.5 ** (32 / 10_000))
    assert ema_decay(32, 32, 10_000.0, 0.0) == pytest.approx(0.5 ** (32 / 10_000))
    assert ema_decay(32, 0, 10_000.0, 0.05) == 0.0
    assert ema_decay(32, 6400, 0.0, 0.05) == 0.0


def test_the_average_moves_towards_the_network() -> None:
    average, network = (build_generator(tiny_config({"seed": s}), CPU) for s in (0, 1))
    before, target = weights_of(average), weights_of(network)
    moving = PlainAverage(average, network)
    moving.update(0.75)
    for now, old, new, own in zip(
        average.parameters(), before, target, network.parameters(), strict=True
    ):
        torch.testing.assert_close(now.detach(), 0.75 * old + 0.25 * new)
        assert torch.equal(own, new)
    moving.update(0.0)
    for now, new in zip(average.parameters(), target, strict=True):
        assert torch.equal(now, new)
