"""Published: full runs of the papers as recipes, to be done on a model of transformers where there is a machine for it.

    run = PUBLISHED["coconut-prosqa"].experiment("models/gpt2", LinesFile("prosqa_train.json").found())
    plan(PUBLISHED["hrpo-gsm8k"])               # parameters, memory, steps, tokens; nothing is computed
    small(PUBLISHED["hrpo-gsm8k"], folder)      # the same run with two layers, on a task of ours, in seconds

Settings are those of a paper or of its authors' code, whose names stand beside them; where neither tells, or what we
train differs, `differs` says so. None of these runs was done here: what they give is for their user to find out.

A method that learns from rewards or searches starts from a supervised run on the same model and the same lines, since
our chains end where their answer begins, which a model must be taught.
"""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tinylatent_tasks import Arithmetic, Reachability, Recommendation, Task
from tinylatent_tasks.splits import VALIDATION_SHARE

from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.lines import LinesFile
from tinylatent.lab.published_lenses import LENSED
from tinylatent.methods import (
    GRPO,
    HRPO,
    Coconut,
    CoLaR,
    CoLaRGRPO,
    CoT2,
    Direct,
    DiscreteCoT,
    LatentR3,
    LatentR3RL,
    LatentSeek,
)
from tinylatent.models.huggingface_lora import LoRA
from tinylatent.models.pretrained import Precision, Pretrained
from tinylatent.objectives.method import Method
from tinylatent.objectives.policy_gradient import PolicyGradient
from tinylatent.objectives.text import InText
from tinylatent.training.config import Training
from tinylatent.training.optimizer import trained

TINY_STEPS = 20
"""Steps of a recipe that is tried in small: enough for seven stages."""
TINY = Training(steps=TINY_STEPS, batch_size=4, num_train=16, log_every=5, save_every=TINY_STEPS, validate=0)


@dataclass(frozen=True)
class Data:
    """What a recipe is trained on."""

    title: str
    """Its name, and where it comes from."""
    examples: int
    """Lines to train on."""
    slots: int
    """Tokens of an example with its steps and answer, at most; what memory and tokens are counted for."""
    small: Task
    """The task of ours that stands for it where a recipe is tried in small."""
    full: Task | None = None
    """The task of ours that the recipe is trained on, if it is not lines."""


@dataclass(frozen=True)
class Published:
    """A run of a paper."""

    title: str
    """What is trained on what."""
    source: str
    """Whose settings these are."""
    shape: str
    """Name of the model's shape."""
    data: Data
    method: Method
    training: Training
    before: str | None = None
    """Name of the recipe whose weights it starts from."""
    lora: LoRA | None = None
    dtype: Precision = "float32"
    checkpointing: bool = False
    """Whether blocks are computed again in the backward."""
    scratch: bool = False
    """Whether the paper trains random weights of that shape; else published ones."""
    differs: tuple[str, ...] = ()
    """Where it differs from what was published, or rests on a guess."""

    def experiment(self, path: str, lines: LinesFile | None = None, seed: int = 0) -> Experiment:
        """The whole run with those it starts from.

        Args:
            path: folder of the model.
            lines: of the data; None for a recipe on a task of ours.
            seed: of everything.

        Raises:
            ValueError: the folder holds no model, lines are missing or too many, or the parts do not go together.
        """
        if (lines is None) != (self.data.full is not None):
            asked = f"lines: expected a file of {self.data.title}; try --lines FILE"
            wanted = asked if lines is None else "a task of ours: leave the lines out"
            raise ValueError(f"this recipe is trained on {wanted}")
        return _run(self, path, self.data.full if lines is None else lines, seed)

    @property
    def epochs(self) -> float:
        """How often training sees every example that it is given."""
        given = self.data.examples if self.data.full is not None else self.data.examples * (1 - VALIDATION_SHARE)
        return self.training.steps * self.training.batch_size / given

    @property
    def departures(self) -> tuple[str, ...]:
        """Where it differs, that of all recipes on lines included."""
        return self.differs if self.data.full is not None else (*self.differs, HELD_OUT)

    @property
    def group(self) -> int:
        """Rollouts of an example."""
        return self.method.group if isinstance(self.method, PolicyGradient) else 1

    @property
    def rows(self) -> int:
        """Examples that a forward has at once: those of a part of a batch, each as often as its group."""
        return (self.training.micro_batch or self.training.batch_size) * self.group


def _run(recipe: Published, path: str, task: Any, seed: int, is_small: bool = False) -> Experiment:
    """The run of a recipe on a task or on lines, with those it starts from."""
    start = None if recipe.before is None else _run(PUBLISHED[recipe.before], path, task, seed, is_small)
    recipe = _shrunk(recipe) if is_small else recipe
    training = recipe.training
    if training.num_train is None and not isinstance(task, LinesFile):
        training = replace(training, num_train=recipe.data.examples)
    hf = Pretrained(path, dtype=recipe.dtype, lora=recipe.lora, checkpointing=recipe.checkpointing).found()
    how: dict[str, Any] = {"training": training, "seeds": Seeds.all(seed), "start": start}
    return Experiment(task, recipe.method, hf=hf, text=InText(), **how)


# ---------------------------------------------------------------------------------------------------------------------
# The recipes

# Lengths: the longest validation example of ProsQA has 508 tokens of SmolLM2, of equations 255; of 500 problems of
# GSM8K 425, but rewarded chains may be as long as the authors let them be.
STORIES = Reachability(nodes=6, edges=6, depth=2)
PROSQA = Data("ProsQA, prosqa_train.json of the authors of Coconut", 17_886, 512, STORIES)
PRONTOQA = Data("ProntoQA of five steps, prontoqa_train.json as the authors of Coconut make it", 9_000, 512, STORIES)
AUGMENTED = Data(
    "GSM8K augmented, equations alone (Deng et al. 2024)", 385_620, 256, Arithmetic(operations=2, modulus=5)
)
GSM8K = Data("GSM8K (Cobbe et al. 2021)", 7_473, 1024, Arithmetic(operations=2, modulus=5))
TITLES = Data(
    "Amazon CDs with at most ten titles of history", 49_250, 512,
    Recommendation(categories=3, brands=2, numbers=2, intents=2, events=4),
)  # fmt: skip
LIKE_PROSQA = Data(
    "graphs with the size of ProsQA's, from our generator", 17_886, 512, STORIES,
    Reachability(nodes=22, edges=36, depth=4),
)  # fmt: skip

HELD_OUT = (
    "unless --held names a file for validation, a fifth of the lines is for that and not trained on; so an epoch of "
    "theirs is one and a quarter here"
)
COCONUT = "Hao et al. 2024, arXiv 2412.06769, and args/ of facebookresearch/coconut"
COT2 = "Gozeten et al. 2025, arXiv 2505.23648, and alperengozeten/CoT2"
HRPO_BY = "Yue et al. 2025, arXiv 2505.18454, tables 4 and 5, and the authors' code"
COLAR = "Tan et al. 2025, arXiv 2505.16552, and the authors' colar.yaml"
LATENTSEEK = "Li et al. 2025, arXiv 2505.13308, tables 21 to 26"
LATENTR3 = "Zhang et al. 2025, arXiv 2505.19092, and the authors' scripts"


def _staged(epochs: int, data: Data) -> Training:
    """The optimisation of Coconut: four GPUs with 32 examples each, a constant rate."""
    return Training(
        steps=epochs * data.examples // 128, batch_size=128, micro_batch=32, learning_rate=1e-4,
        warmup=0.0, schedule="constant", weight_decay=0.01, log_every=50, save_every=1000, validate=0,
    )  # fmt: skip


PADDED = "a chain shorter than the stage gets as many latents as it has steps; the authors pad it to six"
FOUR_GPUS = "batches of 128 are four of 32 added up, where the authors have four GPUs"
STAGED = Coconut(stages=6, mixing=0.0, share=0.1)
RATE_GUESSED = (
    "the paper's optimisation of MNNS: that of ProsQA was not to be found",
    "graphs from our generator, whose frontiers are exact, in place of the paper's files",
)
GIVES_FORMAT = "starts from adapters that learnt the form of an answer from lines; the paper asks for it in its prompt"
CSFT = Training(
    steps=1000 * 17_886 // 16, batch_size=16, learning_rate=1e-4, warmup=0.0, schedule="constant", weight_decay=0.01,
    log_every=1000, save_every=10_000, validate=0,
)  # fmt: skip
ADAPTED = Training(
    steps=3 * 7_473 // 32, batch_size=32, micro_batch=8, learning_rate=2e-4, weight_decay=0.0, log_every=10,
    save_every=200, validate=0, clip_norm=1.0,
)  # fmt: skip
QWEN: dict[str, Any] = {"shape": "qwen2.5-1.5b", "lora": LoRA(32, 64.0), "checkpointing": True}
LLAMA: dict[str, Any] = {
    "shape": "llama-3.2-1b", "dtype": "bfloat16", "lora": LoRA(128, 32.0, ("q_proj", "v_proj")),
}  # fmt: skip

PUBLISHED: dict[str, Published] = {
    "coconut-prosqa": Published(
        "Coconut on ProsQA", COCONUT, "gpt2", PROSQA, STAGED, _staged(50, PROSQA), differs=(PADDED, FOUR_GPUS)
    ),
    "coconut-prontoqa": Published(
        "Coconut on ProntoQA", COCONUT, "gpt2", PRONTOQA, STAGED, _staged(50, PRONTOQA), differs=(PADDED, FOUR_GPUS)
    ),
    "pause-prosqa": Published(
        "pause as thought on ProsQA", COCONUT, "gpt2", PROSQA, replace(STAGED, thought="pause"), _staged(50, PROSQA),
        differs=(PADDED, FOUR_GPUS),
    ),
    "discrete-prosqa": Published(
        "chain of thought on ProsQA", COCONUT, "gpt2", PROSQA, DiscreteCoT(), _staged(50, PROSQA), differs=(FOUR_GPUS,)
    ),
    "direct-prosqa": Published(
        "no chain on ProsQA", COCONUT, "gpt2", PROSQA, Direct(), _staged(50, PROSQA),
        differs=(FOUR_GPUS,),
    ),
    "discrete-gsm8k": Published(
        "chain of thought in equations", COCONUT, "gpt2", AUGMENTED, DiscreteCoT(), _staged(25, AUGMENTED),
        differs=(FOUR_GPUS,),
    ),
    "coconut-gsm8k": Published(
        "Coconut on equations", COCONUT, "gpt2", AUGMENTED, Coconut(stages=3, per_step=2, mixing=0.0, share=0.12),
        _staged(25, AUGMENTED), before="discrete-gsm8k",
        differs=(
            "three more epochs of chains before the first latents, which the authors skip",
            "starts from the last weights of chains; the authors choose a checkpoint on validation", PADDED, FOUR_GPUS,
        ),
    ),
    "cot2-prosqa": Published(
        "CoT2 by CSFT on graphs", COT2, "gpt2", LIKE_PROSQA, CoT2(), CSFT, scratch=True, differs=RATE_GUESSED
    ),
    "cot2-mts-prosqa": Published(
        "CoT2 by GRPO with three tokens a step", COT2, "gpt2", LIKE_PROSQA,
        GRPO(samples=3, group=8, clip=0.1, ratio="paper"),
        replace(CSFT, steps=100 * 17_886 // 16, learning_rate=5e-6, micro_batch=4), before="cot2-prosqa", scratch=True,
        differs=RATE_GUESSED,
    ),
    "adapted-gsm8k": Published(
        "chains that end by themselves, as a start", "ours", data=GSM8K, method=DiscreteCoT(ends=True),
        training=ADAPTED, differs=("no paper has this run: it teaches the form of an answer",), **QWEN,
    ),
    "hrpo-gsm8k": Published(
        "HRPO on GSM8K", HRPO_BY, data=GSM8K,
        method=HRPO(group=4, r_min=0.99, temperature=0.5, soft_temperature=0.5, kl=0.005),
        training=Training(
            steps=7_473 * 4 // 32, batch_size=8, micro_batch=2, learning_rate=5e-6, weight_decay=0.1, warmup=0.1,
            log_every=10, save_every=100, validate=0, clip_norm=0.1,
        ),
        before="adapted-gsm8k",
        differs=(
            GIVES_FORMAT, "AdamW in float32, where the authors keep moments in 8 bits",
            "weights in float32, so that the reference holds what adapters learned before; the authors' are bfloat16",
        ),
        **QWEN,
    ),
    "latentseek-gsm8k": Published(
        "LatentSeek on GSM8K", LATENTSEEK, data=GSM8K, method=LatentSeek(rate=0.03, share=0.2, rounds=10, ends=True),
        training=replace(ADAPTED, steps=0), before="adapted-gsm8k",
        differs=(GIVES_FORMAT, "the verifier is the model's confidence; the paper asks the model six questions"),
        **QWEN,
    ),
    "chains-gsm8k": Published(
        "chain of thought in equations, eight epochs", COLAR, data=AUGMENTED, method=DiscreteCoT(ends=True),
        training=Training(
            steps=8 * 385_620 // 256, batch_size=256, micro_batch=64, learning_rate=1e-4, warmup=0.0,
            schedule="constant", weight_decay=0.01, log_every=50, save_every=1000, validate=0,
        ),
        differs=("the number of epochs is read from the name of a released checkpoint",), **LLAMA,
    ),
    "colar-gsm8k": Published(
        "CoLaR on equations", COLAR, data=AUGMENTED, method=CoLaR(latent_loss="soft-mse", alpha=1e-6),
        training=Training(
            steps=50 * 385_620 // 256, batch_size=256, micro_batch=64, learning_rate=1e-4, warmup=0.0,
            schedule="constant", weight_decay=0.01, log_every=50, save_every=1000, validate=0,
        ),
        before="chains-gsm8k",
        differs=("the last weights are taken; the authors keep the best of validation", "alpha rests on a report"),
        **LLAMA,
    ),
    "colar-rl-gsm8k": Published(
        "CoLaR's rewards", COLAR, data=AUGMENTED, method=CoLaRGRPO(group=8, clip=0.2),
        training=Training(
            steps=4000, batch_size=8, learning_rate=1e-6, weight_decay=0.01, warmup=0.0, schedule="constant",
            log_every=10, save_every=500, validate=0, clip_norm=1.0,
        ),
        before="colar-gsm8k",
        differs=("equations of GSM8K; the authors take MATH and another model", "4,000 updates: their curve's peak"),
        **LLAMA,
    ),
    "latentr3-titles": Published(
        "LatentR3 on titles", LATENTR3, "qwen2.5-1.5b", TITLES, LatentR3(latents=1),
        Training(
            steps=3 * 49_250 // 128, batch_size=128, micro_batch=4, learning_rate=3e-4, weight_decay=0.0,
            warmup=20 / 1154, log_every=10, save_every=200, validate=0,
        ),
        checkpointing=True,
        differs=(
            "weights in float32, since AdamW does not move them in bfloat16; the authors train in half precision",
            "the rate falls with a cosine; the authors' falls linearly, and they stop early",
            "every prefix of a user is a line of its own, which your file must hold",
        ),
    ),
    "latentr3-rl-titles": Published(
        "LatentR3's rewards", LATENTR3, "qwen2.5-1.5b", TITLES, LatentR3RL(group=8, sigma=1.5, absolute=True),
        Training(
            steps=49_250 // 32, batch_size=32, micro_batch=4, learning_rate=1e-4, weight_decay=0.0,
            warmup=200 / 1539, log_every=10, save_every=200, validate=0,
        ),
        before="latentr3-titles", checkpointing=True,
        differs=("one rate of the four that the authors try",),
    ),
}  # fmt: skip
"""Every recipe by name."""


def published(name: str) -> Published:
    """The recipe of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in PUBLISHED:
        every = [*PUBLISHED, *LENSED]
        close = difflib.get_close_matches(name.lower(), every, 1, 0.4)
        meant = f"did you mean {close[0]}? Recipes are" if close else "expected one of"
        raise ValueError(f"unknown recipe {name!r}: {meant} {', '.join(every)}")
    return PUBLISHED[name]


# ---------------------------------------------------------------------------------------------------------------------
# What a run takes


@dataclass(frozen=True)
class Plan:
    """What a recipe takes, from true shapes; sizes are bytes. Memory is that of one process that holds all."""

    parameters: int
    trained: int
    steps: int
    epochs: float
    tokens: int
    """Read in training at most, a rollout's as often as its group."""
    weights: int
    """Of the model and what the method adds, a reference with them where it must be a copy."""
    gradients: int
    moments: int
    """AdamW's two."""
    forward: int
    """What a supervised forward keeps for its backward."""
    cache: int
    """Keys and values of a rollout."""

    @property
    def memory(self) -> int:
        """The sum of all; a forward and a rollout do not coincide, so the larger of the two counts."""
        return self.weights + self.gradients + self.moments + max(self.forward, self.cache)


def plan(recipe: Published) -> Plan:
    """What a recipe takes; nothing is computed and no weight is read.

    Raises:
        ImportError: transformers is not installed, or peft for adapters.
        ValueError: a parameter that the method trains has no place in the model.
    """
    from tinylatent.models.huggingface_shapes import cache_bytes, kept_for_backward, on_meta

    backbone = on_meta(recipe.shape, getattr(torch, recipe.dtype), recipe.lora)
    model = recipe.method.model(backbone, torch.Generator())
    parameters = dict(model.named_parameters())
    names = trained(model, recipe.method.parameter_groups(0)) if recipe.training.steps else []
    bytes_of = {name: x.numel() * x.element_size() for name, x in parameters.items()}
    kept = kept_for_backward(backbone, recipe.rows, recipe.data.slots)
    layers = len(backbone.layers_to_share)
    blocks = kept.inputs + kept.blocks // layers if recipe.checkpointing else kept.blocks
    gradients = sum(bytes_of[name] for name in names)
    rewarded = isinstance(recipe.method, PolicyGradient) or not recipe.training.steps
    return Plan(
        parameters=sum(x.numel() for x in backbone.parameters()),
        trained=sum(parameters[name].numel() for name in names),
        steps=recipe.training.steps,
        epochs=recipe.epochs,
        tokens=recipe.training.steps * recipe.training.batch_size * recipe.group * recipe.data.slots,
        weights=sum(bytes_of.values()),
        gradients=gradients,
        moments=2 * gradients,
        forward=blocks + kept.logits if names else 0,
        cache=cache_bytes(backbone, recipe.rows, recipe.data.slots) if rewarded else 0,
    )


def small(recipe: Published, folder: Path, seed: int = 0) -> Experiment:
    """The same run with a model of two layers, a task of ours and a few steps; the model is saved under a folder.

    Raises:
        ImportError: transformers is not installed, or peft for adapters.
    """
    from tinylatent.models.huggingface_shapes import SHAPES
    from tinylatent.models.huggingface_small import save_small_model

    path = folder / "model"
    save_small_model(path, SHAPES[recipe.shape][0], chat=False, positions=1024)
    return _run(recipe, str(path), recipe.data.small, seed, is_small=True)


def _shrunk(recipe: Published) -> Published:
    """A recipe with few steps, in full precision and with small adapters; rates and their schedule are its own."""
    kept = ("learning_rate", "weight_decay", "warmup", "schedule", "clip_norm")
    training = replace(TINY, **{name: getattr(recipe.training, name) for name in kept})
    training = replace(training, steps=min(TINY_STEPS, recipe.training.steps))
    lora = None if recipe.lora is None else replace(recipe.lora, rank=4)
    return replace(recipe, training=training, lora=lora, dtype="float32")
