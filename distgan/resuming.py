"""What a checkpoint remembers of a run beside its tensors, and how a run takes it up again."""

from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from distgan.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_folder,
    load_newest,
    read_checkpoint,
    set_aside_after,
)
from distgan.errors import UserError
from distgan.team import Team, failing_together, from_first

if TYPE_CHECKING:
    from distgan.trainer import Trainer


def run_state(trainer: "Trainer") -> dict[str, Any]:
    """As JSON: counters, the stream's position, what stop rules and means remember."""
    return {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "compute_seconds": trainer.compute.seconds,
        "stream": {
            "samples": trainer.clips_seen,
            "data_set": trainer.stream.digest,
            "damage": trainer.stream.damage.state(),
        },
        "rules": trainer.rules.state(),
        "means": trainer.means.state(),
        "frame_rate_hz": trainer.stream.manifest.clip.frame_rate_hz,
        "config": trainer.config.model_dump(mode="json"),
    }


def resume(trainer: "Trainer") -> bool:
    """Puts the trainer where its run's newest whole checkpoint is, if there is one.

    Without one, a new run starts from the weights that `run.init_from` names. All ranks call it;
    rank 0 chooses the checkpoint for all.

    Returns:
        Whether there was a checkpoint.

    Raises:
        UserError: the checkpoints, or those of `run.init_from`, do not fit this run.
    """
    run_dir, source = trainer.config.run.dir, trainer.config.run.init_from
    checkpoint = _newest_for_all(run_dir, trainer.team)
    if checkpoint is not None:
        trainer.say(f"resuming {run_dir} from step {checkpoint.step}")
        _load(trainer, checkpoint)
    elif source:
        _init_from(trainer, source)
    with failing_together(trainer.team):
        if trainer.team.rank == 0:
            set_aside_after(run_dir, trainer.step)
    return checkpoint is not None


def _newest_for_all(run_dir: str, team: Team) -> Checkpoint | None:
    """Rank 0 chooses, as it alone passes by what is damaged; what fails on one rank all raise."""
    checkpoint = None
    with failing_together(team):
        if team.rank == 0:
            checkpoint = _newest(run_dir)
    chosen = from_first(team, [checkpoint.step, checkpoint.digest] if checkpoint else None)
    if chosen is None:
        return None
    with failing_together(team):
        checkpoint = checkpoint or _chosen(run_dir, *chosen)
    return checkpoint


def _chosen(run_dir: str, step: int, digest: str) -> Checkpoint:
    folder = checkpoint_folder(run_dir, step)
    try:
        checkpoint = read_checkpoint(folder, step)
        if checkpoint.digest != digest:
            raise DamagedCheckpointError(f"{folder} is another checkpoint")
        return checkpoint
    except DamagedCheckpointError as error:
        raise UserError(
            f"{error}, while rank 0 found it whole: run the same command again; if it comes again, "
            "see why this machine does not see the same files"
        ) from error


def _newest(run_dir: str) -> Checkpoint | None:
    checkpoint, problems = load_newest(run_dir)
    for problem in problems:
        tqdm.write(f"damaged checkpoint passed by: {problem}")
    return checkpoint


def _load(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    state, stream, damage = checkpoint.state, trainer.stream, trainer.stream.damage
    _check_shapes(trainer, checkpoint)
    try:
        if state["stream"]["data_set"] != stream.digest:
            raise UserError(
                f"data.shards={stream.folder} is not the data set that this run was trained "
                "on (its manifest differs); give that one, or start a new run with run.init_from"
            )
        if state["step"] != checkpoint.step:
            raise ValueError(f"step={state['step']}")
        for part in (trainer.average, *trainer.engines):
            part.load_state_tensors(checkpoint.tensors)
        trainer.step = trainer.saved_step = checkpoint.step
        trainer.seconds = trainer.earlier_seconds = float(state["seconds"])
        trainer.compute.set(float(state.get("compute_seconds", 0.0)))  # older checkpoints have none
        trainer.rules.load_state(state["rules"])
        trainer.means.load_state(state["means"], trainer.device)
        damage.load_state(state["stream"].get("damage", {}))  # older checkpoints have none
        found = damage.summary() if damage.num_shards else ""
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{checkpoint.folder} holds no state of a run of this version ({error!r}); remove it, "
            "and the run goes on from the one before"
        ) from error
    if found:
        trainer.say(f"damaged data found before: {found}")


def _check_shapes(trainer: "Trainer", checkpoint: Checkpoint) -> None:
    """Raises `UserError` unless the weights are this run's: a smaller tensor would be spread over
    a larger one without a word."""
    wanted = _weight_shapes(trainer)
    there = {name: tuple(t.shape) for name, t in checkpoint.tensors.items()}
    for name, shape in there.items():
        network, optimizer, rest = name.partition(".optimizer/")
        if optimizer and shape:  # one number, such as its count of steps, has none
            wanted[name] = wanted.get(f"{network}/{rest.rpartition('/')[0]}", ())
    for name, shape in wanted.items():
        if there.get(name) != shape:
            raise UserError(
                f"{checkpoint.folder}: {name} has shape {there.get(name)} instead of {shape}; the "
                "checkpoint is not of this run: remove it, and the run goes on from the one before"
            )


def _weight_shapes(trainer: "Trainer") -> dict[str, tuple[int, ...]]:
    shapes = dict(trainer.average.parameter_shapes())
    for engine in trainer.engines:
        shapes |= engine.parameter_shapes()
    return shapes


def _init_from(trainer: "Trainer", source: str) -> None:
    """Starts a new run from another's newest weights: both networks and the average."""
    checkpoint = _newest_for_all(source, trainer.team)
    if checkpoint is None:
        raise UserError(f"run.init_from={source}: no complete checkpoint there")
    wanted = _weight_shapes(trainer)
    ours = {n: t for n, t in checkpoint.tensors.items() if ".optimizer/" not in n}
    there = {n: tuple(t.shape) for n, t in ours.items()}
    if wanted != there:
        differing = len(set(wanted.items()) ^ set(there.items()))
        raise UserError(
            f"run.init_from={source}: its networks are not those of this configuration "
            f"({differing} names or shapes differ); use the same model section"
        )
    for part in (trainer.average, *trainer.engines):
        part.load_state_tensors(ours)
