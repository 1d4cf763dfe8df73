"""Rewards: a verifier maps examples (and so the task's own rows) and what was written to rewards.

Letters: B rows.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from tinylatent.engine.trace import Trace
from tinylatent.objectives.examples import Examples

Verifier = Callable[[Examples, Trace], Float[Tensor, " B"]]
"""verify(examples, trace) -> reward_B. It sees the whole trace, chain and answer; several rollouts of an example are
consecutive rows."""


def truth(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
    """1 for a right answer, else 0: the speaker judges."""
    return examples.judge(trace.answer()).float()


VERIFIERS: dict[str, Verifier] = {"truth": truth}
"""Verifiers by name, for runs that say which one judged them."""


def verifier_named(name: str) -> Verifier | None:
    """The verifier of this name; None, the method's own judge, for an empty name.

    Raises:
        ValueError: there is none of this name.
    """
    if name and name not in VERIFIERS:
        raise ValueError(f"unknown verifier {name!r}: expected one of {', '.join(VERIFIERS)}")
    return VERIFIERS[name] if name else None
