"""Runs in folders: an experiment is trained, resumed, started from another run, and loaded again.

A folder holds config.json, metrics.jsonl, checkpoints, and the run it started from under start/ unless that has a
folder of its own.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from tinylatent.core.files import DamagedError, locked, read_json, write_json
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.launchers.launcher import RESULT
from tinylatent.lab.names import settings, short, written
from tinylatent.lab.run import NotInstalledError
from tinylatent.lab.words import Words
from tinylatent.objectives.examples import Examples, Speaker
from tinylatent.objectives.method import Model
from tinylatent.training.checkpoints import CONFIG, find_checkpoint, load_weights, look_again, restart
from tinylatent.training.inherit import inherit_weights
from tinylatent.training.loop import ended, fit
from tinylatent.training.team import ALONE, Alone

START = "start"  # folder of the run that another starts from


def train(
    experiment: Experiment,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    start: Path | None = None,
    team: Alone = ALONE,
) -> Model:
    """Trains to the end, from the newest checkpoint under `folder` if there is one.

    Args:
        experiment: what to train.
        folder: where config.json, metrics.jsonl and checkpoints go; None keeps nothing.
        device: where to train.
        on_progress: told (steps done, loss) at the start and whenever metrics are logged; progress bars hang here.
        say: receives one-line remarks, such as where a run was resumed.
        start: folder of the run to start from, if there is one; by default it is trained first, under folder/start.
        team: the processes that train; this one alone by default. All call this with the same arguments.

    Raises:
        ValueError: the folder holds another experiment or is in use, a stage has no steps, a batch exceeds the training
            part, the start is another or unfinished, or training diverged.
        DamagedError: a stored file is damaged.
    """
    speaker = check_training(experiment, folder, start)
    if folder is None:
        return _train(experiment, speaker, None, device, on_progress, say, start, team)
    with locked(folder) if team.leads else nullcontext():
        if team.leads and not (folder / CONFIG).exists():
            write_json(folder / CONFIG, experiment.to_json())
        team.wait()
        try:
            return _train(experiment, speaker, folder, device, on_progress, say, start, team)
        except ValueError:
            if team.leads and not any(
                path.name != CONFIG and not path.name.startswith(".") for path in folder.iterdir()
            ):
                (folder / CONFIG).unlink()  # nothing was learnt: other settings may have the folder
            raise


def check_training(experiment: Experiment, folder: Path | None, start: Path | None = None) -> Speaker:
    """Refuses what cannot be trained in a folder before anything in it is touched; returns the training problems.

    Raises:
        ValueError: see `train`.
    """
    speaker = _training_part(experiment)
    if start is not None:
        _check_start(experiment, start)
    if folder is not None:
        _check_folder(experiment, folder)
    return speaker


def begun(
    experiment: Experiment,
    folder: Path | None,
    device: torch.device | str,
    say: Callable[[str], None],
    start: Path | None = None,
    team: Alone = ALONE,
) -> Model:
    """The model as training finds it: fresh, or with what it takes over from its start, trained if need be."""
    model = experiment.fresh(device)
    if experiment.start is None:
        return model
    if start is None:
        words = Words(experiment.start.work, of=f"steps of {experiment.start.label}, which it starts from")
        own = None if folder is None else folder / START
        earlier = train(experiment.start, own, device, lambda step, loss: words.tell(step), say, team=team)
        if own is not None and team is not ALONE:  # of which each process may have a part
            _, earlier = load(own, device)
    else:
        _, earlier = load(start, device)
    inherit_weights(model, earlier, experiment.method.inherits)
    return model


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[Experiment, Model]:
    """The experiment and model of a finished or interrupted run.

    Raises:
        ValueError: the folder holds no run, or no checkpoint yet.
        DamagedError: a stored file is damaged, or the weights are not finite.
    """
    experiment = read_config(folder)
    return experiment, load_checkpoint(experiment, folder, device)


def read_config(folder: Path) -> Experiment:
    """The experiment of a run's folder.

    Raises:
        ValueError: the folder holds no run, or one that is not of this version; the message names file and setting.
        DamagedError: config.json is damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        raise ValueError(f"{folder} holds no run: expected a folder with {CONFIG}, as `tinylatent run --out` writes")
    try:
        return Experiment.from_json(read_json(path))
    except DamagedError as error:
        raise DamagedError(f"{path} cannot be read ({error.__cause__}): {restart(folder)}") from error
    except ValueError as error:
        kind = NotInstalledError if isinstance(error, NotInstalledError) else ValueError
        raise kind(f"{path}: {error}") from error


def load_checkpoint(experiment: Experiment, folder: Path, device: torch.device | str = "cpu") -> Model:
    """The model of an experiment with the weights of the newest checkpoint in its folder.

    Another process may train it meanwhile: these are the weights of one whole checkpoint.

    Raises:
        ValueError: there is no checkpoint yet.
        DamagedError: a stored file is damaged, or the weights are not finite.
    """
    model = experiment.fresh(device)

    def load_newest() -> None:
        saved = find_checkpoint(folder)
        if saved is None:
            if (folder / RESULT).exists():
                raise ValueError(
                    f"{folder} has lost its checkpoint, though its run was finished: restore its folder step-..., or "
                    "delete the whole folder to train it again"
                )
            raise ValueError(f"{folder} has no checkpoint yet: let its training reach the first one")
        load_weights(saved, model)

    look_again(folder, load_newest)
    return model


def _train(
    experiment: Experiment,
    speaker: Speaker,
    folder: Path | None,
    device: torch.device | str,
    on_progress: Callable[[int, float], None] | None,
    say: Callable[[str], None],
    start: Path | None,
    team: Alone,
) -> Model:
    """`train`, in a folder that is ours."""
    model = begun(experiment, folder, device, say, start, team)
    examples = experiment.method.supervise(speaker, device)
    return fit(
        model,
        experiment.method,
        examples,
        experiment.training,
        experiment.seeds,
        spare=_spare(experiment, examples),
        folder=folder,
        on_progress=on_progress,
        say=say,
        validation=experiment.speaker("validation") if experiment.training.validate else None,
        team=team,
    )


def _spare(experiment: Experiment, examples: Examples) -> int:
    """Positions that are left by examples; none for a model of transformers, which has learnt where texts begin."""
    if experiment.hf is not None:
        return 0
    return experiment.task.positions - examples.slots - 1  # they count the answer too, which is never read


def _training_part(experiment: Experiment) -> Speaker:
    """The training problems, checked against the stages and the batch."""
    speaker, recipe = experiment.speaker("train"), experiment.training
    starts = (*experiment.method.stage_starts(recipe.steps), recipe.steps)
    if recipe.steps and any(start >= after for start, after in pairwise(starts)):
        raise ValueError(
            f"{recipe.steps} steps leave a stage of {experiment.method.name} without any (stages start at "
            f"{', '.join(map(str, starts[:-1]))}): raise training.steps or change the shares of its stages"
        )
    if len(speaker.problems) < recipe.batch_size:
        raise ValueError(
            f"a batch of {recipe.batch_size} from {len(speaker.problems)} training problems: lower training.batch_size"
        )
    return speaker


def _check_start(experiment: Experiment, start: Path) -> None:
    """Raises ValueError unless the folder holds the very run that an experiment starts from, trained to its end."""
    found, _ = load(start)
    if found != experiment.start:
        raise ValueError(f"{start} holds another run than this experiment starts from: choose its own")
    saved = find_checkpoint(start)
    if saved is None or not ended(saved, found.training):
        raise ValueError(f"{start} is not trained to its end: let it finish before starting from it")


def _check_folder(experiment: Experiment, folder: Path) -> None:
    """Refuses a folder that is not this experiment's, before anything in it is touched."""
    config = folder / CONFIG
    if config.exists():
        there = read_config(folder)
        if there != experiment:
            raise ValueError(
                f"{folder} holds another experiment ({_differences(there, experiment)}): choose another folder"
                f"{_longer(there, experiment, folder)}"
            )
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):  # a kill leaves .config
        raise ValueError(f"{folder} is not empty and holds no {CONFIG}: choose a new or empty folder")


def _differences(there: Experiment, here: Experiment) -> str:
    """The settings in which two experiments differ, the first three with both values."""
    ours, theirs = settings(here), settings(there)
    if (here.start is None) != (there.start is None):
        for run, values in ((here, ours), (there, theirs)):
            values["start"] = None if run.start is None else run.start.identity
        ours, theirs = (
            {name: value for name, value in values.items() if not name.startswith("start.")}
            for values in (ours, theirs)
        )
    names = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    said = [
        f"{name} is {short(written(theirs.get(name)))} there and {short(written(ours.get(name)))} here"
        for name in names[:3]
    ]
    return "; ".join(said + [f"and {len(names) - 3} more"] * (len(names) > 3))


def _longer(there: Experiment, here: Experiment, folder: Path) -> str:
    """Advice for whoever wants to train a run for more steps than it has."""
    if replace(there, training=here.training) != here or there.training.steps >= here.training.steps:
        return ""
    return f"; to train a finished run further, start another from it, as --start {folder} does"
