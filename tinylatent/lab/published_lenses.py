"""Published lenses: the papers' analyses of large models as recipes, to be done where there is a machine for them.

    plan(LENSED["depth-llama-3.1-8b"])            # parameters, memory, forwards; nothing is computed
    small(LENSED["depth-llama-3.1-8b"], folder)   # the same lenses on two layers with random weights, in seconds
    tables(of_model(folder, passages), recipe.settings)          # the analysis itself, as `tinylatent lens` does it

What it takes is counted in passes: one layer run over one prompt. A record is L of them; skipping each layer at all
tokens, or its attention or MLP, runs it and those after it, L (L + 1) / 2, before splits as often as there are splits;
a direct effect runs the later layer alone; an erased token, and a node of integrated gradients or the end of one of
their pieces, run all layers from the one that is changed.

Letters: L layers, S slots of a prompt, D width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from tinylatent.lab.lensed import Settings, tables
from tinylatent.lab.prompts import Passage, of_model
from tinylatent.lab.tables import Table
from tinylatent.lenses.attribution import FIRST

TRIED = tuple(Passage(f"{a} + {b} + {c} =", str(a + b + c)) for a, b, c in ((1, 2, 3), (4, 0, 5), (2, 2, 1), (7, 1, 1)))
"""What a recipe is tried on in small."""
SMALL = Settings(splits=2, shown=1, most=27)


@dataclass(frozen=True)
class PublishedLens:
    """An analysis of a paper."""

    title: str
    """What is looked into."""
    source: str
    """Whose analysis it is."""
    shape: str
    """Name of the model's shape."""
    prompts: int
    """How many are looked at."""
    slots: int
    """Tokens of a prompt with its answer, at most; what memory and passes are counted for."""
    settings: Settings
    """How much is asked."""
    departures: tuple[str, ...] = ()
    """Where it differs from what was published."""


CSORDAS = "Csordás et al. 2025, arXiv 2505.13898, and the authors' analyze_*.py"
ASKED = Settings(splits=4, shown=2, target="log_probability", most=243)
HERE = (
    "ten questions of GSM8K with their answers for everything; the authors take the first ten, or twenty, of its test "
    "part",
    "weights in float32; the authors load 8 bits and compute in bfloat16",
    "means with intervals over questions beside maxima; first tokens are never skipped",
    "integrated gradients at midpoints of pieces cut until they add up; the authors take 256 nodes from the left",
    "scores are not told by MATH's levels or hops of MQuAKE (study "
    "depth-smollm tells them by hops), and models are not mapped onto each other",
)
LENSED = {
    f"depth-{shape}": PublishedLens(f"use of depth of {shape}", CSORDAS, shape, 10, 512, ASKED, HERE)
    for shape in ("llama-3.1-8b", "qwen3-8b")
}
"""Every analysis by name."""


@dataclass(frozen=True)
class LensPlan:
    """What an analysis takes, from true shapes; sizes are bytes, in float32."""

    parameters: int
    layers: int
    passes: int
    """One layer run over one prompt, at most: integrated gradients may need fewer nodes."""
    operations: float
    """Of these passes, two a weight and slot; a gradient counts as two forwards more."""
    weights: int
    record: int
    """Streams, attention's and the MLP's additions of all prompts."""
    stacking: int
    """What recording takes for a moment beside the record: its tensors before they are one."""
    sweep: int
    """What effects of skipped layers on contributions of others, slot by slot, take."""
    outcomes: int
    """Probabilities of the clean run at every slot, and those they are put together from."""

    @property
    def memory(self) -> int:
        """The sum of all."""
        return self.weights + self.record + max(self.stacking, self.sweep + self.outcomes)


def plan(recipe: PublishedLens) -> LensPlan:
    """What an analysis takes; nothing is computed and no weight is read.

    Raises:
        ImportError: transformers is not installed.
    """
    from tinylatent.models.huggingface_shapes import on_meta

    backbone, asked, S = on_meta(recipe.shape), recipe.settings, recipe.slots
    layers = backbone.layers_to_share
    L, weights = len(layers), sum(x.numel() for x in backbone.parameters())
    each = sum(x.numel() for x in layers[0].parameters())
    forwards, backwards = passes(L, recipe.prompts, S, asked)
    return LensPlan(
        parameters=weights,
        layers=L,
        passes=forwards,
        operations=2.0 * each * S * (forwards + 2 * backwards),
        weights=4 * weights,
        record=4 * (3 * L + 1) * recipe.prompts * S * backbone.table.width,
        stacking=4 * (3 * L + 1) * recipe.prompts * S * backbone.table.width,
        outcomes=2 * 4 * recipe.prompts * S * len(backbone.table),
        sweep=4 * L * (L + 1) * recipe.prompts * (asked.splits + 5) * S,
    )


def passes(layers: int, prompts: int, slots: int, settings: Settings) -> tuple[int, int]:
    """Passes of one layer over one prompt, and how many of them have a backward too, at most."""
    shown, nodes = min(settings.shown, prompts), FIRST
    while 3 * nodes <= settings.most:
        nodes *= 3
    below, from_each = layers * (layers - 1) // 2, layers * (layers + 1) // 2
    swept = prompts * (layers + (4 + settings.splits) * from_each + below)  # the layer, either part, and its mean
    erased = shown * (slots - 1) * from_each
    slopes, ends = shown * nodes * from_each, shown * (nodes + 1 + 2) * from_each
    return swept + erased + slopes + ends, slopes


def small(recipe: PublishedLens, folder: Path, device: torch.device | str = "cpu") -> dict[str, Table]:
    """The same lenses on a model of the family with two layers and random weights, which is saved under a folder.

    Raises:
        ImportError: transformers is not installed.
    """
    from tinylatent.models.huggingface_shapes import SHAPES
    from tinylatent.models.huggingface_small import save_small_model

    save_small_model(folder / "model", SHAPES[recipe.shape][0], chat=False)
    return tables(of_model(folder / "model", [*TRIED], device), SMALL)
