"""Every draw follows from (seed, purpose, step, index) alone, and no global state is touched."""

import random

import numpy as np
import torch

from distgan.networks import build_discriminator, build_generator
from distgan.sampling import Sampler
from distgan.seeding import (
    derive_seed,
    normal_per_clip,
    numpy_generator,
    torch_generator,
    uniform_per_clip,
)
from tests.tiny_networks import CPU, PLACES, tiny_clips, tiny_config, tiny_step


def test_derived_seeds_are_pinned() -> None:
    # printf '0/latent/1/2' | sha256sum starts with 4b142f1c55381a8b; the last bit is cut off.
    assert derive_seed(0, "latent", 1, 2) == 0x4B142F1C55381A8B >> 1
    assert derive_seed(7, "x") == derive_seed(7, "x", 0, 0)


def test_each_part_of_the_address_matters() -> None:
    addresses = [
        (seed, purpose, step, index)
        for seed in (0, 1, 11)
        for purpose in ("a", "b", "a/1", "1")
        for step in (0, 1, 11)
        for index in (0, 1, 11)
    ]
    assert len({derive_seed(*address) for address in addresses}) == len(addresses)
    firsts = {
        torch.randn(1, generator=torch_generator(*address, CPU)).item() for address in addresses
    }
    assert len(firsts) == len(addresses)
    assert len({numpy_generator(*address).random() for address in addresses}) == len(addresses)
    assert all(0 <= derive_seed(*address) < 2**63 for address in addresses)


def test_splitting_a_batch_changes_no_draw() -> None:
    address = {"seed": 3, "purpose": "p", "step": 5, "device": CPU}
    whole = normal_per_clip((3, 5), places=range(6), **address)  # type: ignore[arg-type]
    parts = [
        normal_per_clip((3, 5), places=places, **address)  # type: ignore[arg-type]
        for places in ([0], [1, 2, 3], [4, 5])
    ]
    assert torch.equal(whole, torch.cat(parts))
    backwards = normal_per_clip((3, 5), places=range(5, -1, -1), **address)  # type: ignore[arg-type]
    assert torch.equal(whole, backwards.flip(0))
    assert len(whole[:, 0, 0].unique()) == 6
    uniform = uniform_per_clip(4, places=range(6), **address)  # type: ignore[arg-type]
    assert torch.equal(uniform[2:4], uniform_per_clip(4, places=[2, 3], **address))  # type: ignore[arg-type]
    assert uniform.min() >= 0 and uniform.max() < 1


def test_draws_have_their_distribution() -> None:
    draws = normal_per_clip((1000,), seed=0, purpose="p", step=0, places=range(40), device=CPU)
    assert abs(draws.mean().item()) < 0.02 and abs(draws.std().item() - 1) < 0.02
    across = np.corrcoef(draws[:, :200].numpy())[np.triu_indices(40, 1)]
    assert abs(across).max() < 0.35  # five deviations: clips are independent


def global_states() -> list[bytes]:
    return [
        torch.get_rng_state().numpy().tobytes(),
        repr(np.random.get_state()).encode(),
        repr(random.getstate()).encode(),
    ]


def test_global_random_state_is_neither_used_nor_changed() -> None:
    config = tiny_config(
        {
            "train.augment.probability": 0.5,
            "train.augment.instance_noise": 0.1,
            "loss.penalty_interval": 1,
            "conditioning.task": "prediction",
        }
    )
    clips = tiny_clips(config)
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        before = global_states()
        step = tiny_step(config)
        step.run(clips, PLACES, 1)
        generator = build_generator(tiny_config(), CPU)
        sampled = Sampler(generator, "fp32", truncation=0.5).clips([1, 2])
        build_discriminator(config, CPU)
        assert global_states() == before
        weights = [*step.generator.module.parameters(), *step.discriminator.module.parameters()]
        results.append([*weights, sampled])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
