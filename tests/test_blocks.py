"""Convolutions equal PyTorch's own, cells move without loss, start weights follow from names."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distgan.blocks import (
    Downsample,
    ModulatedBlock,
    ResidualBlock,
    Smooth,
    SpatialConv,
    TemporalConv,
    Upsample,
    depth_to_space,
    initialise,
    levels_that_halve_time,
    normalise_channels,
    space_to_depth,
)
from distgan.networks import build_discriminator, build_generator
from tests.tiny_networks import CPU, randomise, tiny_config


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("space", "time"), [(1, 1), (2, 1), (2, 2), (4, 1), (1, 2), (3, 2)])
def test_cells_move_without_loss(space: int, time: int) -> None:
    x = draws(2, 2 * time, 3 * space, 2 * space, 5)
    deep = space_to_depth(x, space, time)
    assert deep.shape == (2, 2, 3, 2, 5 * time * space**2)
    assert torch.equal(depth_to_space(deep, space, time), x)
    assert torch.equal(space_to_depth(depth_to_space(deep, space, time), space, time), deep)
    # A place holds exactly the values of its own cell.
    cell = x[1, time : 2 * time, 2 * space : 3 * space, :space]
    assert torch.equal(deep[1, 1, 2, 0].sort()[0], cell.flatten().sort()[0])


CONVOLUTIONS = [(SpatialConv, (1, 3, 3), (0, 1, 1)), (TemporalConv, (3, 1, 1), (1, 0, 0))]


def as_conv3d(layer: nn.Conv2d, kernel: tuple[int, ...], padding: tuple[int, ...]) -> nn.Conv3d:
    outputs, inputs = layer.weight.shape[:2]
    plain = nn.Conv3d(inputs, outputs, kernel, padding=padding)
    with torch.no_grad():
        plain.weight.copy_(layer.weight.reshape(plain.weight.shape))
        plain.bias.copy_(layer.bias)  # type: ignore[union-attr, arg-type]
    return plain


@pytest.mark.parametrize(("kind", "kernel", "padding"), CONVOLUTIONS)
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (1, 1, 3, 3), (3, 2, 1, 1)], ids=str)
def test_convolutions_equal_three_dimensional_ones(
    kind: Callable[[int, int], nn.Conv2d],
    kernel: tuple[int, ...],
    padding: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    layer = kind(6, 10)
    initialise(layer, 0, "test")
    randomise(layer)
    plain = as_conv3d(layer, kernel, padding)
    x_BTHWC = draws(*shape, 6).requires_grad_()
    x_BCTHW = x_BTHWC.detach().permute(0, 4, 1, 2, 3).contiguous().requires_grad_()
    output, expected = layer(x_BTHWC), plain(x_BCTHW)
    torch.testing.assert_close(output.permute(0, 4, 1, 2, 3), expected)
    upstream = draws(*output.shape, seed=1)
    got = torch.autograd.grad(output, [x_BTHWC, layer.weight, layer.bias], upstream)  # type: ignore[list-item]
    wanted = torch.autograd.grad(
        expected,
        [x_BCTHW, plain.weight, plain.bias],  # type: ignore[list-item]
        upstream.permute(0, 4, 1, 2, 3),
    )
    torch.testing.assert_close(got[0].permute(0, 4, 1, 2, 3), wanted[0])
    torch.testing.assert_close(got[1].reshape(wanted[1].shape), wanted[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[2], wanted[2], rtol=1e-5, atol=1e-5)


def weight_gradient(layer: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(layer(x).float().square().sum(), weight)
    return gradient


def worst_bf16_error(layer: nn.Module, weight: Tensor, x: Tensor) -> float:
    """The largest relative error of the weight gradient over repeats on memory full of NaN."""
    exact = weight_gradient(layer, weight, x)
    worst = 0.0
    for _ in range(12):
        # Freed memory that is read before it is written shows itself.
        dirt = [torch.full((size,), torch.nan) for size in (1 << k for k in range(6, 22))]
        del dirt
        with torch.autocast("cpu", torch.bfloat16):
            low = weight_gradient(layer, weight, x)
        error = ((low - exact).norm() / exact.norm()).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("channels", [8, 32, 64])
@pytest.mark.parametrize("kind", [SpatialConv, TemporalConv])
def test_bf16_weight_gradients_are_right_on_short_clips(
    kind: Callable[[int, int], nn.Conv2d], channels: int, frames: int
) -> None:
    layer = kind(channels, channels)
    initialise(layer, 0, "test")
    x_BTHWC = draws(2, frames, 8, 8, channels)
    assert worst_bf16_error(layer, layer.weight, x_BTHWC) < 0.02


class PlainTemporal(nn.Module):
    """What `TemporalConv` would be with a 3D kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        images = x_BTHWC.permute(0, 4, 1, 2, 3)
        return self.conv(images).permute(0, 2, 3, 4, 1)


def test_the_check_of_bf16_gradients_sees_the_fault_of_3d_kernels() -> None:
    """Shows why 2D kernels are used; when this skips, torch's fault may be gone."""
    errors = []
    for channels in (8, 32, 64):
        plain = PlainTemporal(channels)
        initialised = draws(*plain.conv.weight.shape) * (3 * channels) ** -0.5
        with torch.no_grad():
            plain.conv.weight.copy_(initialised)
        errors.append(worst_bf16_error(plain, plain.conv.weight, draws(2, 2, 8, 8, channels)))
    if max(errors) < 0.02:
        pytest.skip(f"torch {torch.__version__} computes it rightly on this processor: {errors}")


def test_initialisation_follows_from_seed_purpose_and_name_alone() -> None:
    torch.manual_seed(0)
    first = ResidualBlock(8)
    initialise(first, 3, "p")
    torch.manual_seed(1)
    second = ResidualBlock(8)
    before = torch.get_rng_state()
    initialise(second, 3, "p")
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)

    class Reordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(3, 3)
            self.time = TemporalConv(8, 8)
            self.space_in = SpatialConv(8, 8)

    other = Reordered()
    initialise(other, 3, "p")
    assert torch.equal(other.time.weight, first.time.weight)
    assert torch.equal(other.space_in.weight, first.space_in.weight)
    for seed, purpose in ((4, "p"), (3, "q")):
        initialise(second, seed, purpose)
        assert not torch.equal(first.time.weight, second.time.weight)


def test_start_weights_have_their_variances() -> None:
    block, linear, norm = SpatialConv(64, 96), nn.Linear(200, 300), nn.RMSNorm(7)
    for module in (block, linear, norm):
        randomise(module)
        initialise(module, 0, "test")
    assert abs(block.weight.var().item() / (1.39**2 / (64 * 9)) - 1) < 0.05
    assert abs(linear.weight.var().item() / (1 / 200) - 1) < 0.05
    assert not block.bias.any() and not linear.bias.any()  # type: ignore[union-attr]
    assert norm.weight.eq(1).all()


def test_an_unknown_parameter_is_refused() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(2))

    with pytest.raises(AssertionError, match="gain"):
        initialise(Unknown(), 0, "test")


def test_residual_branches_start_alive_but_below_their_input() -> None:
    """A branch that starts at zero makes a linear discriminator, which collapses the generator."""
    x_BTHWC, style_BS = draws(8, 4, 8, 8, 16), draws(8, 6)
    plain, modulated = ResidualBlock(16), ModulatedBlock(16, 6)
    for block in (plain, modulated):
        initialise(block, 0, "test")
    for output in (plain(x_BTHWC), modulated(x_BTHWC, style_BS)):
        branch = (output - x_BTHWC).std() / x_BTHWC.std()
        assert 0.2 < branch < 1.0


@pytest.mark.parametrize("task", ["none", "prediction"])
def test_exactly_the_biases_start_at_zero(task: str) -> None:
    config = tiny_config({"conditioning.task": task})
    for network in (build_generator(config, CPU), build_discriminator(config, CPU)):
        zero = {n for n, p in network.named_parameters() if not p.any()}
        assert zero == {n for n, _ in network.named_parameters() if n.endswith("bias")}


def test_layers_on_cells_start_as_mean_and_as_enlargement() -> None:
    """No checkerboard at the start: all cells of a patch are treated alike."""
    down, up = Downsample(3, 5, in_time=True), Upsample(5, 3, in_time=False)
    for layer in (down, up):
        initialise(layer, 0, "test")
    constant = draws(2, 1, 1, 1, 3).expand(2, 4, 4, 4, 3)
    varied = constant + (noise := draws(2, 4, 4, 4, 3)) - noise.mean(dim=(1, 2, 3), keepdim=True)
    means = [down(x).mean(dim=(1, 2, 3)) for x in (constant, varied)]
    assert torch.allclose(means[0], means[1], atol=1e-5)
    up.smooth = nn.Identity()  # type: ignore[assignment]
    enlarged = up(draws(2, 1, 2, 2, 5))
    assert torch.equal(
        enlarged, enlarged[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


def test_smooth_removes_the_finest_checkerboard_and_keeps_planes() -> None:
    smooth = Smooth()
    initialise(smooth, 0, "test")
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    rows, columns = signs.view(1, 1, 8, 1, 1), signs.view(1, 1, 1, 8, 1)
    for mesh in (rows, columns, rows * columns):
        smoothed = smooth(mesh.expand(2, 3, 8, 8, 5))
        assert smoothed.shape == (2, 3, 8, 8, 5)
        assert not smoothed[:, :, 1:-1, 1:-1].any()
    ramp = torch.arange(8.0)
    plane = (2 * ramp.view(1, 1, 8, 1, 1) - ramp.view(1, 1, 1, 8, 1)).expand(1, 1, 8, 8, 3)
    assert torch.allclose(smooth(plane)[:, :, 1:-1, 1:-1], plane[:, :, 1:-1, 1:-1])
    constant = torch.full((1, 2, 4, 4, 3), 0.7)
    assert torch.allclose(smooth(constant), constant)  # to the very edge


def test_down_and_up_keep_to_their_cells() -> None:
    down, up = Downsample(3, 5, in_time=True), Upsample(5, 3, in_time=True)
    x = draws(1, 4, 6, 6, 3)
    assert down(x).shape == (1, 2, 3, 3, 5) and up(down(x)).shape == x.shape
    moved = x.clone()
    moved[0, 2:4, 2:4, 4:6] += 1
    changed = (down(moved) - down(x)).abs().amax(-1)[0] > 0
    assert changed.nonzero().tolist() == [[1, 1, 2]]
    assert Downsample(3, 5, in_time=False)(x).shape == (1, 4, 3, 3, 5)


@pytest.mark.parametrize(
    ("temporal", "levels", "halves"),
    [(0, 3, [False, False]), (1, 3, [False, True]), (2, 3, [True, True]), (0, 1, [])],
)
def test_the_coarsest_steps_halve_time(temporal: int, levels: int, halves: list[bool]) -> None:
    assert levels_that_halve_time(temporal, levels) == halves


def test_space_and_time_do_not_mix_in_the_wrong_layer() -> None:
    x = draws(1, 5, 5, 5, 2)
    moved = x.clone()
    moved[0, 2, 2, 2] += 1
    for layer, reach in ((SpatialConv(2, 2), (1, 3, 3)), (TemporalConv(2, 2), (3, 1, 1))):
        changed = (layer(moved) - layer(x)).abs().amax(-1)[0] > 0
        places = changed.nonzero()
        assert tuple((places.max(0)[0] - places.min(0)[0] + 1).tolist()) == reach


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1.0, 1e4, 1e11])
def test_normalising_changes_no_bit_of_layer_normalisation(size: float) -> None:
    def derivatives(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = (size * torch.randn(2, 3, 4, 4, 24)).requires_grad_()
        weights = torch.randn(24)
        out = function(x)
        (first,) = torch.autograd.grad((out * weights).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * weights).square().sum(), x)
        return [out, first, second]

    torch.manual_seed(0)
    got = derivatives(normalise_channels)
    torch.manual_seed(0)
    wanted = derivatives(lambda x: nn.functional.layer_norm(x, x.shape[-1:]))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e13, 1e18, 3e18, 1e19, 1e25, 3e37])
def test_normalising_takes_large_numbers(size: float, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 4, 24, generator=torch.Generator().manual_seed(0))
    large = (size * x).to(dtype)
    wanted = nn.functional.layer_norm(large.double(), (24,)).float()
    torch.testing.assert_close(normalise_channels(large.float()), wanted, rtol=1e-4, atol=1e-4)
    got = normalise_channels(large).float()
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)
