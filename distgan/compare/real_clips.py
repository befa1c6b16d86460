"""The few real clips that the report shows, kept in its folder: the data set may move or go."""

import io

import numpy as np
import torch
from torch import Tensor

from distgan import storage
from distgan.config import Config
from distgan.data.stream import ClipStream
from distgan.errors import UserError

REAL_CLIPS = "real_clips.npy"
NUM_REAL_CLIPS = 4


def keep_real_clips(config: Config, path: str) -> None:
    """Writes some of the data set's clips, the same each time, as an array of NumPy."""
    data = config.data
    stream = ClipStream(data.shards, data, seed=0, batch_size=config.train.batch_size)
    buffer = io.BytesIO()
    np.save(buffer, stream.reference_clips(NUM_REAL_CLIPS).contiguous().numpy())
    storage.write_bytes(path, buffer.getvalue())


def read_real_clips(path: str) -> Tensor:
    """What `keep_real_clips` wrote: uint8 (NUM_REAL_CLIPS, 3, T, H, W).

    Raises:
        UserError: the file is damaged.
    """
    try:
        clips = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
        if clips.dtype != np.uint8 or clips.ndim != 5:
            raise ValueError(f"it holds {clips.dtype} of shape {clips.shape}")
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is damaged: {error}; remove it and run the command that began the comparison "
            "again, without --report-only"
        ) from error
    return torch.from_numpy(clips)
