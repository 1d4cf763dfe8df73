"""The lineup: the methods compared on MNNS, the recipes study `mnns-tuning` froze, and how a comparison is shown."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from tinylatent.evaluation.statistics import Interval
from tinylatent.lab.measure import ITSELF
from tinylatent.lab.plots import COLOURS, interval_row, published_mark
from tinylatent.lab.report import Table
from tinylatent.lab.studies.compare import (
    accuracy,
    against_published,
    better,
    controls,
    grouped,
    latents_matter,
    listed,
    method_of,
    percent,
)
from tinylatent.lab.study import Record
from tinylatent.methods import Coconut, CoT2, Direct, DiscreteCoT, PauseTokens
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.method import Method
from tinylatent.training.config import Training

METHODS: tuple[Method, ...] = (Direct(), PauseTokens(), DiscreteCoT(), Coconut(mixing=0.0), CoT2())


class Labels(dict[str, str]):
    """What methods are called; one that is added goes by its name."""

    def __missing__(self, name: str) -> str:
        return name


LABELS = Labels(direct="direct", pause="pause", discrete="discrete CoT", coconut="Coconut", cot2="CoT2")
RECIPES = {
    "direct": Training(rate=2.5e-3, weight_decay=0.05),
    "pause": Training(rate=5e-4, weight_decay=0.25),
    "discrete": Training(rate=2e-3, weight_decay=0.05),
    "coconut": Training(rate=5e-3, weight_decay=0.05),
    "cot2": Training(rate=1e-2, weight_decay=0.05),
}
"""What each method is trained with in every reported study, and Coconut's mixing above: a test holds them to the stored
tuning runs."""
SMALL = {
    ("discrete", ModelConfig(16)): 5e-3,
    ("discrete", ModelConfig(24)): 5e-3,
    ("discrete", ModelConfig(24, 1, 1)): 1e-2,
    ("cot2", ModelConfig(16)): 1e-2,
    ("cot2", ModelConfig(24)): 1e-2,
    ("cot2", ModelConfig(24, 1, 1)): 1e-2,
}
"""Learning rates in shapes other than the default, from study `mnns-tuning-small`; all else as above."""
COLUMNS = {
    "method": "s", "accuracy": ".2f", "low": ".2f", "high": ".2f", "published": ".2f", "seeds": "d", "kl": ".4f",
    "norm": ".2f", "steps": "d", "kflop": ".0f", "parameters": "d", "train_s": ".0f", "eval_per_s": ".0f",
}  # fmt: skip
PUBLISHED_LEGEND = "published: Gozeten et al. 2025, another implementation and other splits, without interval. "
LEGEND = (
    "accuracy, low, high: percent of the validation part, mean over seeds, 95 % interval (bootstrap over seeds and "
    "keys, a key being {key}; Student's t over seeds where that is wider). {published}"
    "kl: nats from the oracle's frontier of all traces, mean over steps, for methods with taught steps; discrete CoT "
    "is taught one trace, so it stands far from all. norm: of what is fed back, in units of the mean token embedding "
    "(tokens differ). steps, kflop: decoded steps and thousand operations per problem at inference. train_s: seconds "
    "a run; eval_per_s: problems a second, one thread. noise, shuffled, zero: the same model, its latents replaced at "
    "evaluation by noise of the same norm, by another problem's latents, by nothing. Differences are on the same "
    "splits."
)


def recipe(method: Method, shape: ModelConfig) -> Training:
    """What a method is trained with in a model of this shape."""
    usual = RECIPES[method.name]
    return usual if shape == ModelConfig() else replace(usual, rate=SMALL[method.name, shape])


def comparison(
    records: list[Record], title: str, published: dict[str, float], key: str = "a multiset of digits"
) -> Table:
    """A row a method, each latent one followed by its controls, and below what holds and what does not."""
    groups = grouped(records, method_of)
    rows = [_row(groups[name], name, variant, interval, published) for name, variant, interval in intervals(records)]
    columns = {name: spec for name, spec in COLUMNS.items() if published or name != "published"}
    rows = [{name: row[name] for name in columns if name in row} for row in rows]
    legend = LEGEND.format(key=key, published=PUBLISHED_LEGEND if published else "")
    return Table(title, columns, rows, [legend, *listed(_findings(groups, published))])


def intervals(records: list[Record]) -> Iterator[tuple[str, str, Interval]]:
    """(method, variant, accuracy) of every method itself and under every control."""
    for name, group in grouped(records, method_of).items():
        for variant in group[0]["evaluations"]:
            yield name, variant, accuracy(group, variant)


def _row(
    group: list[Record], name: str, variant: str, interval: Interval, published: dict[str, float]
) -> dict[str, Any]:
    first, evaluations = group[0], [record["evaluations"][variant] for record in group]
    row: dict[str, Any] = {
        "method": LABELS[name] if variant == ITSELF else f"{LABELS[name]}, {variant}",
        **percent(interval),
        "kl": fmean([fmean(e["kl"]) for e in evaluations]) if evaluations[0]["kl"] else None,
        "norm": fmean([fmean(e["norm"]) for e in evaluations]) if evaluations[0]["norm"] else None,
    }
    if variant == ITSELF:
        row |= {
            "published": published.get(name),
            "seeds": len(group),
            "steps": first["cost"]["steps"],
            "kflop": first["cost"]["flops"] / 1000,
            "parameters": first["parameters"],
            "train_s": fmean([record["cost"]["training_seconds"] for record in group]),
            "eval_per_s": fmean([e["problems_per_s"] for e in evaluations]),
        }
    return row


def _findings(groups: dict[str, list[Record]], published: dict[str, float]) -> Iterator[str]:
    """Each method against the others on the same splits, against its controls, and beside the paper."""
    for claimed, other in _claims(list(groups)):
        yield better(LABELS[claimed], groups[claimed], LABELS[other], groups[other])
    for name, group in groups.items():
        if controls(group):
            yield latents_matter(LABELS[name], group)
    for name in published:
        yield against_published(LABELS[name], accuracy(groups[name]), published[name])
    constant = 100 * fmean([record["constant"] for group in groups.values() for record in group])
    yield f"Always saying the most frequent training answer would score {constant:.2f} %."


def _claims(names: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs (claimed better, other): CoT2 and Coconut, each over all that come before it in the table."""
    for claimed in ("cot2", "coconut"):
        if claimed in names:
            yield from ((claimed, other) for other in names[: names.index(claimed)])


def draw_accuracies(axes: Axes, records: list[Record], published: dict[str, float]) -> None:
    """The comparison's intervals from top to bottom, controls hollow, published values as diamonds."""
    rows = list(intervals(records))[::-1]
    for place, (name, variant, interval) in enumerate(rows):
        interval_row(axes, place, interval, COLOURS[name], hollow=variant != ITSELF)
        if variant == ITSELF and name in published:
            published_mark(axes, published[name], place)
    labels = [LABELS[name] if variant == ITSELF else f"{variant} latents" for name, variant, _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    published_mark(axes, label="published")
    axes.plot([], [], "o-", color="black", label="measured, 95 %")
    axes.set(xlabel="validation accuracy, %", xlim=(0, 102))
