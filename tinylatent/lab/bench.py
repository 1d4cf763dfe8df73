"""Bench: how fast this machine trains and evaluates CoT2 on MNNS, beside its own matrix products and a bare loop, and
how fast GRPO rolls out and learns, and LatentSeek searches.

The bare loop is the same mathematics written out by hand with nothing around it: no plans, no thoughts, no batches cut
from a data set, no schedule. Everything is timed in short turns within a round, ratios are taken within a round and
medians over rounds, because small machines are noisy. One thread throughout.

Letters: B rows, N prompt, T steps, V vocabulary.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from tinylatent_tasks import MultiHop
from torch import Tensor

from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.lab.tasks import TASKS
from tinylatent.methods import GRPO, CoT2, DiscreteCoT, LatentSeek
from tinylatent.models.blocks import attend
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.rewards import truth
from tinylatent.training.config import Training
from tinylatent.training.loop import batches, train_step
from tinylatent.training.optimizer import make_optimizer

SIDE = 768  # of the square matrices whose product is the yardstick
EVALUATED = 1024
EXPERIMENT = Experiment(method=CoT2())
REWARDED = Experiment(
    method=GRPO(samples=3), model=ModelConfig(layers=1), training=Training(learning_rate=1e-3, weight_decay=0.0)
)
PROMPTS = 64
QUESTIONS = 256
SEARCHED = Experiment(
    MultiHop(hops=6, least=2, bound=True),
    LatentSeek(share=0.5, rate=0.3),
    training=Training(steps=0, num_train=5000),
    start=Experiment(
        MultiHop(hops=6, least=2, bound=True), DiscreteCoT(), training=Training(steps=200, num_train=5000)
    ),
)
WARM = 450  # the step whose learning rate is the peak
Turn = Callable[[], Any]


def measure(rounds: int) -> dict[str, float]:
    """Medians over rounds: problems per second, GFLOP/s, and ratios.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: expected at least 1; try 20")
    examples = EXPERIMENT.speaker("train").examples()
    left, right = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    turns: dict[str, tuple[Turn, int]] = {
        "matmul": (lambda: torch.mm(left, right), 8),
        "train_b16": (ours(examples, 16), 24),
        "bare_b16": (bare(examples, 16), 24),
        "train_b256": (ours(examples, 256), 6),
        "bare_b256": (bare(examples, 256), 6),
        "eval": (evaluation(examples), 2),
        "rollouts": (rolling(examples), 6),
        "rewarded": (ours(examples, PROMPTS, REWARDED), 3),
    }
    assert isinstance(REWARDED.method, GRPO)
    rollouts = PROMPTS * REWARDED.method.group
    work = {"train_b16": 16, "bare_b16": 16, "train_b256": 256, "bare_b256": 256, "eval": EVALUATED}
    work |= {"rollouts": rollouts, "rewarded": rollouts}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        # Whoever follows the matrix products finds cold caches and a slower clock: each turn starts with one that does
        # not count, and the order is reversed every other round.
        for name, (turn, times) in list(turns.items())[:: -1 if number % 2 else 1]:
            turn()
            begin = time.perf_counter()
            for _ in range(times):
                turn()
            seconds[name].append((time.perf_counter() - begin) / times)
    rates = {name: [work[name] / s for s in seconds[name]] for name in work}
    gflops = [2 * SIDE**3 / s / 1e9 for s in seconds["matmul"]]
    per_problem = _training_flops(examples) / 1e9
    share = [rate * per_problem / peak for rate, peak in zip(rates["train_b256"], gflops, strict=True)]
    return {
        "train_b16_per_s": statistics.median(rates["train_b16"]),
        "train_b256_per_s": statistics.median(rates["train_b256"]),
        "eval_per_s": statistics.median(rates["eval"]),
        "matmul_gflops": statistics.median(gflops),
        "train_share": statistics.median(share),
        "bare_loop_per_s": statistics.median(rates["bare_b256"]),
        "bare_loop_b16_per_s": statistics.median(rates["bare_b16"]),
        "train_over_bare_b16": _median_ratio(rates["train_b16"], rates["bare_b16"]),
        "train_over_bare_b256": _median_ratio(rates["train_b256"], rates["bare_b256"]),
        "eval_per_s_at_220_gflops": 220 * _median_ratio(rates["eval"], gflops),
        "rollouts_per_s": statistics.median(rates["rollouts"]),
        "rollouts_trained_per_s": statistics.median(rates["rewarded"]),
        "rollouts_per_s_at_220_gflops": 220 * _median_ratio(rates["rollouts"], gflops),
        "rollouts_trained_per_s_at_220_gflops": 220 * _median_ratio(rates["rewarded"], gflops),
        **searching(),
        **generation(),
    }


def searching(turns: int = 5) -> dict[str, float]:
    """LatentSeek by the truth, on a model trained for a moment, in float32 and in float64: questions a second at once
    (median of turns) and one at a time, their ratio, and how many of the answers differ."""
    assert SEARCHED.start is not None
    model, method = train(SEARCHED.start), SEARCHED.method
    examples = SEARCHED.speaker("validation").examples().rows(slice(0, QUESTIONS))
    figures: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        typed, name = model.to(dtype), str(dtype).removeprefix("torch.")
        together = method.solve(typed, examples, verify=truth).answer_BA  # this turn does not count
        seconds = []
        for _ in range(turns):
            begin = time.perf_counter()
            together = method.solve(typed, examples, verify=truth).answer_BA
            seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        alone = torch.cat([method.solve(typed, part, verify=truth).answer_BA for part in examples.parts(1)])
        rates = {"": QUESTIONS / statistics.median(seconds), "_alone": QUESTIONS / (time.perf_counter() - begin)}
        figures |= {f"searches{how}_per_s_{name}": rate for how, rate in rates.items()}
        figures[f"searches_over_alone_{name}"] = rates[""] / rates["_alone"]
        figures[f"searches_differ_{name}"] = float((together != alone).any(1).sum())
    return figures


def generation() -> dict[str, float]:
    """Seconds and peak gigabytes of fresh processes that make 100,000 problems and frontiers: MNNS (m = 6, 1..30), and
    every task at its default size."""
    figures: dict[str, float] = {}
    for name, settings in GENERATED.items():
        program = GENERATION.format(*settings)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds, kilobytes = done.stdout.split()
        figures |= {f"{name}_100k_s": float(seconds), f"{name}_100k_gb": float(kilobytes) / 2**20}
    return figures


GENERATED = {"frontiers": ("mnns", "digits=6, high=30"), **{name: (name, "") for name in TASKS.loaded()}}
GENERATION = """
import resource, time
from tinylatent.lab.tasks import TASKS
task = TASKS["{}"]({})
begin = time.perf_counter()
batch = task.batch(task.problems(100_000, seed=0))
assert len(batch.frontier_BTV) == 100_000
print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _training_flops(examples: Examples) -> int:
    """Three forwards and readouts of every token of the chain; embedding mixtures is not counted."""
    backbone, tokens = EXPERIMENT.fresh().backbone, examples.chain_BT.shape[1]
    table = backbone.table
    return 3 * (backbone.flops(examples.slots) + 2 * len(table) * table.width * tokens)


def ours(examples: Examples, batch: int, experiment: Experiment = EXPERIMENT) -> Turn:
    """One step of the laboratory's own training loop."""
    experiment = replace(experiment, training=replace(experiment.training, batch_size=batch))
    device = examples.prompt_BN.device
    model, recipe = experiment.fresh(device), experiment.training
    optimizer = make_optimizer(model, recipe)
    served = batches(examples, batch, 0, experiment.seeds)
    state = TrainState(WARM, recipe.steps, 0)

    def turn() -> Tensor:
        return train_step(model, experiment.method, optimizer, recipe, next(served), state)[-1].value

    return turn


def evaluation(examples: Examples) -> Turn:
    """Self-fed, cached inference and judging of EVALUATED problems."""
    model, some = EXPERIMENT.fresh(), examples.rows(slice(0, EVALUATED))

    def turn() -> None:
        some.judge(EXPERIMENT.method.solve(model, some).answer_BA).sum().item()

    return turn


def grouped_rollouts(groups: tuple[int, ...], rounds: int, device: torch.device) -> dict[str, float]:
    """Rollouts a second at each group size, alone and with training: medians over rounds.

    Raises:
        ValueError: a group size or a number of rounds that is none.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds: expected at least 1; try 20")
    examples, figures = EXPERIMENT.speaker("train").examples(device), {}
    for group in groups:
        experiment = replace(REWARDED, method=GRPO(samples=3, group=group))
        turns = {"": rolling(examples, experiment), "_trained": ours(examples, PROMPTS, experiment)}
        for name, turn in turns.items():
            turn()
            seconds = []
            for _ in range(rounds):
                begin = time.perf_counter()
                turn()
                if device.type != "cpu":
                    torch.accelerator.synchronize(device)
                seconds.append(time.perf_counter() - begin)
            figures[f"rollouts{name}_per_s_g{group}"] = PROMPTS * group / statistics.median(seconds)
    return figures


def rolling(examples: Examples, experiment: Experiment = REWARDED) -> Turn:
    """Rollouts of PROMPTS problems in groups, latents sampled, with their rewards: no training."""
    device = examples.prompt_BN.device
    method, model, some = experiment.method, experiment.fresh(device), examples.rows(slice(0, PROMPTS))
    assert isinstance(method, GRPO)
    streams = TrainState(0, 1, 0).streams(PROMPTS * method.group, device)

    def turn() -> None:
        solution = method.solve(model, some, streams, temperature=method.temperature, group=method.group)
        truth(some, solution.trace).mean().item()

    return turn


# ---------------------------------------------------------------------------------------------------------------------
# The bare loop


@dataclass(frozen=True)
class Bare:
    """Two lists of tensors and one function: the model without classes."""

    tokens: Tensor
    places: Tensor
    layers: list[list[Tensor]]
    gain: Tensor
    heads: int

    def logits_BTV(self, prompt_BN: Tensor, target_BTV: Tensor) -> Tensor:
        """Teacher-forced logits of all steps in one forward."""
        x = torch.cat([F.embedding(prompt_BN, self.tokens), target_BTV[:, :-1] @ self.tokens], 1)
        B, S, D = x.shape
        x = x + self.places[:S]
        for gain_attn, split, merge, gain_mlp, up, down in self.layers:
            qkv = F.linear(F.layer_norm(x, (D,), gain_attn), split).split(D, -1)
            q, k, v = (part.view(B, S, self.heads, -1).transpose(1, 2) for part in qkv)
            x = x + F.linear(attend(q, k, v, None).transpose(1, 2).reshape(B, S, D), merge)
            x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, (D,), gain_mlp), up)), down)
        return F.linear(F.layer_norm(x[:, prompt_BN.shape[1] - 1 :], (D,), self.gain), self.tokens)


def bare_model(experiment: Experiment) -> Bare:
    """The initial weights of an experiment, without the module they come from."""
    weights: dict[str, Any] = dict(experiment.fresh().backbone.named_parameters())
    names = ("attn_norm.weight", "attention.qkv_proj", "attention.out_proj", "mlp_norm.weight", "mlp.up_proj")
    layers = [
        [weights[f"blocks.{n}.{name}"] for name in (*names, "mlp.down_proj")] for n in range(experiment.model.layers)
    ]
    return Bare(weights["embedding"], weights["pos_emb"], layers, weights["norm.weight"], experiment.model.heads)


def bare(examples: Examples, batch: int) -> Turn:
    """One step of a training loop written by hand, on one fixed batch."""
    model = bare_model(EXPERIMENT)
    weights = [model.tokens, model.places, model.gain, *(weight for layer in model.layers for weight in layer)]
    optimizer = torch.optim.AdamW(weights, lr=5e-3, weight_decay=0.05, fused=True)
    some = examples.rows(slice(0, batch))
    prompt_BN, target_BTV = some.prompt_BN, some.frontier.dense()

    def turn() -> Tensor:
        logits = model.logits_BTV(prompt_BN, target_BTV)
        loss = F.cross_entropy(logits.flatten(0, 1), target_BTV.flatten(0, 1), reduction="sum") / batch
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return turn


# ---------------------------------------------------------------------------------------------------------------------
# Where the rest goes

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "attention kernel": ("_flash_attention", "_scaled_dot_product", "softmax", "_softmax", "_safe_softmax"),
    "gelu": ("gelu",),
    "layer norm": ("layer_norm",),
    "optimizer": ("_fused_adam", "zero_"),
    "embedding, gather": ("embedding", "index", "gather"),
    "copies": ("copy_", "cat", "clone", "contiguous"),
    "loss": ("log_softmax", "_log_softmax", "nll_loss"),
}


def profile(batch: int = 256, steps: int = 30) -> str:
    """Share of each kind of kernel in a training step's time, as text; what no kernel accounts for is Python."""
    examples = EXPERIMENT.speaker("train").examples()
    turn = ours(examples, batch)
    turn()
    begin = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        for _ in range(steps):
            turn()
    wall = (time.perf_counter() - begin) * 1e6
    spent = dict.fromkeys((*KINDS, "elementwise and other"), 0.0)
    for event in record.key_averages():
        if event.key.startswith("aten::"):
            spent[_kind(event.key.removeprefix("aten::"))] += event.self_cpu_time_total
    spent["autograd, Python, profiler"] = wall - sum(spent.values())
    lines = [f"  {name:26s} {100 * value / wall:5.1f} %" for name, value in sorted(spent.items(), key=lambda x: -x[1])]
    return "\n".join([f"a training step at batch {batch}, {wall / steps / 1000:.2f} ms under the profiler:", *lines])


def _kind(kernel: str) -> str:
    for kind, starts in KINDS.items():
        if kernel in starts or any(len(start) > 4 and kernel.startswith(start) for start in starts):
            return kind
    return "elementwise and other"
