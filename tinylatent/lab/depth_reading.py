"""Depth reading: a trained run on compositions, looked into by every lens, by the number of hops of its problems.

Problems of one number of hops have prompts of one length, so that a place in the prompt is one kind of token. They are
drawn from all problems, trained on or not, and those are looked into that are answered rightly: the question is how a
model does what it can do. Effects on the future are those where the answer is predicted, since other slots predict what
nobody knows. Numbers are means over problems. Maps predict another run's residual stream from this one's and, as the
floor, from that of a model that was never trained.

Letters: L layers, B problems, S slots, K hops.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch
from tinylatent_tasks import Composition
from torch import Tensor

from tinylatent.lab.answering import (
    Answered,
    answered,
    at_answers,
    mean_effects,
    on_answers,
    rights,
    score_of,
    share_right,
)
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.prompts import Prompts, of_rows
from tinylatent.lab.reading import OfTrained
from tinylatent.lab.run import Progress, Record, new_record, note_progress, short
from tinylatent.lenses.attribution import integrated_gradients
from tinylatent.lenses.depth import Effects, erase, local, mean_added, mean_stream, sizes, skip
from tinylatent.lenses.logit_lens import logit_lens
from tinylatent.lenses.maps import ridge_maps, tokens
from tinylatent.lenses.outliers import input_correlation, stream_outliers
from tinylatent.lenses.reducing import per_prompt
from tinylatent.objectives.method import Model
from tinylatent.training.checkpoints import find_checkpoint
from tinylatent.training.loop import ended

FEW, MAPPED = 2048, 2000
"""Most tokens whose correlation is measured, and problems that maps are fitted to and asked for."""
OTHER, FLOOR = "other", "floor"
"""Maps to another run's stream: from this run's, and from that of a model never trained."""
AT_ANSWER = ("relative_layer", "cosine_layer")
"""What is told of the answer's slot alone."""
Curve = list[float]
Grid = list[list[float]]


class Level(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Problems of one number of hops."""

    right: int
    """Right answers."""
    total: int
    """Problems that were asked."""
    held_right: int
    """Right answers to problems of the validation part, none of them trained on."""
    held_total: int
    """How many there are."""
    lens: dict[str, Curve]
    """The logit lens where the answer is predicted, before every layer and after the last, by measure."""
    scores: dict[str, float | None]
    """Depth scores of effects on the future where the answer is predicted, by what is affected and how a problem's
    splits are taken together; absent where nothing has an effect."""
    effects: dict[str, Curve]
    """What these are scores of: the mean effect of each layer."""
    likely: float
    """Mean probability of the right answer, in the problems that are looked into."""
    looked: int
    """How many these are, all different."""
    erased: Grid
    """Effect on the answer of a residual replaced by the mean one of all tokens, by layer and token after the first."""
    erased_same: Grid
    """The same, replaced by the mean one of its slot in problems of as many hops, which says as much of its place."""
    attributed: Grid
    """Mean absolute attribution, likewise."""
    missed: float
    """Largest error of a problem's attributions, in probability."""
    refined: float
    """Share of attributions, of problems and layers, that add up within a hundredth."""


class Map(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well this model's residual stream predicts another's, where the answer is predicted, by layer of either."""

    r2: Grid
    """Share of variance explained in problems that the map was not fitted to."""
    relative_error: Grid
    """Mean of |error| / |target| there."""


class DepthRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A trained run, and how it uses its layers."""

    steps: int
    """Batches that it was trained on."""
    levels: dict[str, Level]
    """By the number of hops."""
    sizes: dict[str, Curve]
    """Means over problems by layer, the first token left out; see `lenses.depth.Sizes`. 0 where norms are on sums and
    the MLP is compared with nothing."""
    at_answer: dict[str, Curve]
    """Relative contributions and cosines where the answer is predicted alone."""
    contributions: dict[str, Grid]
    """Mean effect of a skipped layer on a later one's contribution where the answer is predicted: "all" skipped at all
    tokens but the first, "mean" adding its mean there, "future" before a split, "direct" taken from the later layer's
    input alone."""
    output: dict[str, Curve]
    """Mean effect of a skipped layer on probabilities, likewise."""
    outliers: dict[str, Curve]
    """Kurtosis, max-median ratio and input correlation of the residual stream."""
    maps: dict[str, Map] = msgspec.field(default_factory=dict)
    """To another run's stream, where one was named, from this one's (OTHER) and from that of a model that was never
    trained (FLOOR): what any features of the same tokens explain."""

    @cached_property
    def reading(self) -> "DepthReading":
        """The run it is of."""
        return DepthReading.from_json(self.run)

    def summary(self) -> str:
        """The run that was read, and its accuracy."""
        return f"{self.reading.label}: {share_right(self.levels):.1%} right"


@dataclass(frozen=True)
class DepthReading(OfTrained):
    """A trained run on compositions, and how much is asked of it.

    Raises ValueError for a run on another task, or fewer than two problems.
    """

    version: ClassVar[int] = 2
    about: ClassVar[str] = " of depth"
    record = DepthRecord

    problems: int = 64
    """How many of each number of hops are looked into, among those that are answered rightly."""
    target: Experiment | None = None
    """Another run, whose residual stream this one's is to predict."""

    def __post_init__(self) -> None:
        if not isinstance(self.start.task, Composition):
            raise ValueError(f"a run on {self.start.task.name}: expected one on {Composition.name}")
        if self.problems < 2:
            raise ValueError(f"problems is {self.problems}: expected 2 or more; try 64")

    def to_json(self) -> dict[str, Any]:
        """The reading as plain values; a target that is not there is left out."""
        target = {} if self.target is None else {"target": self.target.to_json()}
        return {"version": self.version, "start": self.start.to_json(), "problems": self.problems, **target}

    @classmethod
    def _settings(cls, values: dict[str, Any]) -> dict[str, Any]:
        target = values.get("target")
        return {**values, "target": None if target is None else Experiment.from_json(target)}

    @property
    def work(self) -> int:
        """Problems of each number of hops, all of them together, and maps."""
        return 2 + self._task.hops - self._task.least + 1

    @property
    def label(self) -> str:
        """The run that is read."""
        return f"depth of {self.start.label}"

    @property
    def _task(self) -> Composition:
        task = self.start.task
        assert isinstance(task, Composition), "checked when it was made"
        return task

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> DepthRecord:
        """Loads the run from its folder, or trains it under this one's, and looks into it."""
        start, model, saved = self.opened(folder, device, start)
        rows = self._rows(self._task.hops * 8 * self.problems)
        hops_P, held = self._task.steps(rows), self.start.rows("validation")
        every = range(self._task.least, self._task.hops + 1)
        asked = {hops: answered(self.start, model, rows[hops_P == hops], self.problems, device) for hops in every}
        seen = [each.prompts.record for each in asked.values()]
        filler, added, swept, levels = mean_stream(seen), mean_added(seen), {}, {}
        for done, (hops, each) in enumerate(asked.items(), 1):
            swept[hops] = {
                "all": at_answers(each.prompts, skip(each.prompts.record)),
                "mean": at_answers(each.prompts, skip(each.prompts.record, filler_LD=added)),
                "future": on_answers(each.prompts),
                "direct": at_answers(each.prompts, local(each.prompts.record)),
            }
            unseen = held[self._task.steps(held) == hops]
            found = {"held_right": 0, "held_total": len(unseen)}
            if len(unseen):
                found["held_right"] = int(rights(of_rows(self.start, model, unseen, device)).sum())
            levels[str(hops)] = _level(each, filler, swept[hops]["future"], **found)
            note_progress(folder, done, on_progress)
        together = _together([each.prompts for each in asked.values()], [*swept.values()])
        note_progress(folder, len(seen) + 1, on_progress)
        maps = self._maps(model, folder, device)
        note_progress(folder, len(seen) + 2, on_progress)
        environments = saved.manifest.get("environments")
        record: DepthRecord = new_record(
            self, training=environments, device=device, steps=saved.step, levels=levels, **together, maps=maps
        )
        return record

    def _rows(self, count: int) -> np.ndarray:
        """Different problems among so many drawn by the run's seed, in an order of their own."""
        rows = np.unique(self._task.problems(count, self.start.seeds.derive("sampling", "looked at")), axis=0)
        return rows[np.random.default_rng(self.start.seeds.split).permutation(len(rows))]

    def _maps(self, model: Model, folder: Path, device: torch.device | str) -> dict[str, Map]:
        """To the stream of the run that is named, from this model's and from an untrained one's, on equal problems.

        Where the answer is predicted alone: other tokens' streams are those of beginnings that problems share.
        """
        if self.target is None:
            return {}
        rows = self._rows(MAPPED)

        def stream(whole: Experiment, other: Model) -> Tensor:
            prompts = of_rows(whole, other, rows, device)
            return prompts.record.stream[:, prompts.answers()[0]].detach()

        target = stream(self.target, self._opened(self.target, folder, device))
        fresh = replace(self.start, seeds=replace(self.start.seeds, init=self.start.seeds.init + 1))
        return {
            OTHER: _map(stream(self.start, model), target),
            FLOOR: _map(stream(fresh, fresh.fresh(device)), target),
        }

    @staticmethod
    def _opened(whole: Experiment, folder: Path, device: torch.device | str) -> Model:
        """A run's model: from its own folder beside this one where it is finished, or trained under this one."""
        beside, own = folder.parent / whole.identity, folder / "target"
        saved = find_checkpoint(beside) if beside.is_dir() else None
        if saved is None or not ended(saved, whole.training):
            train(whole, own, device)
            beside = own
        return load(beside, device)[1]


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def _level(asked: Answered, filler: Tensor, future: Effects, held_right: int, held_total: int) -> Level:
    """What is asked of problems of one number of hops."""
    record, (counted_BS, ids_BS) = asked.prompts.record, asked.prompts.answers()
    lens = logit_lens(record, top=1)
    attributed, missed, refined = [], 0.0, []
    for layer in range(record.depth + 1):
        found = integrated_gradients(record, layer, counted_BS, ids_BS)
        attributed.append(found.attribution_BS.abs().mean(0)[1:])
        missed = max(missed, float(found.error_B.abs().max()))
        refined.append(found.refined_B)
    assert record.mask_BS.all(), "problems of as many hops are as long"
    effects, same = (
        erase(record, given, counted_BS).amax(-1).mean(1)[:, 1:] for given in (filler, record.stream.mean(1))
    )
    moved = mean_effects(future)
    likely_n = record.logits(record.stream[-1][counted_BS]).softmax(-1).gather(1, ids_BS[counted_BS][:, None])
    return Level(
        right=asked.right,
        total=asked.total,
        held_right=held_right,
        held_total=held_total,
        lens={name: short(getattr(lens, name)[:, counted_BS].mean(1)) for name in ("to_final", "from_final")},
        scores={name: score_of(effect_L) for name, effect_L in moved.items()},
        effects={name: short(effect_L) for name, effect_L in moved.items()},
        likely=short(likely_n.detach().mean().item()),
        looked=len(counted_BS),
        erased=short(effects),
        erased_same=short(same),
        attributed=short(torch.stack(attributed)),
        missed=short(missed),
        refined=short(float(torch.cat(refined).double().mean())),
    )


def _together(prompts: list[Prompts], swept: list[dict[str, Effects]]) -> dict[str, Any]:
    """What is measured over problems of all numbers of hops."""
    records = [each.record for each in prompts]
    measured: dict[str, list[Tensor]] = {}
    at_answer: dict[str, list[Tensor]] = {}
    for each, record in zip(prompts, records, strict=True):
        free_BS = record.mask_BS & (record.rank_BS() >= 1)
        found = vars(sizes(record))
        for name, values in found.items():
            measured.setdefault(name, []).append(per_prompt(values, free_BS))
        for name in AT_ANSWER:
            at_answer.setdefault(name, []).append(per_prompt(found[name], each.answers()[0]))
    effects: dict[str, list[Tensor]] = {}
    output: dict[str, list[Tensor]] = {}
    for sweep in swept:
        for name, moved in sweep.items():
            how: tuple[Any, ...] = (moved.counted_RS, "mean", moved.row_R)
            effects.setdefault(name, []).append(per_prompt(moved.contribution, *how))
            output.setdefault(name, []).append(per_prompt(moved.output, *how))
    stats = stream_outliers(records)
    samples = tokens(records)[:, :FEW]
    return {
        "sizes": {name: short(torch.cat(parts, -1).mean(-1).nan_to_num()) for name, parts in measured.items()},
        "at_answer": {name: short(torch.cat(parts, -1).mean(-1)) for name, parts in at_answer.items()},
        "contributions": {name: short(torch.cat(parts, -1).mean(-1)) for name, parts in effects.items()},
        "output": {name: short(torch.cat(parts, -1).mean(-1)) for name, parts in output.items()},
        "outliers": {
            "kurtosis": [short(each.kurtosis()) for each in stats],
            "max-median": [short(each.max_median()) for each in stats],
            "input correlation": [short(input_correlation(x_nd)) for x_nd in samples],
        },
    }


def _map(source: Tensor, target: Tensor) -> Map:
    found = ridge_maps(source, target)
    return Map(r2=short(found.r2_ML), relative_error=short(found.relative_error_ML))
