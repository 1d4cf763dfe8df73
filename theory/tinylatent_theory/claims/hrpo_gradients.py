"""Claims about HRPO's gradients (Yue et al. 2025, arXiv 2505.18454): its detached soft token, and how it is scored.

The soft token h is stored when it is made, so that no gradient flows through it; and the authors' code draws tokens at
another temperature than it scores them at. All paths of small models are enumerated, with the method's own thought.

Letters: V vocabulary, D width, T latent steps, n paths; u the gate a at r = 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinylatent.core.seeds import derive
from tinylatent.engine.force import force
from tinylatent.engine.plan import Segment
from tinylatent.engine.thought import Action, State
from tinylatent.lab.findings import FAILS, OPEN, Finding
from tinylatent.methods.hrpo import Gate, Gated, Sampled, hidden_ratio, initial_openness
from tinylatent.models.backbone import Table
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, concluded, judged
from tinylatent_theory.predictions.enumeration import Paths, World, objective, walked


def hybrid(world: World, u: float, generator: torch.Generator, graph: bool = False) -> Gated:
    """The method's thought in a world, with gates that look at tokens closely and all coordinates of Lambda alike."""
    gate, D = Gate(world.width, 0.5, 0.5, torch.Generator()).double(), world.width
    with torch.no_grad():
        gate.weight.copy_(torch.randn(2 * D, D, generator=generator, dtype=torch.float64) / 2)
        gate.bias.zero_()
        gate.openness_D.copy_(initial_openness(torch.full((D,), u, dtype=torch.float64)))
    return Gated(gate, 1.0, soft_temperature=1.0, graph=graph)


def whole(world: World, thought: Gated) -> Paths:
    """Every choice of tokens of a thought that computes its soft tokens from the logits."""
    ids_nT = torch.cartesian_prod(*[torch.arange(world.vocabulary)] * world.steps).view(-1, world.steps)
    return Paths(thought, thought.given(ids_nT), torch.zeros(len(ids_nT), dtype=torch.float64))


@torch.no_grad()
def stored(world: World, paths: Paths, thought: Gated) -> list[Paths]:
    """For every prompt the same paths with the soft tokens they have there, as constants for another thought."""
    found, n = [], len(paths.log_weight)
    for prompt in range(world.vocabulary):
        run = force(world.model, (Segment(paths.thought, world.steps, paths.action),), torch.full((n, 1), prompt))
        soft_nTD = thought.soft(State(run.hidden_BTD, run.logits_BTV, world.model.table))
        found.append(Paths(thought, Action({**paths.action.values, "soft": soft_nTD}), paths.log_weight))
    return found


def of_prompts(world: World, paths: list[Paths]) -> Float[Tensor, ""]:
    """J from the paths of each prompt."""
    total = torch.zeros((), dtype=torch.float64)
    for prompt, right in enumerate(world.answers):
        latent, answer = walked(world, paths[prompt], prompt)
        total = total + (latent + answer[:, right]).exp().sum()
    return total / len(world.answers)


@torch.no_grad()
def slope(world: World, paths: Paths, weights: list[nn.Parameter], direction: Tensor) -> float:
    """dJ along a direction of the weights, from values of J alone: central differences of order eight."""
    start, step, total = nn.utils.parameters_to_vector(weights), 0.002, 0.0
    for far, share in ((1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280)):
        for side in (1, -1):
            nn.utils.vector_to_parameters(start + side * far * step * direction, weights)
            total += side * share / step * float(objective(world, paths))
    nn.utils.vector_to_parameters(start, weights)
    return total


def weights_of(world: World, thought: Gated) -> list[nn.Parameter]:
    """The weights that learn: the model's without its embeddings, and the gate's."""
    of_model = [weight for name, weight in world.model.named_parameters() if name != "embedding"]
    return [*of_model, *thought.gate.parameters()]


def flat(value: Tensor, weights: list[nn.Parameter]) -> Tensor:
    """The gradient of a value as one vector."""
    return nn.utils.parameters_to_vector(torch.autograd.grad(value, weights, retain_graph=True))


def bias(world: World, u: float, generator: torch.Generator) -> tuple[list[float], dict[str, float]]:
    """Errors of the policy gradient along a random direction, over its norm, h kept and detached; how the two differ.

    d chance = chance x d log chance wherever the graph is cut: the gradient of the objective, a sum over paths, is the
    mean of the policy gradient.
    """
    kept_thought = hybrid(world, u, generator, graph=True)
    cut_thought = Gated(kept_thought.gate, 1.0, soft_temperature=1.0)
    paths, weights = whole(world, kept_thought), weights_of(world, kept_thought)
    kept = flat(objective(world, paths), weights)
    cut = flat(of_prompts(world, stored(world, paths, cut_thought)), weights)
    along = F.normalize(torch.randn(len(kept), generator=generator, dtype=torch.float64), dim=0)
    truth = slope(world, paths, weights, along)
    off = [abs(float(gradient @ along) - truth) / float(kept.norm()) for gradient in (kept, cut)]
    log_a, _ = kept_thought.gate(world.model.embedding)
    return off, {
        "hidden ratio": float(hidden_ratio(log_a).mean().detach()),
        "cosine": float(F.cosine_similarity(kept, cut, dim=0)),
        "relative error": float((cut - kept).norm() / kept.norm()),
    }


def one_step() -> str:
    """The smallest model: two tokens and one latent step."""
    figures = bias(World(2, 1), 0.8, torch.Generator().manual_seed(0))[1]
    return "two tokens, one latent step, u = .8: " + ", ".join(f"{name} {x:.4f}" for name, x in figures.items())


@claim(
    source="[R]; HRPO's code (the soft token is stored as a constant)",
    origin="here",
    statement="Detaching the soft token leaves the policy gradient unbiased.",
    conditions="only in the limit a = 1; random models of three tokens, two latent steps, embeddings frozen",
    how="exhaustive",
    recorded=FAILS,
    counterexample=one_step,
)
def hrpo_detached_latent_bias(trial: Trial) -> Finding:
    """All paths of small hybrid models: the mean gradient against difference quotients of J, h kept and h detached."""
    worst, rows = [0.0, 0.0], []
    for u in (1 - 1e-6, 0.999, 0.97, 0.8, 0.3, 0.01):
        seeds = [derive(trial.seed, "hybrid", case) for case in range(trial.size(2, 30))]
        biases = [bias(World(3, 2, seed), u, torch.Generator().manual_seed(seed)) for seed in seeds]
        worst = [max(column) for column in zip(worst, *(off for off, _ in biases), strict=True)]
        rows.append({name: sum(parts[name] for _, parts in biases) / len(biases) for name in biases[0][1]})
    table = "; ".join("/".join(f"{value:.4f}" for value in row.values()) for row in rows)
    curves = {name: [row[name] for row in rows] for name in rows[0]}
    evidence = (
        f"back-propagation through h is the slope of J to {worst[0]:.0e} of the gradient's norm, h detached is off by "
        f"up to {worst[1]:.1g}; mean {'/'.join(curves)}: {table}"
    )
    return judged(worst[1] < EXACT, evidence, **curves) if worst[0] < EXACT else concluded(OPEN, evidence, **curves)


TEMPERATURE = 0.5
"""At which the authors' code samples, whatever it scores at."""


def logit_bias(logits_V: Float[Tensor, " V"], top_k: int | None = None) -> Float[Tensor, " V"]:
    """Mean score in every logit of a token drawn at .5 and scored at 1, from all tokens: the difference of the two."""
    V = len(logits_V)
    drawn, scored = Sampled(TEMPERATURE, top_k=top_k), Sampled(TEMPERATURE, top_k=top_k, score_temperature=1.0)
    own_VV = logits_V.expand(V, V).clone().requires_grad_()
    state, action = State(torch.empty(V, 0), own_VV, Table(torch.empty(V, 0))), drawn.given(torch.arange(V))
    score_VV = torch.autograd.grad(scored.log_prob(state, action).sum(), own_VV)[0]
    kept_V = torch.ones(V, dtype=torch.bool) if top_k is None else logits_V >= logits_V.topk(top_k).values[-1]
    return drawn.log_prob(state, action).detach().exp().masked_fill(~kept_V, 0.0) @ score_VV


def mean_scores(world: World, u: float, generator: torch.Generator) -> tuple[float, float, float]:
    """Norm of the mean score of all latent steps over its root mean square, scored as drawn and at 1; and a cosine.

    The cosine is that between the mean policy gradients of the two, rewards less their mean.
    """
    own = hybrid(world, u, generator)
    own.temperature = TEMPERATURE
    official = Gated(own.gate, TEMPERATURE, score_temperature=1.0, soft_temperature=1.0)
    graph = Gated(own.gate, TEMPERATURE, soft_temperature=1.0, graph=True)
    paths, weights, means, gradients = whole(world, graph), weights_of(world, own), [], []
    drawn = stored(world, paths, own)
    mean_reward = of_prompts(world, drawn).detach()
    for thought in (own, official):
        score = value = square = torch.zeros((), dtype=torch.float64)
        for prompt, right in enumerate(world.answers):
            chance_n = walked(world, drawn[prompt], prompt)[0].exp().detach()
            latent, answer = walked(world, Paths(thought, drawn[prompt].action, paths.log_weight), prompt)
            score = score + (chance_n * latent).sum()
            each_nV = chance_n[:, None] * answer.exp().detach()
            reward_V = F.one_hot(torch.tensor(right), world.vocabulary) - mean_reward
            value = value + (each_nV * reward_V * (latent[:, None] + answer)).sum()
            for chance, log_p in zip(chance_n, latent, strict=True):
                parts = torch.autograd.grad(log_p, weights, retain_graph=True)
                square = square + chance * sum((part**2).sum() for part in parts)
        means.append(float(flat(score, weights).norm() / (square * world.vocabulary).sqrt()))
        gradients.append(flat(value, weights))
    return means[0], means[1], float(F.cosine_similarity(gradients[0], gradients[1], dim=0))


def sharp() -> str:
    """Two tokens of odds two to one: drawn at .5 they have odds four to one."""
    first = logit_bias(torch.tensor([2.0, 1.0], dtype=torch.float64).log())[0]
    return f"two tokens, p = 2/3 and 1/3, drawn at .5 and scored at 1: the first logit's mean score is {first:.4f}"


@claim(
    source="HRPO (training is said to be strictly on-policy) and its code (log-probabilities at temperature 1)",
    origin="paper",
    statement="HRPO's training is strictly on-policy, so that the mean score of what is sampled is zero.",
    conditions="scored by the distribution that was drawn from; the code draws at .5 among the 50 likeliest tokens and "
    "scores at 1 among all",
    how="exhaustive",
    recorded=FAILS,
    counterexample=sharp,
)
def hrpo_scores_at_another_temperature(trial: Trial) -> Finding:
    """Six tokens with random logits, whole and truncated; then all paths of small hybrid models, scored both ways."""
    size, worst, cut, means = trial.size(50, 1000), 0.0, 0.0, []
    for case in range(size):
        logits_V = torch.randn(6, generator=trial.torch("logits", case), dtype=torch.float64)
        worst = max(worst, float(logit_bias(logits_V).abs().max()))
        cut = max(cut, float(logit_bias(logits_V, 3).abs().max()))
    for case in range(trial.size(2, 20)):
        seed = derive(trial.seed, "scores", case)
        means.append(mean_scores(World(3, 2, seed), 0.8, torch.Generator().manual_seed(seed)))
    own, official, cosine = (list(column) for column in zip(*means, strict=True))
    evidence = (
        f"six tokens, standard normal logits: the mean score of a logit is up to {worst:.2f}, among three of them "
        f"{cut:.2f}; paths of two latent steps: scored as drawn, the mean score is {max(own):.0e} of its root mean "
        f"square, scored at 1 up to {max(official):.2f}; cosine of the two policy gradients {min(cosine):.3f} to "
        f"{max(cosine):.3f}"
    )
    return judged(max(official) < EXACT, evidence) if max(own) < EXACT else concluded(OPEN, evidence)
