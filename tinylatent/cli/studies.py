"""Studies: `reproduce` measures one, `rebuild` shows stored ones again."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from tinylatent.cli.terminal import Device
from tinylatent.core.files import json_text
from tinylatent.lab.launchers import launcher_named
from tinylatent.lab.study import RUNS, STUDIES, Profile, kept, rebuild, reproduce, study_of


@dataclass(frozen=True)
class Reproduce:
    """Run a study: tables, findings and a figure, with intervals and provenance. Finished runs are skipped."""

    study: tyro.conf.Positional[str]
    """Name of the study; `tinylatent list` shows them."""
    profile: Profile = "quick"
    """Minutes, or the whole grid."""
    workers: int = 2
    """Runs at a time; each has a process with one thread where they run on this machine."""
    launcher: str = "local"
    """What does the runs; `tinylatent list` shows what there is."""
    results: Path = Path("results")
    """Folder of results."""
    device: Device = "cpu"
    """Where the runs train."""
    json: bool = False
    """Print the tables with their findings as JSON instead of text."""

    def run(self) -> None:
        """Measures what is missing and prints the tables and where the files are."""
        study, launcher = STUDIES.named(self.study), launcher_named(self.launcher, self.workers)
        outcome = reproduce(study, self.profile, self.results, launcher, self.device)
        if self.json:
            files = {name: str(path) for name, path in outcome.files.items()}
            print(json_text({"tables": [table.to_json() for table in outcome.tables], "files": files}))
            return
        print()
        for table in outcome.tables:
            print(table.markdown())
        for name, path in outcome.files.items():
            print(f"{name:16s} {path}")


@dataclass(frozen=True)
class Rebuild:
    """Tables, findings and figures again, from the stored runs alone; tables come out the same, byte for byte."""

    folders: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of results by name, such as mnns, or by path, such as results/mnns."""
    all: bool = False
    """All folders of results."""
    results: Path = Path("results")
    """Folder that holds them; results/runs/quick for those of quick profiles."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Of the figure: pdf or svg is drawn beside the PNG, as figure.pdf or figure.svg."""

    def run(self) -> None:
        """Rebuilds and prints what was written."""
        found = kept(self.results)
        names = ", ".join(folder.name for folder in found)
        if not found and not any((Path(name) / RUNS).is_file() for name in self.folders):
            raise ValueError(f"{self.results} holds no results: expected folders with a runs.jsonl; try --results PATH")
        if self.all == bool(self.folders):
            raise ValueError(f"rebuild needs names or --all, one of the two: there are {names}")
        chosen = found if self.all else [self._named(name, found) for name in self.folders]
        for folder in tqdm(chosen, unit="study", disable=None):
            study = study_of(folder)
            outcome = rebuild(study, folder)
            written = [path for name, path in outcome.files.items() if name != RUNS]
            if self.format != "png":
                written.append(folder / f"figure.{self.format}")
                study.figure(outcome.records, written[-1])
            tqdm.write("\n".join(map(str, written)), file=sys.stdout)

    def _named(self, name: str, found: list[Path]) -> Path:
        """The folder of results of a name, or at a path."""
        if self.results / name in found and Path(name).name == name.rstrip("/"):
            return self.results / name
        if (Path(name) / RUNS).is_file():
            return Path(name)
        names = ", ".join(folder.name for folder in found)
        raise ValueError(
            f"{self.results} has no results {name!r}: expected one of {names}, or a path to another folder"
        )
