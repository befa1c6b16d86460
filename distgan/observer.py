"""What a run shows while it trains: speed, sample videos and the proxy distance."""

import time

import torch
from torch import Tensor

from distgan import storage
from distgan.config import Config
from distgan.data.conditioning import condition
from distgan.data.stream import ClipStream
from distgan.ema import Average
from distgan.generator import Generator
from distgan.metrics.proxy import ProxyDistance
from distgan.metrics.writer import MetricsWriter
from distgan.pictures import contact_sheet, enlarge, grid, write_gif
from distgan.sampling import Sampler
from distgan.team import Team, from_first


class Observer:
    """Draws samples from the averaged generator with seeds 0, 1, 2, ... and measures them.

    All ranks call its methods together; rank 0 alone draws and writes, the others have no writer.
    """

    def __init__(
        self,
        config: Config,
        stream: ClipStream,
        average: Average,
        writer: MetricsWriter | None,
        team: Team,
        device: torch.device,
    ) -> None:
        self.config, self.stream, self.writer = config, stream, writer
        self.average, self.team, self.device = average, team, device
        self._real: Tensor | None = None
        self._proxy: ProxyDistance | None = None
        self._last_log: tuple[float, int] | None = None

    def speed(self, times: dict[str, float], clips_seen: int) -> dict[str, float]:
        """Throughput since the last call (wall time, all included) and time per part of a step."""
        now = time.monotonic()
        speed = dict(times)
        if self._last_log is not None:
            then, clips_then = self._last_log
            speed["throughput/clips_per_s"] = (clips_seen - clips_then) / (now - then)
        self._last_log = (now, clips_seen)
        if self.device.type == "cuda":
            speed["memory/peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return speed

    def quality_if_due(self, step: int) -> dict[str, float]:
        """The proxy Frechet distance of the averaged generator's clips, at its interval."""
        interval = self.config.log.proxy_interval_steps
        if interval == 0 or step % interval:
            return {}
        distance = None
        with self.average.whole() as generator:
            if self.team.rank == 0:
                real = self._real_clips()
                if self._proxy is None:
                    self._proxy = ProxyDistance(real, device=self.device)
                distance = self._proxy.distance(self._sample(generator, real))
        return {"quality/proxy_frechet_ema": from_first(self.team, distance)}

    def samples_if_due(self, step: int) -> None:
        """Sample videos and an image grid, to TensorBoard and `samples/`, at their interval."""
        interval = self.config.log.sample_interval_steps
        if interval == 0 or step % interval:
            return
        with self.average.whole() as generator:
            if self.writer is not None:
                shown = self._shown_clips()
                made = self._sample(generator, shown)
                self._show(self.writer, step, shown, made)

    def _show(self, writer: MetricsWriter, step: int, shown: Tensor, made: Tensor) -> None:
        real, clips = (c.permute(0, 2, 3, 4, 1).numpy() for c in (shown, made))
        rate = self.stream.manifest.clip.frame_rate_hz or 8.0
        writer.video("samples/ema", step, clips, rate)
        writer.image("samples/first_frames", step, enlarge(grid(clips)[0], 256))
        folder = storage.join(self.config.run.dir, "samples")
        write_gif(storage.join(folder, f"step_{step:08d}.gif"), clips, rate, least_size=256)
        contact_sheet(
            [("real", real), (f"generated, step {step}", clips)],
            storage.join(folder, f"step_{step:08d}.png"),
        )

    def _sample(self, generator: Generator, real: Tensor) -> Tensor:
        """uint8 as `real`: seeds 0, 1, 2, ..., on the conditions that these real clips give."""
        given, known = condition(real.float() / 127.5 - 1, self.config.conditioning)
        sampler = Sampler(generator, self.config.train.precision)
        return sampler.clips(range(len(real)), given, known)

    def _shown_clips(self) -> Tensor:
        """Of the real clips, `log.num_samples` that lie far apart: few videos repeat themselves."""
        real, count = self._real_clips(), self.config.log.num_samples
        return real[:: len(real) // count][:count]

    def _real_clips(self) -> Tensor:
        """uint8 (N, 3, T, H, W): the same real clips at every call and every start."""
        if self._real is None:
            wanted = max(self.config.log.proxy_clips, self.config.log.num_samples)
            self._real = self.stream.reference_clips(wanted)
        return self._real
