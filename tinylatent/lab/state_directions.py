"""State directions: does training of transitions by rewards follow the slope of its expected reward, in small cases?

Where the slope is known. Single states: two of them before each of two steps, so that all four sequences can be tried.
Mixtures of two states before the only step of a chain: a fine grid of points. Either way the expected reward is a sum
over what can be drawn, of its probability under the exploring policy times the reward of what the frozen model says
behind it, and the slope in the transition network's weights is taken by central differences. The update is that of the
method as its arm has it, advantages, bonus and all, for many groups. Their cosine is 1 where it climbs as steeply as
it can. Models have width 4, one layer, large random weights and float64; the reward is whether the answer's token is
even, since right answers of such models hardly vary. Where the tokens are sampled, nothing is told.

Letters: Z things that can be drawn, K = 2 states, S steps.
"""

import itertools
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from tinylatent_tasks import MNNS, Task
from torch import Tensor

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.force import force
from tinylatent.engine.plan import Plan, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.trace import Span, Trace
from tinylatent.lab.directions import descent, differences
from tinylatent.lab.experiment import Experiment
from tinylatent.methods.ctrls import STATE, states_of, transition_of
from tinylatent.methods.ctrls_rl import CTRLSRL
from tinylatent.methods.ctrls_thought import Policy
from tinylatent.models.decoder import ModelConfig
from tinylatent.objectives.examples import Examples
from tinylatent.objectives.method import Model, TrainState
from tinylatent.objectives.speakers import Symbols

STEPS: dict[str, Task] = {"hard": MNNS(3, 1, 3), "soft": MNNS(2, 1, 3)}
"""A task of two steps before the answer for single states, of one for mixtures; by what is fed."""
CONFIG, K = ModelConfig(4, 1, 1), 2
SEEDS = {"hard": (2, 6, 10, 11, 14), "soft": (3, 4, 5, 8, 9)}
"""Seeds of the cases: the first ones in which not everything that can be drawn is rewarded alike."""
GROUPS = 500
"""Groups of rollouts of an update."""
LARGE, LOUD = 10.0, 100.0
"""What fresh weights, and embeddings of states, are multiplied by, so that states matter."""
CELL, REACH = 0.1, 15.0
"""Width of a cell of the grid in the logit of a point, and its ends."""


def even(examples: Examples, trace: Trace) -> Float[Tensor, " B"]:
    """1 for answers whose token is even."""
    return 1.0 - (trace.answer()[:, -1] % 2).float()


STATE_OF = TrainState(3, 10, 5, verify=even)


@lru_cache
def cosines(method: CTRLSRL) -> tuple[float, ...] | None:
    """The cosine of a method's update with the slope of its expected reward, in every case; None for sampled tokens."""
    if method.temperature or method.states == "prefix":
        return None
    found = []
    for seed in SEEDS[method.feed]:
        update = update_of(_small(method), *small(method, seed))
        found.append(round(torch.cosine_similarity(update, slope_of(policy_of(method), seed), dim=0).item(), 3))
    return tuple(found)


def policy_of(method: CTRLSRL) -> CTRLSRL:
    """The policy alone: what is fed and how it explores. States of a Dirichlet's draws are a categorical's."""
    transition: Policy = "categorical" if method.feed == "hard" else "dirichlet"
    return CTRLSRL(transition=transition, feed=method.feed, epsilon=method.epsilon, floor=method.floor, count=K)


@lru_cache
def slope_of(policy: CTRLSRL, seed: int) -> Float[Tensor, " parameters"]:
    """The slope of a case, the same for all methods that share a policy."""
    return slope_by_differences(policy, *small(policy, seed))


def update_of(method: CTRLSRL, model: Model, examples: Examples) -> Float[Tensor, " parameters"]:
    """The step that a method asks of the transition network: minus its loss's gradient, over many groups."""
    many = examples.repeated(GROUPS)
    return descent(method.loss(model, method.collect(model, many, STATE_OF), STATE_OF).value, transition_of(model))


@torch.no_grad()
def slope_by_differences(policy: CTRLSRL, model: Model, examples: Examples) -> Float[Tensor, " parameters"]:
    """Central differences of the expected reward along every weight of the transition network."""
    plan, many, reward_Z = drawn(policy, model, examples)
    return differences(transition_of(model), lambda: (chances(policy, model, plan, many) * reward_Z).sum())


@torch.no_grad()
def drawn(policy: CTRLSRL, model: Model, examples: Examples) -> tuple[Plan, Examples, Float[Tensor, " Z"]]:
    """All that can be drawn for a problem, as a plan with everything given, a row of the problem each, and rewards."""
    if policy.feed == "hard":
        z_ZS = torch.tensor([*itertools.product(range(K), repeat=examples.max_steps)])
        actions = iter([Action({"z": z_Z1}) for z_Z1 in z_ZS[..., None].unbind(1)])
        rows = len(z_ZS)
    else:
        logit_Z = torch.arange(-REACH, REACH, CELL, dtype=torch.float64)
        log_a_Z2 = F.logsigmoid(torch.stack([logit_Z, -logit_Z], 1))
        actions, rows = iter([Action({"log_a": log_a_Z2[:, None]})]), len(log_a_Z2)
    many, thought = examples.repeated(rows), policy.explorer(model)
    told = tuple(
        replace(part, given=next(actions)) if isinstance(part, Segment) and part.label == STATE else part
        for part in policy.plan(model, many)
    )
    said = rollout(model.backbone, told, many.prompt_BN, many.prompt_mask_BN, streams=Streams(0, rows))
    plan = tuple(
        Segment(thought if span.name == STATE else span.thought, span.stop - span.start, span.action, span.name)
        for span in said.thought_spans
    )
    return plan, many, even(many, said).double()


def chances(policy: CTRLSRL, model: Model, plan: Plan, many: Examples) -> Float[Tensor, " Z"]:
    """The probability of everything that can be drawn; of a point, that of its cell."""
    trace = force(model.backbone, plan, many.prompt_BN, many.prompt_mask_BN)
    states_BT = torch.stack([trace.log_prob_BT[:, trace.within(span).start] for span in _states(trace)], 1)
    cell = CELL if policy.feed == "soft" else 1.0
    return states_BT.sum(1).exp() * cell


def _states(trace: Trace) -> list[Span]:
    """The spans of states."""
    return [span for span in trace.thought_spans if span.name == STATE]


def _small(method: CTRLSRL) -> CTRLSRL:
    """The method with two states."""
    return replace(method, count=K, states="fitted", network=None)


def small(method: CTRLSRL, seed: int) -> tuple[Model, Examples]:
    """The model of a seed, with large weights and loud states, and its problem."""
    own = _small(method)
    run = Experiment(STEPS[method.feed], own, CONFIG, seeds=Seeds.all(seed))
    model = run.fresh().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.std(correction=0) > 0 and not name.startswith("parts"):
                parameter.mul_(LARGE)
        states_of(model).embedding_KD.mul_(LOUD)
    examples = own.supervise(Symbols(run.task, run.task.problems(1, seed=seed)))
    own.enter(model, 0, examples, STATE_OF)
    return model, examples
