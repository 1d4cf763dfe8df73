"""What each of several processes does in the tests of `distributed`: `python together.py FOLDER SPREAD STEPS`.

FOLDER/given holds method, task, model settings and recipe. Gradients of the first step go to FOLDER/gradients-SPREAD,
the run itself to FOLDER/run-SPREAD. With SPREAD "alone" it is one process without a team.
"""

import contextlib
import os
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.objectives.examples import Targets
from tinylatent.training.distributed import joined
from tinylatent.training.loop import fit
from tinylatent.training.team import ALONE


def odd(examples, trace):
    """A reward that is as often 0 as 1, whatever a model has learnt."""
    return (trace.answer().sum(1) % 2).double()


def whole(x):
    """A tensor of which this process holds a part, in full."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def train(folder, spread, steps, team):
    """Trains what is given and returns the gradients of the first optimizer step, by name."""
    task, method, config, recipe = torch.load(folder / "given", weights_only=False)
    run = Experiment(task, method, config, recipe, Seeds.all(1))
    model = run.fresh().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that what is sampled differs
    examples = method.supervise(run.speaker("train"))
    dense = examples.frontier.dense().double()
    examples = replace(examples, frontier=Targets(dense.shape[-1], dense_BTV=dense))
    first = {}

    def look(optimizer, *_):
        found = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
        if not first and any(gradient.any() for gradient in found.values()):
            first.update(found)

    logged = count(1)

    def interrupt(reason):
        """In all processes after the same step, of which the team speaks each time."""
        if next(logged) == steps:
            raise KeyboardInterrupt
        return reason

    team.agreed = interrupt
    handle = register_optimizer_step_pre_hook(look)
    with contextlib.suppress(KeyboardInterrupt):
        how = {"folder": folder / f"run-{spread}", "verify": odd, "validation": run.speaker("validation")}
        fit(model, method, examples, recipe, run.seeds, team=team, **how)
    handle.remove()
    return first


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, spread, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if spread == "alone":
        torch.save(train(folder, spread, steps, ALONE), folder / "gradients-alone")
    else:
        with joined(spread) as team:
            found = train(folder, spread, steps, team)
            if team.leads:
                torch.save(found, folder / f"gradients-{spread}")
    sys.stdout.flush()
    os._exit(0)  # some threads of gloo abort when they are torn down after everything is done
