"""What a model does inside, layer by layer: `lens`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tinylatent.cli.terminal import Device
from tinylatent.core.files import write_text
from tinylatent.lab.experiment import device_named
from tinylatent.lab.folders import load
from tinylatent.lab.lens_figures import draw_lenses
from tinylatent.lab.lensed import Settings, tables
from tinylatent.lab.prompts import Prompts, of_model, of_run, read_passages
from tinylatent.training.checkpoints import find_checkpoint


@dataclass(frozen=True)
class Lens:
    """Look into a run or a model of transformers: figures and tables of how it uses its layers, and of outliers."""

    what: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|MODEL")]
    """Folder of a trained run, or of a model of transformers, which needs --prompts."""
    out: Path = Path("lens")
    """Folder for a figure and a CSV file from each lens."""
    prompts: Path | None = None
    """For a model: a file with a text on every line, or JSON such as {"question": "1 + 1 =", "answer": "2"}. With
    answers residuals are erased and attributed too. A run looks at problems of its validation part."""
    count: int = 32
    """Most prompts."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    device: Device = "cpu"
    """Where it computes."""

    def run(self) -> None:
        """Measures, writes and draws.

        Raises:
            ValueError: the folder holds neither, prompts are missing or of no use, or its layers are unknown.
        """
        if self.count < 1:
            raise ValueError(f"--count {self.count}: expected a prompt at least")
        found = tables(self._prompts(), self.settings, lambda name: print(f"{name} ..", file=sys.stderr))
        self.out.mkdir(parents=True, exist_ok=True)
        for name, table in found.items():
            write_text(self.out / f"{name}.csv", table.csv())
        drawn = draw_lenses(found, self.out)
        for table in found.values():
            for remark in table.remarks:
                print(remark)
        print(f"{len(drawn)} figures and tables: {self.out}")

    def _prompts(self) -> Prompts:
        """What is looked at."""
        where = device_named(self.device)
        if not self.what.is_dir():
            raise ValueError(f"{self.what} is no folder: expected that of a run, or of a model of transformers")
        if find_checkpoint(self.what) is not None:
            if self.prompts is not None:
                raise ValueError(f"--prompts beside {self.what}, which is a run: it looks at its own problems")
            experiment, model = load(self.what, where)
            return of_run(experiment, model, self.count, where)
        if self.prompts is None:
            raise ValueError(
                f"{self.what} holds no run with a checkpoint: a model of transformers needs --prompts FILE, a text on "
                "every line"
            )
        return of_model(self.what, read_passages(self.prompts)[: self.count], where)
