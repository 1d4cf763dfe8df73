"""Model reading: a model of transformers looked into by every lens, on multi-hop questions of one number of hops.

Questions are posed as its tokenizer poses them, the right answer behind each. What lenses see is kept as their tables;
depth scores are kept problem by problem, so that those of several numbers of hops can be compared. Effects on the
future are those of a layer skipped at all tokens before the one that predicts the answer, read where the answer is
predicted: all but the last words of a question are facts, of which effects say nothing about hops.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch
from tinylatent_tasks import MultiHop

from tinylatent.lab.answering import at_answers, rights
from tinylatent.lab.lensed import Settings, scores_of, tables
from tinylatent.lab.prompts import Prompts, of_examples
from tinylatent.lab.run import Progress, Record, Run, new_record, note_progress, short
from tinylatent.lab.tables import Table, Value
from tinylatent.lenses.depth import Effects, skip
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.text import Text, Wording

FOLDER = "models/smollm2"
"""Where `make model` puts it."""
LENSES = 6
SETTINGS = Settings(shown=2, target="log_probability", most=27)


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lens's table."""

    title: str
    """Of the table."""
    columns: dict[str, str]
    """How the numbers of each are written."""
    cells: dict[str, list[str | int | float | None]]
    """Column by column."""
    legend: str
    """What the columns mean."""

    @classmethod
    def of(cls, table: Table) -> "Seen":
        """The table's cells, numbers to five digits; what it remarks is left out."""
        cells = {name: [short(row.get(name)) for row in table.rows] for name in table.columns}
        return cls(title=table.title, columns=table.columns, cells=cells, legend=table.legend)

    @property
    def rows(self) -> list[dict[str, Value]]:
        """Row by row."""
        return [dict(zip(self.cells, row, strict=True)) for row in zip(*self.cells.values(), strict=True)]


class ModelRecord(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """A model of transformers, and how it uses its layers on questions of one number of hops."""

    seen: dict[str, Seen]
    """Tables by lens."""
    scores: dict[str, list[float]]
    """Depth scores of effects on the future, problem by problem, by what is affected and how tokens are taken."""
    model: str
    """Checksum of its weights and configuration."""
    likely: list[float]
    """Probability of the right answer's tokens, problem by problem: the product."""
    right: list[bool]
    """Whether all of them are the likeliest, problem by problem."""

    @cached_property
    def reading(self) -> "ModelReading":
        """The run it is of."""
        return ModelReading.from_json(self.run)

    def summary(self) -> str:
        """What was read, and how likely right answers are."""
        return f"{self.reading.label}: right answers have probability {sum(self.likely) / len(self.likely):.3f}"


@dataclass(frozen=True)
class ModelReading(Run):
    """Questions of one number of hops, and the model that is asked them.

    Raises ValueError for fewer than two problems.
    """

    version: ClassVar[int] = 1
    record = ModelRecord

    hops: int
    """Of every question."""
    seed: int = 0
    """Of the questions."""
    problems: int = 8
    """How many."""
    nodes: int = 4
    """Of every question; so many facts it has."""
    folder: str = field(default=FOLDER, compare=False)
    """Where the model lies, which is no part of the run."""

    def __post_init__(self) -> None:
        if self.problems < 2:
            raise ValueError(f"problems is {self.problems}: expected 2 or more; try 8")

    def to_json(self) -> dict[str, Any]:
        """The settings."""
        names = ("hops", "seed", "problems", "nodes")
        return {"version": self.version, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelReading":
        """The reading that wrote these values.

        Raises:
            ValueError: they describe no reading of this version.
        """
        if values.get("version") != cls.version:
            raise ValueError(f"not a reading of a model of version {cls.version}: measure it again")
        try:
            return cls(**{name: value for name, value in values.items() if name != "version"})
        except TypeError as error:
            raise ValueError(f"not a reading of a model this version can read ({error}): measure it again") from error

    @property
    def work(self) -> int:
        """A unit for every lens."""
        return LENSES

    @property
    def label(self) -> str:
        """The model and the questions."""
        return f"{Path(self.folder).name} on {self.hops} hops, seed {self.seed}"

    @property
    def task(self) -> MultiHop:
        """What the questions are of."""
        return MultiHop(hops=self.hops, least=self.hops, nodes=self.nodes)

    def prompts(self, device: torch.device | str = "cpu") -> Prompts:
        """The questions with their answers, as the model reads them.

        Raises:
            ValueError: the model is not there.
        """
        if not Path(self.folder).is_dir():
            raise ValueError(f"{self.folder} is not there: `make model` fetches the model")
        settings = Pretrained(self.folder)
        wording = Wording(settings.tokenizer())
        backbone = settings.backbone(len(wording), [], torch.Generator()).to(device)
        speaker = Text(self.task, self.task.problems(self.problems, self.seed), wording, "spelled")
        return of_examples(backbone, speaker.examples(device), wording.name)

    def measure(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
        start: Path | None = None,
    ) -> ModelRecord:
        """Loads the model and looks into it."""
        prompts, heard = self.prompts(device), []

        def tell(name: str) -> None:
            heard.append(name)
            note_progress(folder, len(heard) - 1, on_progress)

        future = on_answer(prompts)
        seen = {name: Seen.of(table) for name, table in tables(prompts, SETTINGS, tell, future).items()}
        note_progress(folder, LENSES, on_progress)
        found = {"seen": seen, "scores": scores_of(future), "likely": _likely(prompts)}
        found |= {"right": rights(prompts).tolist()}
        model = Pretrained(self.folder).found().digest
        record: ModelRecord = new_record(self, training=[], device=device, model=model, **found)
        return record


def on_answer(prompts: Prompts) -> Effects:
    """Effects of skipping each layer before the token that predicts the answer, where the answer is predicted."""
    first_B, record = prompts.answers()[0].int().argmax(1), prompts.record
    return at_answers(prompts, skip(record, splits_BN=record.rank_BS().gather(1, first_B[:, None])))


@torch.no_grad()
def _likely(prompts: Prompts) -> list[float]:
    """The probability of each right answer."""
    counted_BS, ids_BS = prompts.answers()
    logs_nV = prompts.record.logits(prompts.record.stream[-1][counted_BS]).log_softmax(-1)
    log_n = logs_nV.gather(1, ids_BS[counted_BS][:, None])[:, 0].double()
    row_n = counted_BS.nonzero()[:, 0].cpu()
    total_B = torch.zeros(len(counted_BS), dtype=torch.float64).index_add(0, row_n, log_n.cpu())
    likely: list[float] = short(total_B.exp())
    return likely
