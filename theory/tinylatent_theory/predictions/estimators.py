"""Study `estimators`: bias and variance of every policy-gradient estimator for sampled latents, by enumeration.

On random worlds (a tiny transformer, two or three tokens, two or three latent steps) the objective's gradient and each
estimator's mean and covariance are sums over all paths, on a grid where latents are points of the simplex; see
`enumeration`. Nothing is sampled: the intervals are over worlds. Ratios are those at equal old and new weights, where
an update starts. A world's seed is shared by all its sizes and policies, so seeds are what is independent.

`paper` scales the latent steps by 1/K (the geometric mean of Gozeten et al. 2025, section 5); `official` samples from
logits divided by K and is judged by the objective of that policy; Dirichlet's ratio is that of densities.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import msgspec
import torch

from tinylatent.engine.thoughts import Dirichlet, MultiToken
from tinylatent.evaluation.statistics import Interval, mean_interval
from tinylatent.lab.findings import Finding, decided, exactly
from tinylatent.lab.plots import figure, legend_mark, legend_under
from tinylatent.lab.run import Progress, Record, new_record, note_progress
from tinylatent.lab.studies.compare import grouped
from tinylatent.lab.study import Profile, Study
from tinylatent.lab.tables import Table, Value
from tinylatent.methods.grpo import GRPO, Ratio
from tinylatent.objectives.method import Model
from tinylatent.objectives.policy_gradient import Advantage
from tinylatent_theory.predictions.enumeration import (
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
from tinylatent_theory.runs import PlainRun, settings_of

if TYPE_CHECKING:
    import matplotlib.axes  # which commands that draw nothing do not load

GROUP = 8
FAMILY = "estimators"
"""The family of its findings."""
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


class Against(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An estimator against the exact gradient."""

    error: float
    """|mean - gradient| / |gradient|."""
    cosine: float
    """Cosine of the angle between mean and gradient."""
    noise: float
    """Standard deviation over the norm of the mean."""
    variance: float
    """Variance over the squared norm of the gradient."""


class CaseRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """What the enumeration of a case gave."""

    objective: float
    """Expected reward."""
    norm: float
    """Norm of its gradient."""
    paths: int
    """Paths of the latent steps."""
    estimators: dict[str, Against]
    """Every estimator by the name of its advantage, and "straight-through"."""
    grid_error: float | None = None
    """Relative error of the gradient on the grid against a finer one, for Dirichlet latents."""

    @property
    def case(self) -> "Case":
        """The case that was enumerated."""
        return Case.from_json(self.run)

    @property
    def seeds(self) -> Mapping[str, int]:
        """The seed of the world, under the name "world"."""
        return {"world": self.case.seed}

    def summary(self) -> str:
        """The case, and how far GRPO turns the gradient."""
        case, cosine = self.case, self.estimators["std"].cosine
        return f"{case.label}, {case.ratio}: cosine of GRPO {cosine:.4f}"


@dataclass(frozen=True)
class Case(PlainRun):
    """One policy in one world."""

    record = CaseRecord
    version: ClassVar[int] = 2

    vocabulary: int
    steps: int
    samples: int | None = None
    """Tokens a latent step; None where latents are points of the simplex."""
    gamma: float | None = None
    """Concentration of Dirichlet latents; None where tokens are sampled."""
    ratio: Ratio = "exact"
    seed: int = 0

    @property
    def work(self) -> int:
        """Prompts to go through."""
        return self.vocabulary

    @property
    def policy(self) -> str:
        """How latents are sampled, in the words of the tables."""
        return f"K = {self.samples}" if self.samples else f"Dirichlet {self.gamma:g}"

    @property
    def label(self) -> str:
        """World and policy."""
        return f"V = {self.vocabulary}, {self.steps} steps, {self.policy}"

    @classmethod
    def lift_run(cls, record: dict[str, Any]) -> None:
        """Rewrites a run of version 1, which wrote every setting, the size of its world too, and its seed apart.

        Raises:
            ValueError: its settings are not those of a case, or its world had another size.
        """
        run = record["run"]
        if run.get("version") == 1:
            size = {name: run.pop(name, None) for name in ("width", "spread")}
            if size != {"width": World.width, "spread": World.spread}:
                raise ValueError(f"its worlds have {size}: expected {World.width} and {World.spread}; measure it again")
            record["run"] = cls.from_json(settings_of(run, "world", cls.version)).to_json()

    def paths(self, world: World, spacing: float = 0.25) -> Paths:
        """Every path of GRPO's own policy; where latents are points of the simplex, on a grid of this spacing."""
        method = GRPO(gamma=self.gamma) if self.samples is None else GRPO(samples=self.samples, ratio=self.ratio)
        thought = method.thought(Model(world.model))
        if isinstance(thought, Dirichlet):
            return simplex_paths(thought, self.steps, spacing=spacing)
        assert isinstance(thought, MultiToken)
        return token_paths(thought, self.vocabulary, self.steps)

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> CaseRecord:
        """Enumerates the objective, and error, cosine and noise of every estimator."""
        world = World(self.vocabulary, self.steps, self.seed)
        paths = self.paths(world)
        value = objective(world, paths)
        truth, moments = gradient(world, value), []
        for prompt in range(self.vocabulary):
            scale = 1 / self.samples if self.ratio == "paper" and self.samples else 1.0
            moments.append(score_moments(world, paths, prompt, scale))
            note_progress(folder, prompt + 1, on_progress)
        grid_error = None
        if self.gamma is not None:
            better = gradient(world, objective(world, self.paths(world, FINER)))
            grid_error = ((truth - better).norm() / better.norm()).item()
        estimates: dict[str, Estimate] = {
            kind: combined([group_estimate(each, kind, GROUP) for each in moments]) for kind in KINDS
        }
        if self.ratio == "exact" and self.samples:
            estimates["straight-through"] = straight_through(world, paths, GROUP)
        record: CaseRecord = new_record(
            self,
            objective=value.item(),
            norm=truth.norm().item(),
            paths=len(paths.log_weight),
            estimators={name: Against(**estimate.against(truth)) for name, estimate in estimates.items()},
            grid_error=grid_error,
        )
        return record


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


def _place(record: CaseRecord) -> tuple[int, int, str, str]:
    """World, policy and ratio of a record."""
    case = record.case
    return case.vocabulary, case.steps, case.policy, case.ratio


def _samples(record: CaseRecord) -> int:
    """Tokens a latent step; 0 where latents are points of the simplex."""
    return record.case.samples or 0


def _values(records: list[CaseRecord], estimator: str, what: str) -> list[float]:
    return [getattr(record.estimators[estimator], what) for record in records if estimator in record.estimators]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(records: list[CaseRecord]) -> list[Table]:
    """Bias and noise of every estimator, and how much the scores themselves vary."""
    rows: list[dict[str, Value]] = []
    for (vocabulary, steps, policy, ratio), group in grouped(records, _place).items():
        for name in group[0].estimators:
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
    exact = Table("Estimators against the exact gradient", COLUMNS, rows, legend, [*_findings(records)])
    return [exact, _information()]


def _grid_error(records: list[CaseRecord]) -> str:
    """The largest relative error of a gradient on the grid, against a finer one."""
    errors = [record.grid_error for record in records if record.grid_error is not None]
    return f"at most {100 * max(errors):.1f} %" if errors else "none here"


def _seedwise(records: list[CaseRecord], value: Callable[[CaseRecord], float]) -> list[float]:
    """A mean for each seed, over everything that was enumerated in its worlds."""
    groups = grouped(records, lambda record: record.case.seed)
    return [fmean(map(value, group)) for group in groups.values()]


def _turned(claim: str, records: list[CaseRecord], estimator: str) -> Finding:
    """Whether an estimator keeps the gradient's direction: a single world where it does not is a counterexample."""

    def turn(record: CaseRecord) -> float:
        return 1 - record.estimators[estimator].cosine

    values, worst = _seedwise(records, turn), max(map(turn, records))
    mean = _over_worlds(values)
    ends = f" [{max(0.0, mean.low):.4f}, {mean.high:.4f}]" if mean else ""
    said = f"1 - cosine: mean over seeds {fmean(values):.4f}{ends}, at most {worst:.4f}"
    return exactly(claim, worst < EXACT, said, FAMILY)


def _over_worlds(values: list[float]) -> Interval | None:
    """The mean with its interval; None for a single world, which tells nothing of others."""
    return mean_interval(values) if len(values) > 1 else None


def _calmer(claim: str, values: list[float]) -> Finding:
    """Whether the whole interval of a difference of noise, over seeds, is positive."""
    gap, unit = _over_worlds(values), "noise over the norm of the mean"
    said = f"difference of their noise {fmean(values):.2f}"
    if gap is None:
        return Finding(claim, decided(False, False, len(values)), f"{said} at the only seed", None, unit, FAMILY)
    verdict = decided(gap.low > 0, gap.high < 0, len(values))
    evidence = f"{said} [{gap.low:.2f}, {gap.high:.2f}] over {len(values)} seeds"
    return Finding(claim, verdict, evidence, gap, unit, FAMILY)


def _findings(records: list[CaseRecord]) -> Iterator[Finding]:
    """What is unbiased, what is not, and what each costs in noise."""
    exact = [record for record in records if record.case.ratio != "paper"]
    for name in ("none", "leave-one-out"):
        errors = _values(exact, name, "error")
        yield exactly(
            f"{NAMES[name]} is unbiased with ratios exact and official (each for its own objective) and with Dirichlet "
            "densities",
            max(errors) < EXACT,
            f"relative errors [{min(errors):.0e}, {max(errors):.0e}] over {len(errors)} cases",
            FAMILY,
        )
    errors = _values(exact, "mean", "error")
    yield exactly(
        f"subtracting the group's own mean shrinks the gradient by 1/{GROUP} and changes nothing else",
        max(abs(error - 1 / GROUP) for error in errors) < EXACT,
        f"relative errors [{min(errors):.4f}, {max(errors):.4f}]",
        FAMILY,
    )
    yield _turned("dividing by the group's std keeps the gradient's direction", exact, "std")
    paper = [record for record in records if record.case.ratio == "paper"]
    for samples, group in grouped(paper, _samples).items():
        yield _turned(f"the paper's ratio keeps the gradient's direction at K = {samples}", group, "leave-one-out")
        gaps = _seedwise(group, lambda record: _noise_saved(record, exact))
        yield _calmer(f"the paper's ratio is calmer than the exact one at K = {samples}", gaps)
    through = [record for record in exact if "straight-through" in record.estimators]
    yield _turned("straight-through keeps the gradient's direction", through, "straight-through")
    gaps = _seedwise(through, lambda record: _noise(record, "leave-one-out") - _noise(record, "straight-through"))
    yield _calmer("straight-through is calmer than leave-one-out", gaps)


def _noise(record: CaseRecord, estimator: str) -> float:
    return record.estimators[estimator].noise


def _noise_saved(record: CaseRecord, exact: list[CaseRecord]) -> float:
    """Noise of leave-one-out with the exact ratio minus that with a record's own, in the same world."""
    twin = replace(record.case, ratio="exact")
    (other,) = (each for each in exact if each.case == twin)
    return _noise(other, "leave-one-out") - _noise(record, "leave-one-out")


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
    legend = (
        f"Variance of the score of one latent step, summed over the logits (trace of the Fisher information), of a "
        f"step that holds {HELD} states (two where V is 3) while all other tokens share {REST:g}. Mean and covariance "
        "of the two latents are equal. Closed forms, held to samples by a test."
    )
    per_token = [(information(v)[1] - information(10)[1]) / (v - 10) for v in VOCABULARIES if v > 10]
    steady = max(abs(information(v)[0] - information(10)[0]) for v in VOCABULARIES if v > 10)
    growth = exactly(
        "the variance of Dirichlet's score grows by more than one for every unlikely token of the vocabulary, that of "
        "sampled tokens does not grow",
        min(per_token) > 1 and steady < 0.01,
        f"by [{min(per_token):.2f}, {max(per_token):.2f}] a token; {low:,.1f} times theirs at V = {VOCABULARIES[0]}, "
        f"{high:,.0f} times at {VOCABULARIES[-1]:,}",
        FAMILY,
    )
    columns = {"V": ",d", "K = 3": ",.2f", "Dirichlet 2": ",.2f", "times": ",.1f"}
    return Table("How much the score of one latent step varies", columns, rows, legend, [growth])


# ---------------------------------------------------------------------------------------------------------------------
# Figure

SHADES = {"exact": "#3b6fb6", "paper": "#b5403a", "official": "#c08a3e"}


def draw(records: list[CaseRecord], path: Path) -> None:
    """Bias and noise against K for every ratio, and the score's variance against the vocabulary."""
    with figure(path, 11, 4, columns=3) as (left, middle, right):
        tokens = [r for r in records if r.case.samples and _place(r)[:2] == (3, 2)]
        _lines(left, tokens, "error", 100)
        left.set(xlabel="tokens K a latent step", ylabel="relative error of the mean, %", title="bias, leave-one-out")
        _lines(middle, tokens, "noise", 1)
        through = [r for r in tokens if "straight-through" in r.estimators]
        by_samples = grouped(through, _samples)
        noise = [fmean(_values(group, "straight-through", "noise")) for group in by_samples.values()]
        middle.plot([*by_samples], noise, "s--", color="#8c8c8c", label="straight-through")
        middle.set(xlabel="tokens K a latent step", ylabel="noise / norm of the mean", title="noise, leave-one-out")
        for axes in (left, middle):
            legend_mark(axes, "bar: 95 % over worlds", "|", hollow=False)
            legend_under(axes)
        both = [information(vocabulary) for vocabulary in VOCABULARIES]
        for place, (label, colour) in enumerate((("K = 3", "#3b6fb6"), ("Dirichlet 2", "#3c7a4c"))):
            right.plot(VOCABULARIES, [each[place] for each in both], "o-", color=colour, label=label)
        right.set(xlabel="vocabulary", ylabel="variance of a step's score", xscale="log", yscale="log")
        right.set_title("one latent step, closed forms")
        legend_under(right)


def _lines(axes: "matplotlib.axes.Axes", records: list[CaseRecord], what: str, scale: int) -> None:
    """Draws a line for each ratio, with the interval over worlds."""
    ones = [record for record in records if record.case.samples == 1]  # all ratios are one there
    for place, (ratio, colour) in enumerate(SHADES.items()):
        group = ones + [r for r in records if r.case.ratio == ratio and _samples(r) > 1]
        found = {n: _values(each, "leave-one-out", what) for n, each in grouped(group, _samples).items()}
        beside = {samples: samples + 0.12 * (place - 1) for samples in found}  # equal values stay visible
        means = [scale * fmean(values) for values in found.values()]
        axes.plot([*beside.values()], means, "o-", color=colour, linewidth=1, markersize=4, label=ratio)
        for samples, values in found.items():
            ends = _over_worlds(values)
            if ends is not None:
                axes.plot([beside[samples]] * 2, [scale * ends.low, scale * ends.high], color=colour)


STUDY = Study(
    "estimators",
    "How biased and how noisy is each policy-gradient estimator for sampled latents, against the exact gradient?",
    grid,
    tables,
    draw,
    kind=Case,
)
