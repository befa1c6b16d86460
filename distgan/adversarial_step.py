"""One G+D step: the discriminator's phase, then the generator's, each over its micro-batches.

The objective is in `losses.py` and `penalties.py`; this module decides what each network sees, and
in which order. All draws follow from (seed, purpose, step, place in the global batch).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan import penalties
from distgan.augmentation import augment
from distgan.config import Config
from distgan.data.conditioning import condition
from distgan.engine import Engine
from distgan.errors import NonFiniteError
from distgan.losses import (
    DISCRIMINATOR_LOSSES,
    GENERATOR_LOSSES,
    GENERATOR_LOSSES_THAT_READ_REAL,
)
from distgan.optimizers import decay, learning_rate
from distgan.seeding import normal_per_clip
from distgan.timing import PartTimer

Metrics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Some clips of the global batch, and where in it they stand."""

    clips_BCTHW: Tensor
    """float32 in [-1, 1]."""
    places: Sequence[int]
    step: int


def to_float(clips_uint8: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return clips_uint8.float().mul_(1 / 127.5).sub_(1)


def contagious(loss: Tensor) -> Tensor:
    """The same loss; if it is not finite, its gradients are not, and by them all ranks know."""
    return loss * (1 + 0 * loss.detach())


class AdversarialStep:
    """Holds the two engines and runs one step on a global (or this rank's part of a) batch."""

    def __init__(
        self, config: Config, generator: Engine, discriminator: Engine, timer: PartTimer
    ) -> None:
        self.config = config
        self.timer = timer
        self.generator = generator
        self.discriminator = discriminator
        self.schedule_steps = config.train.schedule_steps or config.train.max_steps

    def run(self, clips_uint8: Tensor, places: Sequence[int], step: int) -> Metrics:
        """Updates D, then G. Metrics stay on the device.

        Args:
            clips_uint8: (B, 3, T, H, W) on the device.
            places: each clip's place in the global batch.
            step: the number of the step that this makes; the first is 1.

        Raises:
            NonFiniteError: a loss or gradient is not finite, on any rank; that network was not
                updated, on no rank.
        """
        assert len(places) % self.config.train.accumulation == 0, "micro-batches weigh the same"
        size = len(places) // self.config.train.accumulation
        batches = [
            MicroBatch(
                clips_BCTHW=to_float(clips_uint8[start : start + size]),
                places=places[start : start + size],
                step=step,
            )
            for start in range(0, len(places), size)
        ]
        with self.timer.part("discriminator"):
            metrics = self._phase(self.discriminator, self.discriminator_loss, batches, step)
        with self.timer.part("generator"):
            return metrics | self._phase(self.generator, self.generator_loss, batches, step)

    def _phase(
        self,
        engine: Engine,
        loss_of: Callable[[MicroBatch], tuple[Tensor, Metrics]],
        batches: Sequence[MicroBatch],
        step: int,
    ) -> Metrics:
        """One update of one network: backward per micro-batch, then the step."""
        total: Metrics = {}
        for batch in batches:
            loss, metrics = loss_of(batch)
            engine.backward(contagious(loss) / len(batches))
            for name, value in metrics.items():
                total[name] = total.get(name, 0) + value.detach() / len(batches)
        optim = getattr(self.config.optim, engine.name)
        rate = learning_rate(optim, step, self.schedule_steps)
        try:
            norm = engine.step(rate)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}") from error
        return total | {
            f"gradient_norm/{engine.name}": norm,
            f"learning_rate/{engine.name}": torch.tensor(rate),
        }

    def discriminator_loss(self, batch: MicroBatch) -> tuple[Tensor, Metrics]:
        """The mean loss of D on a micro-batch, with the penalty where it is due."""
        config = self.config.loss
        with torch.no_grad(), self.generator.frozen():
            generated = self._generate(batch, self.generator.bare, "discriminator")
        real = self._augment(batch.clips_BCTHW, batch, "discriminator/real")
        fake = self._augment(generated, batch, "discriminator/fake")
        due = config.penalty != "none" and batch.step % config.penalty_interval == 0
        if due:
            real_B, fake_B, penalty_B, metrics = self._scores_and_penalty(real, fake, batch)
        else:
            real_B, fake_B = self.discriminator(torch.cat((real, fake))).chunk(2)
            penalty_B, metrics = torch.zeros_like(real_B), {}
        adversarial_B = DISCRIMINATOR_LOSSES[config.kind](real_B, fake_B)
        metrics |= {
            "loss/discriminator": adversarial_B.mean(),
            "score/real": real_B.mean(),
            "score/fake": fake_B.mean(),
            "score/sign": (real_B > fake_B).float().mean(),
        }
        return (adversarial_B + penalty_B).mean(), metrics

    def generator_loss(self, batch: MicroBatch) -> tuple[Tensor, Metrics]:
        """The mean loss of G on a micro-batch; D is frozen and called bare."""
        kind = self.config.loss.kind
        generated = self._generate(batch, self.generator, "generator")
        with self.discriminator.frozen():
            real_B: Tensor | None = None
            if kind in GENERATOR_LOSSES_THAT_READ_REAL:
                # Before the fake clips: ZeRO-3 lets go of the weights after the backward of the
                # last forward only.
                with torch.no_grad():
                    real = self._augment(batch.clips_BCTHW, batch, "generator/real")
                    real_B = self.discriminator.bare(real)
            fake = self._augment(generated, batch, "generator/fake")
            fake_B = self.discriminator.bare(fake)
        real_B = torch.zeros_like(fake_B) if real_B is None else real_B
        loss = GENERATOR_LOSSES[kind](real_B, fake_B).mean()
        return loss, {"loss/generator": loss}

    def _generate(self, batch: MicroBatch, generator: Callable[..., Tensor], phase: str) -> Tensor:
        latent_dim = self.config.model.generator.latent_dim
        latent_BZ = self._normal((latent_dim,), f"latent/{phase}", batch)
        given, known = condition(batch.clips_BCTHW, self.config.conditioning)
        return generator(latent_BZ, given, known)

    def _normal(self, shape: tuple[int, ...], purpose: str, batch: MicroBatch) -> Tensor:
        return normal_per_clip(
            shape,
            seed=self.config.seed,
            purpose=purpose,
            step=batch.step,
            places=batch.places,
            device=batch.clips_BCTHW.device,
        )

    def _augment(self, video_BCTHW: Tensor, batch: MicroBatch, purpose: str) -> Tensor:
        return augment(
            video_BCTHW,
            self.config.train.augment,
            seed=self.config.seed,
            purpose=purpose,
            step=batch.step,
            places=batch.places,
        )

    def _scores_and_penalty(
        self, real: Tensor, fake: Tensor, batch: MicroBatch
    ) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """Scores of both, gamma / 2 times the penalty per clip, and its parts; in float32."""
        config = self.config.loss
        chosen = {"r1": real, "r2": fake}
        names = config.penalty.split("+")
        terms = [self._penalty_term(name, chosen[name], batch) for name in names]
        videos = [real, fake, *(video for term in terms for video in term.moved_videos)]
        scores = self.discriminator(torch.cat(videos), full_precision=True).chunk(len(videos))
        own_score = {"r1": scores[0], "r2": scores[1]}
        moved_scores = iter(scores[2:])
        metrics: Metrics = {}
        penalty_B = torch.zeros_like(scores[0])
        for name, term in zip(names, terms, strict=True):
            moved = [next(moved_scores) for _ in term.moved_videos]
            squared_norm_B = term.squared_norm(own_score[name], moved)
            metrics[f"penalty/{name}"] = squared_norm_B.mean()
            penalty_B = penalty_B + squared_norm_B
        factor = decay("cosine", config.gamma_final, batch.step, self.schedule_steps)
        weight = config.gamma * factor / 2 * config.penalty_interval
        return scores[0], scores[1], weight * penalty_B, metrics

    def _penalty_term(self, name: str, video: Tensor, batch: MicroBatch) -> penalties.PenaltyTerm:
        def bare(video: Tensor) -> Tensor:
            return self.discriminator.bare(video, full_precision=True)

        step = self.config.loss.penalty_step
        match self.config.loss.penalty_form:
            case "random_direction":
                direction = self._normal(tuple(video.shape[1:]), f"penalty/{name}", batch)
                return penalties.random_direction(video, direction, step)
            case "gradient_direction":
                with self.discriminator.frozen():
                    return penalties.gradient_direction(bare, video, step)
            case "exact":
                return penalties.exact(bare, video)
