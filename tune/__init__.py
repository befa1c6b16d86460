"""Which hyperparameters: search spaces, trials, schedulers and results of sweeps on Ray Tune."""
