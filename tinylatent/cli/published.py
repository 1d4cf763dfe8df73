"""`published`: the papers' runs and analyses, planned before there is a machine for them, tried in small, and done."""

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from tinylatent.cli.finished import carried_out, described, say
from tinylatent.cli.lens import Lens
from tinylatent.cli.terminal import Device, listed, refuse_idle
from tinylatent.core.files import json_text
from tinylatent.core.identity import plain
from tinylatent.lab.experiment import device_named
from tinylatent.lab.lines import LinesFile
from tinylatent.lab.published import PUBLISHED, Plan, Published, plan, published, small
from tinylatent.lab.published_lenses import LENSED, LensPlan, PublishedLens
from tinylatent.lab.published_lenses import plan as lens_plan
from tinylatent.lab.published_lenses import small as small_lens
from tinylatent.lab.trained import done

GIGA = 1e9


@dataclass(frozen=True)
class PublishedRun:
    """Do a paper's run or analysis on a model of transformers, try it in small, or say what it takes. Without a name:
    list them."""

    name: tyro.conf.Positional[str] = ""
    """Name of the recipe."""
    dry_run: bool = False
    """Say what it takes, from the model's true shape: parameters, memory, steps, tokens. With --model its files too are
    looked at: whether every tensor has its place."""
    tiny: bool = False
    """Do it with two layers and random weights, on a task of ours, for a few steps; nothing is kept."""
    model: Path | None = None
    """Folder of the model, as save_pretrained writes it."""
    lines: Path | None = None
    """File of what it is trained on, in one of the forms of docs/text.md; of an analysis, prompts as `tinylatent lens`
    reads them."""
    held: Path | None = None
    """File of lines to validate on, beside --lines; by default a fifth of those is held out for that."""
    seed: int = 0
    """Root seed of everything."""
    out: Path | None = None
    """Folder of the run; by default the store that studies share, RESULTS/runs, under the run's identity. Of an
    analysis, the folder for its figures and tables, by default lens."""
    results: Path = Path("results")
    """Folder of results."""
    device: Device = "cpu"
    """Where to train and evaluate."""
    spread: Literal["ddp", "fsdp"] | None = None
    """Under torchrun: whether every process has the whole model (ddp) or a part of it (fsdp)."""
    half: bool = False
    """With --spread fsdp: compute in bfloat16, and keep weights and moments in their own precision."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> None:
        """Prints the list, the plan, or the record."""
        if not self.name:
            given = ("dry_run", "tiny", "model", "lines", "held", "seed", "out", "results", "device", "spread", "half")
            refuse_idle(self, given, "without the name of a recipe")
            found = {name: f"{each.title}; {each.shape}" for name, each in (PUBLISHED | LENSED).items()}
            print(json_text(found) if self.json else listed("recipes", found))
            return
        if self.dry_run and self.tiny:
            raise ValueError("--dry-run beside --tiny: expected one of the two")
        if self.name in LENSED:
            self._look(LENSED[self.name])
            return
        recipe = published(self.name)
        if self.dry_run:
            refuse_idle(
                self, ("lines", "held", "seed", "out", "device", "spread", "half"), "with --dry-run, which runs nothing"
            )
            self._say(recipe, plan(recipe))
        elif self.tiny:
            kept = ("model", "lines", "held", "out", "results", "spread", "half")
            refuse_idle(self, kept, "with --tiny, which makes its own model and keeps nothing")
            self._try(recipe)
        else:
            self._do(recipe)

    def _say(self, recipe: Published, found: Plan) -> None:
        """Prints what it takes; raises ValueError if tensors of the model have no place."""
        self._told(recipe, found, told(recipe, found))

    def _told(self, recipe: Published | PublishedLens, found: Plan | LensPlan, lines: list[str]) -> None:
        self._check_model(recipe)
        if self.json:
            print(json_text({**asdict(found), "memory": found.memory, "differs": recipe.departures}))
            return
        if self.model is not None:
            print(f"every tensor of {self.model} has its place in {recipe.shape}", file=sys.stderr)
        print("\n".join(lines))

    def _try(self, recipe: Published) -> None:
        """Runs it in small, in a folder that is removed."""
        device_named(self.device)
        with tempfile.TemporaryDirectory() as aside:
            record = done(small(recipe, Path(aside), self.seed), Path(aside) / "run", self.device, None, None)
            say(f"{self.name} in small, with two layers: it tells that the recipe runs, not what it gives")
            print(json_text(record.to_json()) if self.json else described(record))

    def _do(self, recipe: Published) -> None:
        """Runs it."""
        if self.model is None:
            raise ValueError(
                f"{self.name} without --model: expected a folder with {recipe.shape}; --dry-run says what it takes, "
                "--tiny tries it in small"
            )
        if self.held is not None and self.lines is None:
            raise ValueError("--held without --lines: expected the file to train on as well")
        if self.spread is None:
            refuse_idle(self, ("half",), "without --spread fsdp")
        self._check_model(recipe)
        held, batch = str(self.held or ""), recipe.training.batch_size
        lines = None if self.lines is None else LinesFile(str(self.lines), held=held).found()
        there = 0 if self.lines is None else LinesFile(str(self.lines)).size
        if lines is not None and there < 2 * batch:
            raise ValueError(
                f"{self.lines} has {there} lines, and batches of {self.name} have {batch}: expected more of "
                f"{recipe.data.title}; --tiny tries the recipe without"
            )
        experiment = recipe.experiment(str(self.model), lines, self.seed)
        departures = recipe.departures if self.held is None else recipe.differs
        carried_out(self, experiment, None, [f"differs: {each}" for each in departures])

    def _look(self, recipe: PublishedLens) -> None:
        """An analysis: prints what it takes, tries it in small, or draws it."""
        refuse_idle(self, ("held", "seed", "results", "spread", "half"), f"with {self.name}, which trains nothing")
        if self.dry_run:
            refuse_idle(self, ("lines", "out", "device"), "with --dry-run, which runs nothing")
            found = lens_plan(recipe)
            self._told(recipe, found, told_lens(recipe, found))
            return
        refuse_idle(self, ("json",), f"with {self.name}, unless --dry-run is there too")
        if self.tiny:
            refuse_idle(self, ("model", "lines", "out"), "with --tiny, which makes its own model and keeps nothing")
            with tempfile.TemporaryDirectory() as aside:
                seen = small_lens(recipe, Path(aside), device_named(self.device))
            say(f"{self.name} in small, with two layers: it tells that the analysis runs, not what it gives")
            print("\n".join(f"{table.title}: {len(table.rows)} rows" for table in seen.values()))
            return
        if self.model is None or self.lines is None:
            raise ValueError(
                f"{self.name} needs --model, a folder with {recipe.shape}, and --lines, a file of prompts with their "
                "answers; --dry-run says what it takes, --tiny tries it in small"
            )
        self._check_model(recipe)
        Lens(self.model, self.out or Lens.out, self.lines, recipe.prompts, recipe.settings, self.device).run()
        for each in recipe.departures:
            say(f"differs: {each}")

    def _check_model(self, recipe: Published | PublishedLens) -> None:
        """Raises ValueError if a tensor of the model has no place in the recipe's shape, or one is missing."""
        from tinylatent.models.huggingface_shapes import misplaced

        wrong = [] if self.model is None else misplaced(recipe.shape, self.model)
        if wrong:
            more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise ValueError(
                f"{self.model} holds another model than {recipe.shape} ({wrong[0]}{more}): expected the folder of that "
                "one; `tinylatent run METHOD --hf.path FOLDER` takes any"
            )


def told(recipe: Published, found: Plan) -> list[str]:
    """What a recipe is and takes, line by line."""
    method = recipe.method
    rows = {
        "model": f"{recipe.shape}, {found.parameters:,} parameters, {found.trained:,} trained; {recipe.dtype}",
        "data": f"{recipe.data.title}; {recipe.data.examples:,} examples of at most {recipe.data.slots} tokens",
        "method": ", ".join([method.name, *(f"{name} {value}" for name, value in plain(method).items())]),
        "starts from": recipe.before or ("random weights" if recipe.scratch else "the published weights"),
        "training": f"{found.steps:,} steps of {recipe.training.batch_size}, {found.epochs:.1f} epochs, "
        f"{found.tokens / GIGA:.2f} billion tokens at most; rate {recipe.training.learning_rate:g}",
    }
    if not found.steps:
        rows["training"] = "none: it searches when it is asked"
    sizes = {
        "weights": found.weights, "gradients": found.gradients, "moments": found.moments,
        f"forward of {recipe.rows} x {recipe.data.slots}": found.forward,
        f"cache of {recipe.rows} x {recipe.data.slots}": found.cache,
    }  # fmt: skip
    lines = [f"{recipe.title} ({recipe.source})", *(f"  {name:12s} {text}" for name, text in rows.items()), "  memory"]
    lines += [f"    {name:22s} {size / GIGA:8.2f} GB" for name, size in sizes.items() if size]
    lines.append(f"    {'in all':22s} {found.memory / GIGA:8.2f} GB, in one process")
    return [*lines, *(f"  differs: {each}" for each in recipe.departures)]


def told_lens(recipe: PublishedLens, found: LensPlan) -> list[str]:
    """What an analysis is and takes, line by line."""
    asked = recipe.settings
    rows = {
        "model": f"{recipe.shape}, {found.parameters:,} parameters in {found.layers} layers; float32",
        "data": f"{recipe.prompts} prompts with their answers, of at most {recipe.slots} tokens",
        "asked": f"{asked.splits} splits a prompt; {asked.shown} prompts erased and attributed token by token, at most "
        f"{asked.most} nodes",
        "passes": f"{found.passes:,} of one layer over one prompt at most, {found.operations / 1e15:.1f} PFLOP",
    }
    sizes = {
        "weights": found.weights,
        "record": found.record,
        "recording, or sweeps": max(found.stacking, found.sweep + found.outcomes),
    }
    lines = [f"{recipe.title} ({recipe.source})", *(f"  {name:12s} {text}" for name, text in rows.items()), "  memory"]
    lines += [f"    {name:22s} {size / GIGA:8.2f} GB" for name, size in sizes.items()]
    lines.append(f"    {'in all':22s} {found.memory / GIGA:8.2f} GB")
    return [*lines, *(f"  differs: {each}" for each in recipe.departures)]
