"""Thought depth reading: where in depth a trained run's steps of thought find what the oracle says they should.

Problems of one number of steps are solved as the run's method solves them, all slots known then: the prompt's last slot
predicts the first step, the first step's slot the second, and so on to the answer. There, before every layer and after
the last, two readers look for the states that each step of the task can reach. The lens is the model's own readout: how
often does a state within the frontier rank above one outside it? A probe is a linear map from the stream to the
frontier, fitted to some problems and asked for others; it finds what the readout does not show. How often a state that
was possible before and is so no longer ranks above one that is neither tells what a step holds on to. A model that was
never trained, read alike, says what all of that finds by itself. Problems are different ones, answered rightly.

Effects of skipped layers are told at every such slot, and where the answer is predicted by depth scores, as
`depth_reading` does. There a skipped layer changes what later slots attend to, not the latents that were fed: the
answer is given clean steps. Answers are also asked for with a layer left out from the prompt on, so that steps are made
anew without it.

Letters: L layers, B problems, S slots, C states, T steps with the answer's, P predicting slots (one, or T).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinylatent.lab.answering import (
    Answered,
    Without,
    answered,
    depth_scores,
    on_answers,
    rights,
    score_of,
    share_right,
    without_layers,
)
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.prompts import Prompts, of_rows
from tinylatent.lab.reading import OfTrained
from tinylatent.lab.run import Progress, Record, new_record, note_progress, short
from tinylatent.lenses.depth import sizes, skip
from tinylatent.lenses.maps import ridge_maps
from tinylatent.lenses.reducing import per_prompt

SIZES = ("relative_layer", "cosine_layer")
"""What is told of slots, by kind."""
GIVEN, ANEW = "output, skipped at all tokens, clean steps", "output, skipped at all tokens, steps made anew"
"""Depth scores of effects on the answer of layers that are skipped at all tokens but the first."""
Curve = list[float]
Grid = list[list[float]]
Cube = list[Grid]


class Steps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Problems of one number of steps."""

    right: int
    """Right answers."""
    total: int
    """Problems that were asked."""
    held_right: int
    """Right answers to problems of the validation part, none of them trained on."""
    held_total: int
    """How many there are."""
    scores: dict[str, float | None]
    """Depth scores of effects on the future where the answer is predicted, by what is affected and how a problem's
    splits are taken together; of effects of layers skipped at all tokens, with clean steps (GIVEN) and steps made anew
    (ANEW); absent where nothing has an effect."""
    own: Grid
    """Mean effect of a skipped layer, at all tokens but the first, on what a slot predicts: by slot and layer."""
    without: Without
    """Answers without a layer, with clean steps and with steps that were made without it, too."""


class Frontier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The states of each step, looked for at each predicting slot, before every layer and after the last: by slot, step
    and layer, in problems of most steps."""

    lens: Cube
    """How often the readout ranks a state within the frontier above one outside it; 0.5 by chance."""
    walk: Cube
    """How often it ranks the state of the one best walk above another."""
    before: Cube
    """How often it ranks a state of the step before, if it is of this one no longer, above one that is of neither."""
    probe: Cube
    """Share of the frontier's variance that a linear map explains in problems that it was not fitted to."""


class ThoughtDepthRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A trained run, and how its steps of thought use its layers."""

    levels: dict[str, Steps]
    """By the number of steps, the answer's included."""
    frontier: Frontier
    """Where in depth it appears."""
    untrained: Frontier
    """The same in a model that was never trained."""
    sizes: dict[str, dict[str, Curve]]
    """Relative contributions and cosines by layer: in the prompt, at slots that predict a step or the answer."""

    @cached_property
    def reading(self) -> "ThoughtDepthReading":
        """The run it is of."""
        return ThoughtDepthReading.from_json(self.run)

    def summary(self) -> str:
        """The run that was read, and its accuracy."""
        return f"{self.reading.label}: {share_right(self.levels):.1%} right"


@dataclass(frozen=True)
class ThoughtDepthReading(OfTrained):
    """A trained run, and how much is asked of it.

    Raises ValueError for numbers out of range.
    """

    version: ClassVar[int] = 1
    about: ClassVar[str] = " of thoughts in depth"
    record = ThoughtDepthRecord

    problems: int = 64
    """Of each number of steps, answered rightly, for effects of skipped layers."""
    probed: int = 2000
    """Most problems of most steps, answered rightly, for what is looked for in the stream."""

    def __post_init__(self) -> None:
        for name, least in (("problems", 2), ("probed", 2 * self.start.model.width)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")

    def to_json(self) -> dict[str, Any]:
        """The reading as plain values."""
        start = self.start.to_json()
        return {"version": self.version, "start": start, "problems": self.problems, "probed": self.probed}

    @property
    def work(self) -> int:
        """Numbers of steps, and the frontier."""
        return len(self._levels) + 1

    @property
    def label(self) -> str:
        """The run that is read."""
        return f"thoughts in depth of {self.start.label}"

    @cached_property
    def _levels(self) -> dict[int, np.ndarray]:
        """Problems by their number of steps, the answer's included, drawn by the run's seed; enough of most steps."""
        task, seed, count = self.start.task, self.start.seeds.derive("sampling", "looked at"), self.probed
        there = 0
        while True:
            rows = np.unique(np.asarray(task.problems(count, seed)), axis=0)
            rows = rows[np.random.default_rng(seed).permutation(len(rows))]
            steps_P = task.batch(rows).steps_B
            known, counts = np.unique(steps_P, return_counts=True)
            if counts[-1] >= self.probed or len(rows) == there:  # in a small space there may be fewer
                return {steps: rows[steps_P == steps] for steps in known.tolist()}
            there = len(rows)
            count *= 2

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> ThoughtDepthRecord:
        """Loads the run from its folder, or trains it under this one's, and looks into it."""
        start, model, saved = self.opened(folder, device, start)
        levels, held = {}, self.start.rows("validation")
        held_P = self.start.task.batch(held).steps_B
        for done, (steps, rows) in enumerate(self._levels.items(), 1):
            unseen = held[held_P == steps]
            few = answered(self.start, model, rows[: 8 * self.problems], self.problems, device)
            levels[str(steps)] = _steps(
                few,
                without_layers(self.start, model, few.rows, few.prompts, device),
                held_right=int(rights(of_rows(self.start, model, unseen, device)).sum()) if len(unseen) else 0,
                held_total=len(unseen),
            )
            note_progress(folder, done, on_progress)
        most, enough = self._levels[max(self._levels)][: self.probed], 2 * self.start.model.width
        asked = answered(self.start, model, most, self.probed, device, least=enough)
        states = _States.of(self.start, asked.rows, device)
        fresh = replace(self.start, seeds=replace(self.start.seeds, init=self.start.seeds.init + 1))
        record: ThoughtDepthRecord = new_record(
            self,
            training=saved.manifest.get("environments"),
            device=device,
            levels=levels,
            frontier=_frontier(asked.prompts, states),
            untrained=_frontier(of_rows(fresh, fresh.fresh(device), asked.rows, device), states),
            sizes=_sizes(asked.prompts),
        )
        note_progress(folder, len(levels) + 1, on_progress)
        return record


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@dataclass(frozen=True)
class _States:
    """What the oracle says of problems of one number of steps."""

    ids_C: Tensor
    """Tokens of the states."""
    share_BTC: Tensor
    """The frontier of every step."""
    walk_BTC: Tensor
    """1 for the state of the best walk."""

    @classmethod
    def of(cls, experiment: Experiment, rows: np.ndarray, device: torch.device | str) -> "_States":
        batch = experiment.task.batch(rows)
        share_BTV = torch.from_numpy(batch.frontier_BTV).to(device)
        chain_BT = torch.from_numpy(batch.chain_BT).to(device)
        walk_BTV = torch.zeros_like(share_BTV).scatter(-1, chain_BT[..., None], 1.0)
        ids_C = (share_BTV.sum((0, 1)) > 0).nonzero()[:, 0]
        return cls(ids_C, share_BTV[..., ids_C], walk_BTV[..., ids_C])


def _slots(prompts: Prompts) -> range:
    """Slots that predict steps and the answer: the prompt's last one and all behind it."""
    assert prompts.asked is not None, "problems of a task have prompts"
    return range(prompts.asked - 1, prompts.record.mask_BS.shape[1])


def _steps(asked: Answered, without: Without, held_right: int, held_total: int) -> Steps:
    """What is asked of problems of one number of steps."""
    own_PL = skip(asked.prompts.record).output[..., _slots(asked.prompts)].mean(1).T
    everywhere = {GIVEN: score_of(own_PL[-1]), ANEW: score_of(torch.tensor(without.moved))}
    return Steps(
        right=asked.right,
        total=asked.total,
        held_right=held_right,
        held_total=held_total,
        scores=depth_scores(on_answers(asked.prompts)) | everywhere,
        own=short(own_PL),
        without=without,
    )


def _frontier(prompts: Prompts, states: _States) -> Frontier:
    """What both readers find at every predicting slot."""
    inside_BTC, walk_BTC = states.share_BTC > 0, states.walk_BTC > 0
    earlier_BTC = F.pad(inside_BTC, (0, 0, 1, 0))[:, :-1]
    ranked: dict[str, list[Tensor]] = {"lens": [], "walk": [], "before": []}
    for slot in _slots(prompts):
        logit_LBC = _read(prompts, slot, states)
        ranked["lens"].append(_above(logit_LBC, inside_BTC, ~inside_BTC))
        ranked["walk"].append(_above(logit_LBC, walk_BTC, ~walk_BTC))
        ranked["before"].append(_above(logit_LBC, earlier_BTC & ~inside_BTC, ~earlier_BTC & ~inside_BTC))
    cubes = {name: short(torch.stack(each)) for name, each in ranked.items()}
    return Frontier(**cubes, probe=_probe(prompts, states))


@torch.no_grad()
def _read(prompts: Prompts, slot: int, states: _States) -> Tensor:
    """Logits of states at a slot, of the stream before every layer and after the last."""
    record = prompts.record
    return torch.stack([record.logits(stream_BD)[:, states.ids_C] for stream_BD in record.stream[:, :, slot]])


def _above(logit_LBC: Tensor, upper_BTC: Tensor, lower_BTC: Tensor) -> Tensor:
    """(T, L): mean over problems of the share of pairs, of one set and of another, whose first has the larger logit.

    Ties count half. Problems without a pair are left out; 0.5 where none has one.
    """
    higher_LBCC = (logit_LBC[..., :, None] - logit_LBC[..., None, :]).sign() / 2 + 0.5
    pair_BTCC = (upper_BTC[..., :, None] & lower_BTC[..., None, :]).to(higher_LBCC)
    pairs_BT = pair_BTCC.sum((2, 3))
    found_LBT = torch.einsum("lbcd,btcd->lbt", higher_LBCC, pair_BTCC) / pairs_BT.clamp(min=1)
    problems_T = (pairs_BT > 0).sum(0)
    mean_LT = found_LBT.sum(1) / problems_T.clamp(min=1)
    return torch.where(problems_T > 0, mean_LT, 0.5).T


def _probe(prompts: Prompts, states: _States) -> Cube:
    """What a linear map finds of the frontiers; 0 where a frontier is the same everywhere."""
    target_TBC = states.share_BTC.transpose(0, 1)
    found = [ridge_maps(prompts.record.stream[:, :, slot], target_TBC).r2_ML.T for slot in _slots(prompts)]
    return short(torch.stack(found).nan_to_num(0.0))


def _sizes(prompts: Prompts) -> dict[str, dict[str, Curve]]:
    """Relative contributions and cosines by kind of slot."""
    measured, mask_BS = sizes(prompts.record), prompts.record.mask_BS
    slot_S, slots = torch.arange(mask_BS.shape[1], device=mask_BS.device), _slots(prompts)
    kinds = {"prompt": slot_S < slots.start, "steps": (slot_S >= slots.start) & (slot_S < slots[-1])}
    kinds["answer"] = slot_S == slots[-1]
    free_BS = mask_BS & (prompts.record.rank_BS() >= 1)
    return {
        kind: {name: short(per_prompt(getattr(measured, name), free_BS & here_S).mean(-1)) for name in SIZES}
        for kind, here_S in kinds.items()
        if here_S.any()
    }
