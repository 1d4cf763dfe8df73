"""Study `estimators`: bias and variance of every policy-gradient estimator for sampled latents, by enumeration.

On random worlds (a tiny transformer, two or three tokens, two or three latent steps) the objective's gradient and each
estimator's mean and covariance are sums over all paths, on a grid where latents are points of the simplex; see
`enumeration`. Nothing is sampled: the intervals are over worlds. Ratios are those at equal old and new weights, where
an update starts. A world's seed is shared by all its sizes and policies, so seeds are what is independent.

`paper` scales the latent steps by 1/K (the geometric mean of Gozeten et al. 2025, section 5); `official` samples from
logits divided by K and is judged by the objective of that policy; Dirichlet's ratio is that of densities.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from matplotlib.axes import Axes

from theory.predictions.enumeration import (
    Estimate,
    Paths,
    World,
    combined,
    dirichlet_information,
    gradient,
    group_estimate,
    objective,
    score_moments,
    simplex_paths,
    straight_through,
    token_information,
    token_paths,
)
from tinylatent.core.environment import environment
from tinylatent.core.identity import identity
from tinylatent.engine.thoughts import Dirichlet, MultiToken
from tinylatent.evaluation.statistics import Interval, mean_interval
from tinylatent.lab.plots import figure
from tinylatent.lab.report import Table, Value
from tinylatent.lab.studies.compare import finding, grouped, listed
from tinylatent.lab.study import Profile, Record, Study
from tinylatent.methods.grpo import GRPO, Ratio
from tinylatent.objectives.method import Model
from tinylatent.objectives.policy_gradient import Advantage

GROUP = 8
VERSION = 1
"""Raised when a record would change, so that stored ones are not taken for new ones."""
KINDS: tuple[Advantage, ...] = ("none", "leave-one-out", "mean", "std")
NAMES = {
    "none": "REINFORCE",
    "leave-one-out": "leave-one-out",
    "mean": "group mean",
    "std": "group mean / std",
    "straight-through": "straight-through",
}
EXACT = 1e-9
"""Relative error below which an estimator counts as unbiased: rounding in float64 leaves less than 1e-12."""
FINER = 0.125
"""Spacing of the grid that tells how good the usual one is."""
VOCABULARIES = (3, 10, 89, 1000, 50_000)
HELD, REST = 4, 1e-6
"""For the information of scores: states held with equal shares, and what all other tokens share."""
COLUMNS = {
    "V": "d", "steps": "d", "policy": "s", "ratio": "s", "estimator": "s", "error": ".4f", "cosine": ".4f",
    "least cosine": ".4f", "noise": ".2f", "worlds": "d",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One policy in one world."""

    vocabulary: int
    steps: int
    samples: int | None = None
    """Tokens a latent step, or else"""
    gamma: float | None = None
    """the concentration of Dirichlet latents."""
    ratio: Ratio = "exact"
    seed: int = 0

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for the whole value."""
        return identity(self.to_json())

    @property
    def work(self) -> int:
        """Prompts to go through."""
        return self.vocabulary

    def to_json(self) -> dict[str, Any]:
        """The case as plain values."""
        values = asdict(self)
        world = World(self.vocabulary, self.steps)
        size = {"version": VERSION, "width": world.width, "spread": world.spread}
        return {**size, "seeds": {"world": values.pop("seed")}, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Case":
        """The case that wrote these values.

        Raises:
            KeyError: one is missing.
            ValueError: another version wrote them.
        """
        if values["version"] != VERSION:
            raise ValueError(f"written by version {values['version']} of the enumeration, this is {VERSION}")
        names = ("vocabulary", "steps", "samples", "gamma", "ratio")
        return cls(**{name: values[name] for name in names}, seed=values["seeds"]["world"])

    def paths(self, world: World, spacing: float = 0.25) -> Paths:
        """Every path of GRPO's own policy; of points of the simplex, on a grid of this spacing."""
        method = GRPO(gamma=self.gamma) if self.samples is None else GRPO(samples=self.samples, ratio=self.ratio)
        thought = method.thought(Model(world.model))
        if isinstance(thought, Dirichlet):
            return simplex_paths(thought, self.steps, spacing=spacing)
        assert isinstance(thought, MultiToken)
        return token_paths(thought, self.vocabulary, self.steps)


def measure(
    case: Case, folder: Path | None, device: str = "cpu", on_progress: Callable[[int, float], None] | None = None
) -> Record:
    """The objective, and of every estimator relative error, cosine and noise, for one case; folder stays empty."""
    world = World(case.vocabulary, case.steps, case.seed)
    paths = case.paths(world)
    value = objective(world, paths)
    truth, moments = gradient(world, value), []
    for prompt in range(case.vocabulary):
        scale = 1 / case.samples if case.ratio == "paper" and case.samples else 1.0
        moments.append(score_moments(world, paths, prompt, scale))
        if on_progress is not None:
            on_progress(prompt + 1, 0.0)
    finer: dict[str, float] = {}
    if case.gamma is not None:
        better = gradient(world, objective(world, case.paths(world, FINER)))
        finer["grid_error"] = ((truth - better).norm() / better.norm()).item()
    estimates: dict[str, Estimate] = {
        kind: combined([group_estimate(each, kind, GROUP) for each in moments]) for kind in KINDS
    }
    if case.ratio == "exact" and case.samples:
        estimates["straight-through"] = straight_through(world, paths, GROUP)
    return {
        "id": case.identity,
        "experiment": case.to_json(),
        "objective": value.item(),
        "norm": truth.norm().item(),
        "paths": len(paths.log_weight),
        **finer,
        "estimators": {name: estimate.against(truth) for name, estimate in estimates.items()},
        "environment": environment(),
    }


def grid(profile: Profile) -> list[Case]:
    """Tokens in every ratio mode, and Dirichlet latents with tokens beside them where a grid is affordable."""
    quick = profile == "quick"
    tokens = [(3, 2, K) for K in ((1, 3) if quick else (1, 2, 3, 6))]
    tokens += [] if quick else [(3, 3, 1), (3, 3, 3), *((2, 2, K) for K in (2, 3, 6))]
    modes: tuple[Ratio, ...] = get_args(Ratio)
    cases = [
        Case(vocabulary, steps, K, ratio=ratio, seed=seed)
        for vocabulary, steps, K in tokens
        for ratio in (modes if K > 1 else modes[:1])
        for seed in range(2 if quick else 10)
    ]
    gammas = (5.0,) if quick else (1.0, 2.0, 5.0)
    return cases + [Case(2, 2, gamma=gamma, seed=seed) for gamma in gammas for seed in range(2 if quick else 5)]


def remark(record: Record) -> str:
    """One line about a finished case."""
    vocabulary, steps, policy, ratio = _place(record)
    cosine = record["estimators"]["std"]["cosine"]
    return f"V = {vocabulary}, {steps} steps, {policy}, {ratio}: cosine of GRPO {cosine:.4f}"


def _policy(record: Record) -> str:
    at = record["experiment"]
    return f"K = {at['samples']}" if at["samples"] else f"Dirichlet {at['gamma']:g}"


def _place(record: Record) -> tuple[int, int, str, str]:
    """World, policy and ratio of a record."""
    at = record["experiment"]
    return at["vocabulary"], at["steps"], _policy(record), at["ratio"]


def _values(records: list[Record], estimator: str, what: str) -> list[float]:
    return [record["estimators"][estimator][what] for record in records if estimator in record["estimators"]]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(records: list[Record]) -> list[Table]:
    """Bias and noise of every estimator, and how much the scores themselves vary."""
    rows: list[dict[str, Value]] = []
    for (vocabulary, steps, policy, ratio), group in grouped(records, _place).items():
        for name in group[0]["estimators"]:
            cosines = _values(group, name, "cosine")
            rows.append(
                {
                    "V": vocabulary,
                    "steps": steps,
                    "policy": policy,
                    "ratio": ratio,
                    "estimator": NAMES[name],
                    "error": fmean(_values(group, name, "error")),
                    "cosine": fmean(cosines),
                    "least cosine": min(cosines),
                    "noise": fmean(_values(group, name, "noise")),
                    "worlds": len(group),
                }
            )
    legend = (
        f"Groups of {GROUP} rollouts for every prompt, steps summed, old and new weights equal. error: |mean of the "
        "estimator - gradient| / |gradient|; cosine of the two (least: of all worlds); noise: standard deviation of "
        "the estimator over the norm of its mean. Means over random worlds, everything enumerated. ratio official is "
        "judged by the gradient of its own policy's objective. straight-through differentiates the right answer's "
        "probability, so it does not sample the answer, which the others do: a part of its calm is that. Dirichlet's "
        "sums are over a grid, and truth and estimators share it: that an estimator is unbiased is exact on any grid, "
        f"cosine and noise carry the grid's error (of the gradient, {_grid_error(records)})."
    )
    exact = Table("Estimators against the exact gradient", COLUMNS, rows, [legend, *listed(_findings(records))])
    return [exact, _information()]


def _grid_error(records: list[Record]) -> str:
    """The largest relative error of a gradient on the grid, against a finer one."""
    errors = [record["grid_error"] for record in records if "grid_error" in record]
    return f"at most {100 * max(errors):.1f} %" if errors else "none here"


def _seedwise(records: list[Record], value: Callable[[Record], float]) -> list[float]:
    """A mean for each seed, over everything that was enumerated in its worlds."""
    groups = grouped(records, lambda record: record["experiment"]["seeds"]["world"])
    return [fmean(map(value, group)) for group in groups.values()]


def _turned(claim: str, records: list[Record], estimator: str) -> str:
    """Whether an estimator keeps the gradient's direction: a single world where it does not is a counterexample."""

    def turn(record: Record) -> float:
        return 1 - record["estimators"][estimator]["cosine"]

    mean, worst = _over_worlds(_seedwise(records, turn)), max(map(turn, records))
    word = "Holds" if worst < EXACT else "Fails"
    figures = f"mean over seeds {mean.value:.4f} [{max(0.0, mean.low):.4f}, {mean.high:.4f}], at most {worst:.4f}"
    return f"{word}: {claim} (1 - cosine: {figures})."


def _over_worlds(values: list[float]) -> Interval:
    """Mean with its interval; of one world, nothing is known beyond it."""
    return mean_interval(values) if len(values) > 1 else Interval(values[0], -1.0, 1.0, "one world")


def _said(claim: str, values: list[float]) -> str:
    """Whether a quantity is surely positive over seeds, as a sentence."""
    interval = _over_worlds(values)
    word = finding(interval.low > 0, interval.high < 0, len(values))
    return f"{word}: {claim} ({interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}] over {len(values)} seeds)."


def _findings(records: list[Record]) -> Iterator[str]:
    """What is unbiased, what is not, and what each costs in noise."""
    exact = [record for record in records if record["experiment"]["ratio"] != "paper"]
    for name in ("none", "leave-one-out"):
        errors = _values(exact, name, "error")
        word = "Holds" if max(errors) < EXACT else "Fails"
        yield (
            f"{word}: {NAMES[name]} is unbiased with ratios exact and official (each for its own objective) and with "
            f"Dirichlet densities (relative errors [{min(errors):.0e}, {max(errors):.0e}] over {len(errors)} cases)."
        )
    errors = _values(exact, "mean", "error")
    word = "Holds" if max(abs(error - 1 / GROUP) for error in errors) < EXACT else "Fails"
    yield (
        f"{word}: subtracting the group's own mean shrinks the gradient by 1/{GROUP} and changes nothing else "
        f"(relative errors [{min(errors):.4f}, {max(errors):.4f}])."
    )
    yield _turned("dividing by the group's std keeps the gradient's direction", exact, "std")
    paper = [record for record in records if record["experiment"]["ratio"] == "paper"]
    for samples, group in grouped(paper, lambda record: record["experiment"]["samples"]).items():
        yield _turned(f"the paper's ratio keeps the gradient's direction at K = {samples}", group, "leave-one-out")
        calmer = _seedwise(group, lambda record: _calmer(record, exact))
        yield _said("it is calmer than the exact ratio there, the difference of their noise", calmer)
    through = [record for record in exact if "straight-through" in record["estimators"]]
    yield _turned("straight-through keeps the gradient's direction", through, "straight-through")
    gaps = _seedwise(through, lambda record: _noise(record, "leave-one-out") - _noise(record, "straight-through"))
    yield _said("straight-through is calmer than leave-one-out, the difference of their noise", gaps)


def _noise(record: Record, estimator: str) -> float:
    return float(record["estimators"][estimator]["noise"])


def _calmer(record: Record, exact: list[Record]) -> float:
    """Noise of leave-one-out with the exact ratio minus that with a record's own, in the same world."""

    def world(each: Record) -> tuple[object, ...]:
        return (*_place(each)[:3], each["experiment"]["seeds"]["world"])

    twins = [each for each in exact if each["experiment"]["ratio"] == "exact" and world(each) == world(record)]
    return _noise(twins[0], "leave-one-out") - _noise(record, "leave-one-out")


def frontier(vocabulary: int) -> list[float]:
    """HELD states in equal shares, or two in a small vocabulary; all other tokens share REST."""
    held = min(HELD, vocabulary - 1)
    return [(1 - REST) / held] * held + [REST / (vocabulary - held)] * (vocabulary - held)


def information(vocabulary: int) -> tuple[float, float]:
    """Trace of the Fisher information in the logits: of three tokens, and of Dirichlet latents of the same variance."""
    alpha = frontier(vocabulary)
    return token_information(alpha, 3), dirichlet_information(alpha, 2.0)


def _information() -> Table:
    """Closed forms: no runs."""
    rows: list[dict[str, Value]] = []
    for vocabulary in VOCABULARIES:
        tokens, simplex = information(vocabulary)
        rows.append({"V": vocabulary, "K = 3": tokens, "Dirichlet 2": simplex, "times": simplex / tokens})
    low, high = rows[0]["times"], rows[-1]["times"]
    notes = (
        f"Variance of the score of one latent step, summed over the logits (trace of the Fisher information), of a "
        f"step that holds {HELD} states (two where V is 3) while all other tokens share {REST:g}. Mean and covariance "
        "of the two latents are equal. Closed forms, held to samples by a test."
    )
    per_token = [(information(v)[1] - information(10)[1]) / (v - 10) for v in VOCABULARIES if v > 10]
    steady = max(abs(information(v)[0] - information(10)[0]) for v in VOCABULARIES if v > 10)
    word = "Holds" if min(per_token) > 1 and steady < 0.01 else "Fails"
    said = (
        f"{word}: the variance of Dirichlet's score grows by more than one for every unlikely token of the vocabulary "
        f"([{min(per_token):.2f}, {max(per_token):.2f}] a token), that of sampled tokens does not grow; "
        f"{low:,.1f} times theirs at V = {VOCABULARIES[0]}, {high:,.0f} times at {VOCABULARIES[-1]:,}."
    )
    columns = {"V": ",d", "K = 3": ",.2f", "Dirichlet 2": ",.2f", "times": ",.1f"}
    return Table("How much the score of one latent step varies", columns, rows, [notes, *listed([said])])


# ---------------------------------------------------------------------------------------------------------------------
# Figure

SHADES = {"exact": "#3b6fb6", "paper": "#b5403a", "official": "#c08a3e"}


def draw(records: list[Record], path: Path) -> None:
    """Bias and noise against K for every ratio, and the score's variance against the vocabulary."""
    with figure(path, 11, 3.4, columns=3) as (left, middle, right):
        tokens = [r for r in records if r["experiment"]["samples"] and _place(r)[:2] == (3, 2)]
        _lines(left, tokens, "error", 100)
        left.set(xlabel="tokens K a latent step", ylabel="relative error of the mean, %", title="leave-one-out")
        _lines(middle, tokens, "noise", 1)
        through = [r for r in tokens if "straight-through" in r["estimators"]]
        by_samples = grouped(through, lambda record: record["experiment"]["samples"])
        noise = [fmean(_values(group, "straight-through", "noise")) for group in by_samples.values()]
        middle.plot([*by_samples], noise, "s--", color="#8c8c8c", label="straight-through")
        middle.set(xlabel="tokens K a latent step", ylabel="noise / norm of the mean", title="leave-one-out")
        left.legend()
        middle.legend()
        both = [information(vocabulary) for vocabulary in VOCABULARIES]
        for place, (label, colour) in enumerate((("K = 3", "#3b6fb6"), ("Dirichlet 2", "#3c7a4c"))):
            right.plot(VOCABULARIES, [each[place] for each in both], "o-", color=colour, label=label)
        right.set(xlabel="vocabulary", ylabel="variance of a step's score", xscale="log", yscale="log")
        right.legend()


def _lines(axes: Axes, records: list[Record], what: str, scale: int) -> None:
    """A line a ratio, with the interval over worlds."""
    ones = [record for record in records if record["experiment"]["samples"] == 1]  # all ratios are one there
    for ratio, colour in SHADES.items():
        group = ones + [r for r in records if r["experiment"]["ratio"] == ratio and r["experiment"]["samples"] > 1]
        found = {
            samples: _over_worlds(_values(each, "leave-one-out", what))
            for samples, each in grouped(group, lambda record: record["experiment"]["samples"]).items()
        }
        axes.plot([*found], [scale * each.value for each in found.values()], "o-", color=colour, label=ratio)
        for samples, each in found.items():
            axes.plot([samples] * 2, [scale * each.low, scale * each.high], color=colour)


STUDY = Study(
    "estimators",
    "How biased and how noisy is each policy-gradient estimator for sampled latents, against the exact gradient?",
    grid,
    tables,
    draw,
    kind=Case,
    measure=measure,
    remark=remark,
)
