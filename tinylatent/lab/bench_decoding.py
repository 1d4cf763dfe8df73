"""Decoding: how fast a model of transformers rolls out latents, beside its own `generate` and beside a compiled step.

Every way takes the same number of steps after the same prompts, in float32 or in half precision, greedily; none may
stop early. Ways take turns within a round, ratios are taken within a round, medians over rounds.

Letters: B rows, N prompt.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Thought
from tinylatent.engine.thoughts import HIDDEN, Mixture, MultiToken, Token

PROMPT, STEPS = 48, 24
THOUGHTS: Mapping[str, Thought] = {"token": Token(), "mixture": Mixture(), "multi": MultiToken(3), "hidden": HIDDEN}
"""What a step feeds back, by name."""
GENERATE, FROZEN = "generate", "frozen_token"


def decoding(backbone: Any, rows: Sequence[int], rounds: int, frozen: bool = False) -> dict[str, float]:
    """Milliseconds a step of every way, and how often as long as `generate` it takes.

    Args:
        backbone: a HFBackbone.
        rows: numbers of rows to decode at once.
        rounds: in which ways take turns.
        frozen: whether the compiled step is timed too, and how many times faster it is than a plain one.

    Raises:
        ValueError: fewer than one round, or rows that are none.
    """
    if rounds < 1 or not rows or min(rows) < 1:
        raise ValueError(f"{rounds} rounds with {list(rows)} rows: expected at least 1 of both; try 5 rounds, 1 8 rows")
    figures: dict[str, float] = {}
    for count in rows:
        turns = _ways(backbone, count, frozen)
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(-1, rounds):  # the first does not count: it compiles and warms
            for name, turn in list(turns.items())[:: -1 if number % 2 else 1]:
                begin = time.perf_counter()
                turn()
                if backbone.table.weight.device.type != "cpu":
                    torch.accelerator.synchronize()
                if number >= 0:
                    seconds[name].append(time.perf_counter() - begin)
        for name, found in seconds.items():
            figures[f"{name}_ms_b{count}"] = 1000 * statistics.median(found) / STEPS
            if name != GENERATE:
                figures[f"{name}_over_generate_b{count}"] = _median_ratio(found, seconds[GENERATE])
        if frozen:
            figures[f"token_over_frozen_b{count}"] = _median_ratio(seconds["token"], seconds[FROZEN])
    return figures


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _ways(backbone: Any, count: int, frozen: bool) -> dict[str, Callable[[], Any]]:
    """Every way to decode STEPS steps after the same prompts."""
    from tinylatent.models.huggingface_frozen import Frozen

    device = backbone.table.weight.device
    generator = torch.Generator().manual_seed(0)
    prompt_BN = torch.randint(len(backbone.table), (count, PROMPT), generator=generator).to(device)
    streams = Streams(0, torch.arange(count, device=device))

    def rolled(thought: Thought, through: Any) -> Callable[[], Any]:
        return lambda: rollout(through, (Segment(thought, STEPS),), prompt_BN, streams=streams)

    found = {GENERATE: lambda: _generated(backbone.model, prompt_BN)}
    found |= {name: rolled(thought, backbone) for name, thought in THOUGHTS.items()}
    if frozen:
        found[FROZEN] = rolled(THOUGHTS["token"], Frozen(backbone, count, PROMPT + STEPS))
    return found


@torch.no_grad()
def _generated(model: Any, prompt_BN: Tensor) -> Tensor:
    """As many tokens by transformers itself."""
    found: Tensor = model.generate(
        prompt_BN,
        attention_mask=torch.ones_like(prompt_BN),
        do_sample=False,
        min_new_tokens=STEPS,
        max_new_tokens=STEPS,
        pad_token_id=0,
    )
    return found
