"""`python -m tests.curve_sweep RUN DATA SEED`: a whole asha sweep on Ray, of trials on curves.

All but the training is a sweep's own: driver, ledger, Tune, trials' processes, records, results.
"""

import sys

from distgan.config import Config
from distgan.config_loading import load_config
from distgan.metrics.writer import MetricsWriter
from distgan.trainer import Listener, Outcome, StopRequests
from tests.simulated_sweep import METRIC, X, Y, branin_curve, spec_of
from tests.tiny import TINY
from tune.results import write_results
from tune.sweep import run_sweep

STEPS = 27
PLACES = [2.5, 7.5, 12.5]
GRID = {X: {"choice": PLACES}, Y: {"choice": PLACES}}


def follow_curve(
    config: Config, *, show_progress: bool, requests: StopRequests, listener: Listener
) -> Outcome:
    """In place of training: logs the values of a learning curve, one a step."""
    curve = branin_curve(config.loss.gamma, config.train.augment.instance_noise, 0)
    with MetricsWriter(config.run.dir) as writer:
        for step in range(1, STEPS + 1):
            logged = {METRIC: curve.train({}, step)}
            writer.scalars(step, logged)
            listener(step, float(step), logged)
            if requests.received is not None:
                return Outcome(step=step, reason="asked to stop", signal=requests.received)
    return Outcome(step=STEPS, reason=f"train.max_steps={STEPS}")


def main(run: str, data: str, seed: str) -> None:
    config = load_config(overrides=[
        *TINY, f"run.dir={run}", f"data.shards={data}", f"seed={seed}",
        f"train.max_steps={STEPS}", "log.proxy_interval_steps=1",
    ])  # fmt: skip
    spec = spec_of("asha", GRID, max_steps=STEPS, num_trials=27, seed=int(seed), reduction_factor=4)
    outcome = run_sweep(config, spec, follow_curve)
    assert outcome.is_complete
    print(write_results(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
