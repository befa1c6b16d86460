"""The adversarial objectives, whole on one screen: scores in, one loss per clip out.

`real_B` and `fake_B` are the discriminator's scores; clip i of the real batch is paired with clip i
of the generated one. The trainer takes the mean over the global batch and runs the backward.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def relativistic_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """softplus(-(D(x) - D(G(z)))): RpGAN, Huang et al. 2024 (R3GAN), equation 2."""
    return F.softplus(fake_B - real_B)


def relativistic_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The same with the roles exchanged."""
    return F.softplus(real_B - fake_B)


def bce_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Binary cross-entropy from logits, real 1 and fake 0 (Goodfellow et al. 2014, equation 1)."""
    return F.softplus(-real_B) + F.softplus(fake_B)


def bce_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """The non-saturating form: -log sigmoid(D(G(z)))."""
    return F.softplus(-fake_B)


def hinge_discriminator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim and Ye 2017, equation 3)."""
    return F.relu(1 - real_B) + F.relu(1 + fake_B)


def hinge_generator(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """-D(G(z))."""
    return -fake_B


DISCRIMINATOR_LOSSES: dict[str, Loss] = {
    "relativistic": relativistic_discriminator,
    "bce": bce_discriminator,
    "hinge": hinge_discriminator,
}
GENERATOR_LOSSES: dict[str, Loss] = {
    "relativistic": relativistic_generator,
    "bce": bce_generator,
    "hinge": hinge_generator,
}
# Only this generator loss looks at the real clips, so only it pays for their scores.
GENERATOR_LOSSES_THAT_READ_REAL = frozenset({"relativistic"})
