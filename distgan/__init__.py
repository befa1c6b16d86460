"""The science and the step: models, attention, losses, data, metrics and the trainer."""

__version__ = "0.1.0"
