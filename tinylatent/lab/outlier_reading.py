"""Outlier reading: a trained run asked for its outlier features, and for what rounding to int8 does to its answers.

Problems drawn from all of the task's, trained on or not, are answered in full precision and rounded in several ways,
tensors by the largest entry that was seen on the same problems without padding; so are versions of the model that
compute the same function: with the residual stream in another basis, and with an outlier put in, larger and larger.
Both need norms before attention and MLP, and are left out elsewhere.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch

from tinylatent.lab.reading import OfTrained
from tinylatent.lab.run import Progress, Record, new_record, note_progress, short
from tinylatent.lenses.outliers import Outliers, budget, input_correlation, stream_outliers
from tinylatent.lenses.preserving import inject, rotated
from tinylatent.lenses.quantised import Scale, quantised, watched
from tinylatent.lenses.residuals import record_tokens
from tinylatent.methods import Direct
from tinylatent.models.decoder import Decoder
from tinylatent.objectives.examples import Examples
from tinylatent.training.checkpoints import read_metrics

FACTORS = (1.0, 10.0, 30.0, 100.0, 300.0)
"""How much larger the outlier is that is put in."""
WHERE: tuple[int, Any, int] = (1, "mlp", 0)
"""Layer, part and channel of what it is put into."""
WAYS: dict[str, tuple[Scale | None, bool] | None] = {
    "float": None, "tensor": ("tensor", True), "token": ("token", True), "weights": (None, True),
}  # fmt: skip
"""How linear maps are rounded: what they read, and whether their weights are."""
PROBLEMS = 1000
"""How many are asked."""
SAMPLE = 2048
"""Most tokens whose correlation and budget are measured."""


class Answers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is answered, rounded in one way."""

    right: int
    """Right answers."""
    loss: float
    """Cross-entropy of the right answer in nats, mean over problems."""
    moved: float
    """KL(full precision || rounded) of the answer in nats, mean over problems: never below 0, and no luck of the right
    answer's."""


class Injected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same function with an outlier in what one layer reads."""

    factor: float
    """How much larger it is."""
    kurtosis: float
    """Of what that layer reads."""
    max_median: float
    """The same of the ratio."""
    answers: dict[str, Answers]
    """By the way of rounding."""


class OutlierRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A trained run, its outlier features, and what rounding does to it."""

    total: int
    """Problems that were asked."""
    answers: dict[str, Answers]
    """By the way of rounding."""
    stream: dict[str, list[float]]
    """Of the residual stream before every layer and after the last, first tokens left out: kurtosis, max-median ratio,
    input correlation, and the budget of kurtosis."""
    read: dict[str, tuple[float, float | None]]
    """Kurtosis and max-median ratio of what every linear map reads, by its weight's name; no ratio where half of a
    token's entries are 0, as a ReLU leaves them."""
    steps: int
    """Batches it was trained on; fewer where it stopped at a share of right answers."""
    rotated: dict[str, Answers] = msgspec.field(default_factory=dict)
    """The residual stream in a random basis, norms' weights within the matrices after them, by the way of rounding."""
    folded: dict[str, Answers] = msgspec.field(default_factory=dict)
    """The same in the usual basis."""
    rotated_kurtosis: list[float] = msgspec.field(default_factory=list)
    """Of that stream."""
    injected: list[Injected] = msgspec.field(default_factory=list)
    """Outliers put in, larger and larger."""

    @cached_property
    def reading(self) -> "OutlierReading":
        """The run it is of."""
        return OutlierReading.from_json(self.run)

    @property
    def kurtosis(self) -> float:
        """The largest of the residual stream's."""
        return max(self.stream["kurtosis"])

    def summary(self) -> str:
        """The run that was read, its accuracy and kurtosis."""
        right = self.answers["float"].right / self.total
        return f"{self.reading.label}: {right:.1%} right, kurtosis {self.kurtosis:.1f}"


@dataclass(frozen=True)
class OutlierReading(OfTrained):
    """A trained run that answers at once, of which outliers are asked.

    Raises ValueError for another method, or a model that is no decoder of ours.
    """

    version: ClassVar[int] = 1
    about: ClassVar[str] = " of outliers"
    record = OutlierRecord

    def __post_init__(self) -> None:
        if not isinstance(self.start.method, Direct) or self.start.hf is not None:
            raise ValueError(f"a run of {self.start.method.name}: expected direct, in a decoder of ours")

    def to_json(self) -> dict[str, Any]:
        """The reading as plain values."""
        return {"version": self.version, "start": self.start.to_json()}

    @property
    def work(self) -> int:
        """The model itself, turned, and with outliers put in."""
        return 3

    @property
    def label(self) -> str:
        """The run that is read."""
        return f"outliers of {self.start.label}"

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> OutlierRecord:
        """Loads the run from its folder, or trains it under this one's, and asks it."""
        start, model, saved = self.opened(folder, device, start)
        decoder: Decoder = model.backbone
        rows = self.start.task.problems(PROBLEMS, self.start.seeds.derive("sampling", "looked at"))
        examples = self.start.asks(rows).examples(device)
        found: dict[str, Any] = {"total": len(examples), "answers": answers(decoder, examples)}
        read = {
            name: (short(each.kurtosis()), None if each.unrated else short(each.max_median()))
            for name, each in read_by(decoder, examples).items()
        }
        found |= {
            "stream": stream_of(decoder, examples),
            "read": read,
        }
        note_progress(folder, 1, on_progress)
        if self.start.model.norm == "pre" and self.start.model.experts == 1:
            turned = rotated(decoder, torch.Generator().manual_seed(self.start.seeds.derive("sampling", "rotation")))
            found |= {"rotated": answers(turned, examples), "folded": answers(rotated(decoder, None), examples)}
            found |= {"rotated_kurtosis": stream_of(turned, examples)["kurtosis"]}
            note_progress(folder, 2, on_progress)
            found |= {"injected": [_injected(decoder, examples, factor) for factor in FACTORS]}
        note_progress(folder, 3, on_progress)
        lines = read_metrics(start)
        record: OutlierRecord = new_record(
            self, training=saved.manifest.get("environments"), device=device, steps=lines[-1]["step"], **found
        )
        return record


@torch.no_grad()
def answers(decoder: Decoder, examples: Examples) -> dict[str, Answers]:
    """What a decoder answers at once, rounded in every way."""
    inputs_BND, mask_BN, seen = (
        decoder.table.rows(examples.prompt_BN),
        examples.prompt_mask_BN,
        read_by(decoder, examples),
    )
    found, whole_BV = {}, None
    for name, how in WAYS.items():
        inputs, weights = (None, False) if how is None else how
        with quantised(decoder, inputs, seen, weights):
            hidden_BND, _ = decoder.forward(inputs_BND, mask_BS=mask_BN, keep=False)
        logs_BV = decoder.readout(hidden_BND[:, -1]).log_softmax(-1)
        right_B = examples.answer_BA[:, 0]
        loss = -logs_BV.gather(1, right_B[:, None]).mean()
        whole_BV = logs_BV if whole_BV is None else whole_BV  # full precision comes first
        moved = (whole_BV.exp() * (whole_BV - logs_BV)).sum(-1).mean().clamp(min=0.0)
        right = int((logs_BV.argmax(-1) == right_B).sum())
        found[name] = Answers(right=right, loss=short(float(loss)), moved=short(float(moved)))
    return found


@torch.no_grad()
def stream_of(decoder: Decoder, examples: Examples) -> dict[str, list[float]]:
    """Outlier features of the residual stream before every layer and after the last."""
    record = record_tokens(decoder, examples.prompt_BN, examples.prompt_mask_BN)
    free_BS = record.mask_BS & (record.rank_BS() >= 1)
    stats = stream_outliers([record])
    samples = [x_BSD[free_BS][:SAMPLE] for x_BSD in record.stream]
    parts = [budget(x_nd) for x_nd in samples]
    found = {
        "kurtosis": [each.kurtosis() for each in stats],
        "max-median": [each.max_median() for each in stats],
        "input correlation": [input_correlation(x_nd) for x_nd in samples],
        **{name: [getattr(part, name) for part in parts] for name in ("norms", "inputs", "neurons")},
    }
    return {name: short(values) for name, values in found.items()}


@torch.no_grad()
def read_by(decoder: Decoder, examples: Examples) -> dict[str, Outliers]:
    """Outliers of what every linear map reads, over tokens that hold an input."""
    ids_BN, mask_BN = examples.prompt_BN, examples.prompt_mask_BN
    length_B = mask_BN.sum(1) if mask_BN is not None else ids_BN.new_full((len(ids_BN),), ids_BN.shape[1])
    with watched(decoder) as seen:
        for length in length_B.unique().tolist():  # prompts of one length, cut to it, hold no padding
            decoder.forward(decoder.table.rows(ids_BN[length_B == length, -length:]), keep=False)
    return seen


def _injected(decoder: Decoder, examples: Examples, factor: float) -> Injected:
    """The same function with an outlier put in."""
    layer, part, channel = WHERE
    changed = inject(decoder, layer, part, channel, factor)
    read = read_by(changed, examples)[f"blocks.{layer}.mlp.up_proj"]
    found = {"kurtosis": short(read.kurtosis()), "max_median": short(read.max_median())}
    return Injected(factor=factor, answers=answers(changed, examples), **found)
