"""What a trained run leaves in runs.jsonl: right and all answers per key, from which every interval is computed later.

docs/records.md lists the fields. Forms: 1 is the first edition's (constant, attainable, ladder, "itself", the
measuring environment alone, no accuracies written out); 2 is today's.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tinylatent.evaluation.ranking import gains
from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.run import Record

if TYPE_CHECKING:
    import tinylatent.lab.experiment  # whose records these are, and so imports them

DEFAULT = "default"
"""The evaluation of a method as it is, beside those under controls and by other decoders."""
BEAM = "beam"
"""The ranking by the beam search of a method as it is, beside those by the scores of all titles."""
GAIN_UNITS = 1_000_000
"""What a gain of 1 counts for where gains are counted per key: NDCG is no whole number."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a model answers the validation part in one way of thinking."""

    right: list[int]
    """Right answers of each key, in the order of the record's keys."""
    kl: list[float]
    """Mean KL(oracle frontier || model) of each step in nats; empty where steps are not supervised."""
    entropy: list[float]
    """Mean entropy of each step's distribution in nats, the answer's included."""
    norm: list[float]
    """Mean norm of the input each step before the answer makes, in units of the mean token embedding's."""
    problems_per_s: int
    """Problems solved a second."""
    accuracy: Interval | None = None
    """Share of right answers with its 95 % interval over keys; form 1 has none."""


class Answered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many problems of each key are answered right, where the keys are not those of the validation part."""

    right: list[int]
    """Right answers of each key."""
    total: list[int]
    """Problems of each key."""
    keys: str = ""
    """Checksum of the keys."""
    accuracy: Interval | None = None
    """Share of right answers with its 95 % interval over keys; form 1 has none."""

    def __post_init__(self) -> None:
        _check_counts(self.right, self.total)

    @property
    def share(self) -> float:
        """Share of right answers."""
        return sum(self.right) / sum(self.total)


class StageEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a stage of training had learnt when it ended, thinking as it taught."""

    step: int
    """Steps of training at its end."""
    right: list[int]
    """Right answers of each key of the validation part."""
    accuracy: Interval | None = None
    """Share of right answers with its 95 % interval over keys; form 1 has none."""


class Counts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of each problem as a whole number of `of`, summed over the problems of a key."""

    right: list[int]
    """The sum for each key."""
    of: int
    """What one problem counts for."""


class Sampled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several sampled answers to each problem, at one temperature."""

    pass_: dict[str, Counts] = msgspec.field(name="pass")
    """pass@k by k, unbiased."""
    majority: dict[str, Counts]
    """majority@k by k, over disjoint blocks."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampled answers at every temperature of the method."""

    samples: int
    """Answers to each problem."""
    temperatures: dict[str, Sampled]
    """By temperature."""


class Ranking(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the right title of each problem of the validation part stands, for tasks with a catalogue.

    Problems are in the order of their keys. Equal scores rank before the right title.
    """

    quintile: list[int]
    """Popularity quintile of each problem's right item: 1 for the most popular fifth of the items, 5 for the least."""
    ranks: dict[str, list[int]]
    """Rank of each problem's right title among all by log-probability, 1 for the best; by the name of the evaluation,
    and "beam", by a beam of 10 over the titles' tokens, where a title that is not listed is the last."""
    baselines: dict[str, list[int]]
    """The same without a model: "counts" by how often training asks for an item, "popularity" by the task's own, and
    "bayes" by the exact probability of each item, which no ranking can beat but by luck."""
    ceiling: dict[str, dict[str, float]]
    """Highest expected "hit" rate and "ndcg" at each k."""
    by_quintile: dict[str, dict[str, list[float]]]
    """What the best ranking expects in each quintile, the most popular first."""
    nll: list[float]
    """Mean negative log-likelihood of each right title's tokens by the default evaluation, in nats."""
    excess: dict[str, dict[str, Interval]]
    """By how much the default evaluation exceeds the ceiling; above 0 by more than its interval only by an error."""

    def __post_init__(self) -> None:
        for rank in (*self.ranks.values(), *self.baselines.values()):
            if len(rank) != len(self.quintile) or min(rank, default=1) < 1:
                raise ValueError("expected for each problem a rank of 1 or more, and as many ranks as quintiles")
        if len(self.nll) != len(self.quintile):
            raise ValueError("expected for each problem the likelihood of its right title")

    def counts(
        self, total: Sequence[int], figure: str, k: int, way: str = DEFAULT, quintile: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Gains of each key in units of 1 / GAIN_UNITS, and the most there could be; for `evaluation.statistics`.

        Args:
            total: problems of each key, from the record.
            figure: "hit" or "ndcg".
            k: the cut-off.
            way: an evaluation, the beam or a baseline.
            quintile: problems whose right item is of this quintile alone; keys without one are left out.

        Raises:
            ValueError: there is no such way or figure, or no problem of this quintile.
        """
        known = {**self.ranks, **self.baselines}
        if way not in known:
            raise ValueError(f"no ranking {way!r}: expected one of {', '.join(known)}")
        key_P = np.repeat(np.arange(len(total)), total)
        here_P = np.full(len(key_P), True) if quintile is None else np.array(self.quintile) == quintile
        gain_P = np.rint(gains(np.array(known[way]), figure, k) * GAIN_UNITS).astype(int)
        count = np.bincount(key_P[here_P], minlength=len(total))
        if not count.any():
            raise ValueError(f"no problem has its right item in quintile {quintile}: expected 1 to 5, or more problems")
        gain = np.bincount(key_P[here_P], gain_P[here_P], minlength=len(total)).astype(int)
        return gain[count > 0].tolist(), (count[count > 0] * GAIN_UNITS).tolist()


class Before(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the weights could do before training, in a run that starts from another."""

    evaluations: dict[str, Evaluation]
    """By name, as in the record."""
    sampling: Sampling | None
    """Sampled answers."""
    cosines: list[float] = msgspec.field(default_factory=list)
    """Of updates that a method asks for there with the slope of its expected reward, one for each batch; of LatentR3's
    second stage alone."""


class Stopped(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why training ended early."""

    step: int
    """Steps it made."""
    advice: str
    """The reason, and what to try."""


class Cost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the run cost, and what an answer costs."""

    steps: int
    """Steps decoded for the first problem."""
    slots: int
    """Slots read for it."""
    flops: int
    """Floating-point operations of solving it."""
    training_flops: int
    """Operations of training: those of an answer times problems seen times the method's forwards."""
    training_seconds: float
    """Wall-clock seconds of training, all sittings together."""
    tokens: float | None = None
    """Tokens decoded for a problem of the validation part, answer included, on average; older records have none."""
    latents: float | None = None
    """Latent inputs of such a problem, on average; a pause is none, having no content."""
    operations: float | None = None
    """Floating-point operations of solving it, on average."""


class ExperimentRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A trained and evaluated experiment."""

    keys: list[str]
    """Keys of the validation part, in hexadecimal."""
    total: list[int]
    """Problems of each key."""
    evaluations: dict[str, Evaluation]
    """On the validation part: "default", each control, each other decoder of the method."""
    stages: list[StageEnd]
    """The stages before the last."""
    sampling: Sampling | None
    """Sampled answers, for methods that sample and parts that are listed."""
    majority_baseline: float
    """Accuracy of always saying the most frequent training answer."""
    parameters: int
    """Trained parameters."""
    cost: Cost
    """What it cost."""
    train: Answered | None = None
    """On problems of the training part, at most 1000; form 1 has none."""
    levels: dict[str, Answered] = msgspec.field(default_factory=dict)
    """By difficulty, on problems of that difficulty alone, for tasks with capacity beyond what is trained."""
    before: Before | None = None
    """For a run that starts from another: what it could do before."""
    metrics: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """For a run that starts from another: every line of metrics.jsonl."""
    course: dict[str, float] = msgspec.field(default_factory=dict)
    """Share of right answers to the problems that training validated on, by step; older records have none."""
    stopped: Stopped | None = None
    """Why it ended early, if it did."""
    accuracy_ceiling: float = 1.0
    """Highest accuracy that can be expected: less than 1 where answers are partly chance."""
    ranking: Ranking | None = None
    """Where right titles stand, for tasks with a catalogue; absent for others, and in records from before there was."""

    @cached_property
    def experiment(self) -> "tinylatent.lab.experiment.Experiment":
        """The experiment it is of."""
        from tinylatent.lab.experiment import Experiment  # whose records these are, and so imports them

        return Experiment.from_json(self.run)

    def __post_init__(self) -> None:
        if DEFAULT not in self.evaluations or len(self.keys) != len(self.total):
            raise ValueError(f"expected the evaluation {DEFAULT!r}, and as many keys as totals")
        before = () if self.before is None else self.before.evaluations.values()
        for judged in (*self.evaluations.values(), *before, *self.stages):
            _check_counts(judged.right, self.total)
        if self.ranking is not None and len(self.ranking.quintile) != sum(self.total):
            raise ValueError(f"ranks of {len(self.ranking.quintile)} problems: expected {sum(self.total)}")

    @property
    def accuracy(self) -> float:
        """Share of right answers on the validation part."""
        return sum(self.evaluations[DEFAULT].right) / sum(self.total)

    def summary(self) -> str:
        """One line about it."""
        experiment, seconds = self.experiment, self.cost.training_seconds
        return f"{experiment.method.name:10s} seed {experiment.seeds.split}: {self.accuracy:6.1%} in {seconds:.0f} s"


def lift_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record of form 1 in today's form; what form 1 did not write down is absent."""
    record["majority_baseline"] = record.pop("constant")
    record["accuracy_ceiling"] = record.pop("attainable", 1.0)
    record["levels"] = record.pop("ladder", {})
    for judged in (record, record.get("before", {})):
        if "evaluations" in judged:
            found = judged["evaluations"]
            judged["evaluations"] = {DEFAULT if name == "itself" else name: way for name, way in found.items()}
    names = {"rate": "learning_rate", "silent_groups": "frac_reward_zero_std"}
    record["metrics"] = [
        {names.get(name, name): value for name, value in line.items()} for line in record.get("metrics", [])
    ]
    return record


def _check_counts(right: Sequence[int | float], total: Sequence[int]) -> None:
    """Raises ValueError unless there is a number of right answers for each key, at most its total."""
    if not total or len(right) != len(total) or any(not 0 <= r <= n for r, n in zip(right, total, strict=True)):
        raise ValueError("expected for each key a number of right answers from 0 to its total, and at least one key")
