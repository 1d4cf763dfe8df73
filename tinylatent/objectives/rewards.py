"""Rewards: a verifier maps examples (and so the task's own rows) and what was written to rewards.

    verifier      says yes to                                          knows the answer
    truth         a right answer                                       yes: an upper bound of any search
    certificate   a chain that proves its answer (`Task.certified`)    no: it checks what is written against the prompt
    confidence    no yes or no: the mean probability of the tokens     no: the model's own judgement
    constant      nothing                                              no: a search that is never told anything

`verifier_named` makes them from words, "truth flipped 0.2" and "confidence 0.9" among them.

Letters: B rows, W tokens before the answer, A answer tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.core.precision import full
from tinylatent.core.seeds import Streams, mix
from tinylatent.engine.plan import ANSWER
from tinylatent.engine.trace import NO_TOKEN, Span, Trace
from tinylatent.objectives.examples import Examples

Verifier = Callable[[Examples, Trace], Float[Tensor, " B"]]
"""verify(examples, trace) -> reward_B. It sees the whole trace, chain and answer; several rollouts of an example are
consecutive rows."""


@runtime_checkable
class Proving(Protocol):
    """A speaker whose task can check what is written against the prompt."""

    def proved(self, problems: Any, chain_BW: Tensor, answer_BA: Tensor) -> np.ndarray:
        """Whether chains (-1 behind the last token) prove their answers (-1 for no token), (B,)."""
        ...


def told(values_B: Tensor, trace: Trace) -> Float[Tensor, " B"]:
    """Values of rollouts in the precision of the model that made them, float32 at least, and on its device."""
    return values_B.to(full(trace.hidden_BTD[:0]))


def truth(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
    """1 for a right answer, else 0: the speaker judges."""
    return examples.judge(trace.answer()).float()


def certificate(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
    """1 where the tokens before the answer prove it, else 0: the task checks them against the prompt.

    Raises:
        ValueError: the examples are of no task, or their task knows no proofs; steps before the answer have no tokens.
    """
    speaker = examples.speaker
    if not isinstance(speaker, Proving):
        raise ValueError(
            "the verifier certificate needs a task: make examples by Symbols(task, rows) or Text(task, rows, ..), or "
            "use truth"
        )
    if trace.rows != len(examples):
        examples = examples.repeated(trace.rows // len(examples))
    chain_BW, answer_BA = written(trace, delimiter=False), trace.answer()
    proved_B = speaker.proved(examples.problems(), chain_BW, answer_BA)
    return told(torch.from_numpy(proved_B), trace)


def confidence(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
    """The mean probability that the model gives to the tokens it wrote, whether chosen by it or given to it.

    It stands in for the verifier prompts of language models (LatentSeek's eq. 8), which symbolic models cannot read.

    Raises:
        ValueError: a step has no token.
    """
    ids_BT = torch.cat([_tokens(trace, span) for span in trace.thought_spans], 1)

    def chosen(logits_bTV: Tensor, rows: slice) -> Tensor:
        return F.softmax(logits_bTV, -1).gather(-1, ids_BT[rows][..., None]).squeeze(-1)

    p_BT = torch.cat(trace.over_logits(chosen)).detach()
    if trace.acted_BT is None:
        return p_BT.mean(1)
    return p_BT.masked_fill(~trace.acted_BT, 0.0).sum(1) / trace.acted_BT.sum(1)


def confident(examples: Examples, trace: Trace, level: float) -> Float[Tensor, " B"]:
    """1 where the confidence is at least `level`, else 0."""
    return (confidence(examples, trace) >= level).float()


def constant(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
    """0 whatever is written: a search with it never stops early and learns nothing from rewards."""
    return torch.zeros(trace.rows, device=trace.hidden_BTD.device)


def noisy(verify: Verifier, rate: float, seed: int = 0, fresh: bool = False) -> Verifier:
    """A verifier whose verdicts, 0 or 1, are flipped with a set probability.

    Args:
        verify: the verifier.
        rate: probability of a flip.
        seed: of the flips.
        fresh: whether every call flips anew; by default a question and an answer are flipped always or never. With it
            the verifier remembers how often it was asked each question, so that a run needs one of its own.

    Raises:
        ValueError: a rate outside 0 to 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"flipped {rate}: expected a probability from 0 to 1; try 0.2")
    times: dict[int, int] = {}

    def flipped(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
        verdict_B, name_B = verify(examples, trace), hashed(trace.prompt_BN.masked_fill(_padding(trace), NO_TOKEN))
        if fresh:
            for row, name in enumerate(name_B.tolist()):
                times[name] = times.get(name, 0) + 1
                name_B[row] = name_B[row] ^ mix(torch.tensor(times[name]))
        else:
            name_B = name_B ^ mix(hashed(trace.answer()))
        flip_B = Streams(seed, name_B).uniform(1)[:, 0] < rate
        return torch.where(flip_B.to(verdict_B.device), 1 - verdict_B, verdict_B)

    return flipped


def _padding(trace: Trace) -> Tensor:
    """True where a prompt is padded."""
    return ~trace.mask_BS[:, : trace.prompt_BN.shape[1]]


def hashed(ids_BT: Int[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """A number for every row of tokens, whatever padding of NO_TOKEN stands around them."""
    name_B = torch.zeros_like(ids_BT[:, 0])
    for id_B in ids_BT.T:
        name_B = torch.where(id_B == NO_TOKEN, name_B, mix(name_B ^ (id_B + 1)))
    return name_B


def written(trace: Trace, delimiter: bool = True, latents: bool = False) -> Int[Tensor, "B W"]:
    """The tokens before the answer, from the left without gaps; NO_TOKEN (-1) behind them.

    Args:
        trace: of the rollout.
        delimiter: whether the token that ends a chain is among them.
        latents: whether steps without a token are left out instead of refused.

    Raises:
        ValueError: a step before the answer has no token, or there is no answer.
    """
    until = trace.within(trace.span(ANSWER)).start
    spans = [span for span in trace.thought_spans if trace.within(span).stop <= until]
    if latents:
        spans = [span for span in spans if span.thought.token(span.action) is not None]
    if not spans:
        return trace.prompt_BN.new_zeros(trace.rows, 0)
    ids_BT = torch.cat([_tokens(trace, span) for span in spans], 1)
    there_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    if trace.live_BT is not None:
        there_BT = torch.cat([trace.live_BT[:, trace.within(span)] for span in spans], 1)
    if not delimiter:
        none = torch.zeros_like(ids_BT, dtype=torch.bool)
        stops = [none[:, trace.within(span)] if span.action.stop is None else span.action.stop for span in spans]
        there_BT = there_BT & ~torch.cat(stops, 1)
    if there_BT.all():
        return ids_BT
    order_BT = (~there_BT).long().argsort(stable=True, dim=1)
    found_BT = ids_BT.masked_fill(~there_BT, NO_TOKEN).gather(1, order_BT)
    return found_BT[:, : int(there_BT.sum(1).max())]


def _tokens(trace: Trace, span: Span) -> Int[Tensor, "B t"]:
    """The tokens of a span; ValueError if it has none."""
    ids_Bt = span.thought.token(span.action)
    if ids_Bt is None:
        raise ValueError(
            f"steps of {type(span.thought).__name__} have no tokens to judge: use the verifier truth, or a chain of "
            "tokens"
        )
    return ids_Bt


# ---------------------------------------------------------------------------------------------------------------------
# By name

VERIFIERS: dict[str, Verifier] = {
    "truth": truth,
    "certificate": certificate,
    "confidence": confidence,
    "constant": constant,
}
"""Verifiers by name, for runs that say which one judged them; see `verifier_named` for words behind a name."""
FLIPPED, FRESH = " flipped ", " afresh"


def _share(word: str) -> float:
    """A share from 0 to 1 that a verifier's name holds."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{word!r} is no share: expected a number from 0 to 1, such as 0.9")
    return value


def verifier_named(name: str) -> Verifier | None:
    """The verifier of this name; None, the method's own judge, for an empty name.

    "confidence 0.9" says yes from a confidence of 0.9 on. "truth flipped 0.2" flips a fifth of the verdicts, for a
    question and an answer always the same; "truth flipped 0.2 afresh" flips anew at every call.

    Raises:
        ValueError: there is none of this name.
    """
    if not name:
        return None
    base, flipped, rate = name.partition(FLIPPED)
    word, _, level = base.partition(" ")
    try:
        verify = VERIFIERS.get(base)
        if word == "confidence" and level:
            verify = partial(confident, level=_share(level))
        if verify is not None and flipped:
            if base == "confidence":
                raise ValueError("only yes or no can be flipped; give a level, as in 'confidence 0.9 flipped 0.2'")
            return noisy(verify, _share(rate.removesuffix(FRESH)), fresh=rate.endswith(FRESH))
    except ValueError as error:
        raise ValueError(f"verifier {name!r}: {error}") from None
    if verify is None:
        raise ValueError(
            f"unknown verifier {name!r}: expected one of {', '.join(VERIFIERS)}, a level of confidence such as "
            "'confidence 0.9', or one that errs, such as 'truth flipped 0.2'"
        )
    return verify
