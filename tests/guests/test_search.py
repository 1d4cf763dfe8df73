"""Guest: a search over hidden states (as LatentSeek, arXiv 2505.13308) with a verifier; the model stays as it is."""

from dataclasses import dataclass

import torch
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds, Streams
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thought import Action, State
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import DiscreteCoT
from tinylatent.objectives.method import Method, Solution
from tinylatent.objectives.rewards import truth
from tinylatent.objectives.speakers import Symbols
from tinylatent.training.config import Training
from tinylatent.training.loop import fit

SAY = Token(1.0)


@dataclass(frozen=True)
class Search(Method):
    """The first steps' tokens are drawn from optimised hidden states; the rest is greedy. Keeps the best answer."""

    name = "search"
    rounds: int = 12
    rate: float = 0.1

    def solve(self, model, examples, streams=None, *, verify=None, **options):
        first = DiscreteCoT().solve(model, examples).trace
        steps = first.steps - examples.answer_tokens
        z_BTD = first.hidden_BTD[:, :steps].detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([z_BTD], self.rate)  # moments are kept number by number: so for every question
        best_BA, spent = first.answer(), first.counters
        best_B = verify(examples, first)
        for round in range(self.rounds):
            state, fresh = State(z_BTD, model.backbone.readout(z_BTD), model.backbone.table), streams.derived(round)
            said = [SAY.sample(State(z_BTD[:, t], state.logits[:, t], state.table), fresh) for t in range(steps)]
            given = SAY.given(Action.stack(said)["id"])
            plan = (Segment(GREEDY, steps, given), Segment(GREEDY, examples.answer_tokens, name=ANSWER))
            trace = rollout(model.backbone, plan, examples.prompt_BN, examples.prompt_mask_BN)
            reward_B, spent = verify(examples, trace), spent + trace.counters
            score_B = SAY.log_prob(state, given).sum(1)
            optimizer.zero_grad()
            gradient = torch.autograd.grad(-((reward_B - best_B) * score_B).sum(), z_BTD)[0]
            z_BTD.grad = gradient
            optimizer.step()
            better_B = reward_B > best_B
            best_B = torch.where(better_B, reward_B, best_B)
            best_BA = torch.where(better_B[:, None], trace.answer(), best_BA)
        return Solution(best_BA, trace, spent)


def test_a_search_fits(unchecked):
    task = MNNS(digits=3, high=3)
    model = Experiment(task=task, method=DiscreteCoT()).fresh()
    speaker = Symbols(task, task.split("train", 0))
    fit(model, DiscreteCoT(), speaker.examples(), Training(steps=60, batch_size=16), Seeds())
    weights = [parameter.clone() for parameter in model.parameters()]
    asked = []

    def verify(examples, trace):
        asked.append(examples.problems())  # a verifier sees the task's own rows
        return truth(examples, trace)

    plain = evaluate(speaker, DiscreteCoT(), model)
    found = evaluate(speaker, Search(), model, verify=verify)
    assert plain.right_P.mean() < 0.9
    assert found.right_P.mean() > plain.right_P.mean() + 0.05
    assert found.right_P[plain.right_P].all()  # what was right stays
    assert sorted(asked[0].tolist()) == speaker.problems.tolist()
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert found.counters.forwards == 13 * plain.counters.forwards
    alone = Search().solve(model, speaker.examples().rows(slice(3, 4)), Streams(0, torch.tensor([3])), verify=truth)
    beside = Search().solve(model, speaker.examples().rows(slice(0, 8)), Streams(0, torch.arange(8)), verify=truth)
    assert torch.equal(alone.answer_BA[0], beside.answer_BA[3])  # a question's search does not depend on the others
