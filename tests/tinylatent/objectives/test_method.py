"""What the base gives all methods: states that know their place, plans that end in an answer, one way to solve."""

from dataclasses import dataclass, replace

import pytest
import torch
from losses import examples_of, model_of
from tinylatent_tasks import MNNS, Recommendation

from tinylatent.core.seeds import Streams
from tinylatent.engine.plan import ANSWER
from tinylatent.engine.rollout import rollout
from tinylatent.methods import CoT2, Direct, DiscreteCoT
from tinylatent.objectives.method import Loss, Method, Model, Solution, TrainState
from tinylatent.objectives.rewards import truth

TASK = MNNS(3, 1, 4)
EXAMPLES = examples_of(Direct(), TASK, TASK.problems(6, seed=0))


def uniforms(streams, count=2):
    return streams.uniform(count).tolist()


def test_a_part_of_a_batch_draws_what_it_draws_in_the_whole():
    state = TrainState(4, 10, 7)
    whole = uniforms(state.streams(8))
    assert uniforms(replace(state, first=3).streams(4)) == whole[3:7]
    assert uniforms(replace(state, first=2).streams(4, per_example=2)) == whole[4:8]


def test_every_step_and_seed_draws_afresh():
    states = [TrainState(step, 10, seed) for step in range(5) for seed in (0, 1)]
    assert len({tuple(uniforms(state.streams(1))[0]) for state in states}) == 10
    assert TrainState(5, 10, 0).progress == 0.5


def test_a_model_hands_itself_to_what_needs_its_weights():
    model = Model(torch.nn.Linear(2, 2))
    assert model(lambda inside: inside) is model
    assert (len(model.parts), int(model.stage)) == (0, 0)
    assert "stage" in model.state_dict()


@dataclass(frozen=True)
class Staged(Direct):
    """Stages of 3, 3 and 4 steps."""

    def stage_starts(self, steps):
        return (0, 3, 6)


def test_steps_belong_to_stages():
    assert [Staged().stage_at(step, 10) for step in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert {Direct().stage_at(step, 10) for step in range(10)} == {0}


def test_a_method_that_declares_nothing_changes_nothing():
    method = Direct()
    assert (method.parameter_groups(0), method.extra_tokens, method.extra_steps, dict(method.decoders)) == (
        (),
        (),
        0,
        {},
    )
    assert (method.updates, method.forwards) == (1, 3)
    assert method.early_stop([{"step": 1, "loss": 0.0}], True) is None
    model, state = model_of(method, TASK), TrainState(0, 1, 0)
    assert method.collect(model, EXAMPLES, state) is EXAMPLES
    assert dict(method.after(model, EXAMPLES, state)) == {}
    assert dict(Loss(torch.zeros(())).metrics) == {}


# ---------------------------------------------------------------------------------------------------------------------
# Solving


def test_solving_is_one_rollout_of_the_plan():
    method = DiscreteCoT()
    model = model_of(method, TASK)
    solution = method.solve(model, EXAMPLES)
    run = rollout(model.backbone, method.plan(model, EXAMPLES), EXAMPLES.prompt_BN)
    assert torch.equal(solution.answer_BA, run.answer())
    assert torch.equal(solution.trace.logits_BTV, run.logits_BTV)
    assert solution.counters == run.counters
    assert Solution(run.answer(), run, run.counters + run.counters).counters.steps == 2 * run.counters.steps


def test_rollouts_of_a_group_stand_side_by_side():
    """Each is what it is alone, with its own stream; without streams nothing is sampled."""
    method = DiscreteCoT()
    model = model_of(method, TASK)
    streams = Streams(3, torch.arange(18))
    several = method.solve(model, EXAMPLES, streams, temperature=1.5, group=3).answer_BA
    alone = method.solve(model, EXAMPLES.repeated(3), Streams(3, torch.arange(18)), temperature=1.5).answer_BA
    assert torch.equal(several, alone)
    assert len(several.view(6, 3).unique()) > 1
    with pytest.raises(ValueError, match="the plan samples: pass streams"):
        method.solve(model, EXAMPLES, temperature=1.5)


def test_controls_replace_latents_while_solving():
    method = CoT2()
    model = model_of(method, TASK)
    plain, zeroed = method.solve(model, EXAMPLES).trace, method.solve(model, EXAMPLES, control="zero").trace
    assert plain.inputs_BTD.abs().min() > 0
    assert not zeroed.inputs_BTD.any()
    assert [span.name for span in zeroed.thought_spans] == [span.name for span in plain.thought_spans]
    with pytest.raises(ValueError, match=r"unknown control 'silence': expected one of"):
        method.solve(model, EXAMPLES, control="silence")


def test_edits_reach_the_model():
    method, sites = DiscreteCoT(), set()
    model = model_of(method, TASK)

    def watch(layer, site, x_BTD, slots):
        sites.add((layer, site))
        return x_BTD

    method.solve(model, EXAMPLES, edit=watch)
    assert sites == {(layer, site) for layer in (0, 1) for site in ("resid_in", "attn_add", "mlp_add", "resid_out")}


def test_an_answer_ends_with_a_stop_token():
    """Stop tokens are those of the examples; what comes after one is not said."""
    method, task = Direct(), Recommendation(4, 3, 2, events=4)
    model, examples = model_of(method, task), examples_of(method, task, task.problems(30, seed=0))
    free = method.solve(model, examples).answer_BA
    stop = int(free[:, 1].mode().values)
    assert 0 < (free == stop).any(1).sum() < 30
    stopping = replace(examples, stop_ids=(stop,))
    *_, answer = method.plan(model, stopping)
    assert (answer.label, answer.thought.stop_ids, answer.longest) == (ANSWER, (stop,), 3)
    stopped = method.solve(model, stopping).answer_BA
    for free_A, stopped_A in zip(free.tolist(), stopped.tolist(), strict=True):
        said = free_A[: free_A.index(stop)] if stop in free_A else free_A
        assert stopped_A[: len(said)] == said
        assert set(stopped_A[len(said) :]) <= {-1}
    assert stopped.shape[1] == 3 or (free == stop).any(1).all()


def test_truth_is_what_the_speaker_says():
    method = DiscreteCoT()
    answer_BA = EXAMPLES.answer_BA.clone()
    answer_BA[::2] = 0
    trace = method.forced(
        model_of(method, TASK), replace(EXAMPLES, chain_BT=torch.cat([EXAMPLES.chain_BT[:, :-1], answer_BA], 1))
    )
    assert truth(EXAMPLES, trace).tolist() == [0.0, 1.0] * 3


def test_methods_know_no_problems_of_their_own():
    """What a method learns from is made by the speaker; the base asks for no targets beside it."""

    class Asking(Method):
        name = "asking"

    asked = []

    class Speaker:
        problems, vocabulary = (), 1

        def part(self, index):
            raise AssertionError("nobody asks")

        def judge(self, examples, answer_BA):
            raise AssertionError("nobody asks")

        def examples(self, device="cpu", **supervision):
            asked.append((str(device), supervision))
            return EXAMPLES

    assert Asking().supervise(Speaker(), torch.device("cpu")) is EXAMPLES
    CoT2(budget=2, rule="nonnegative").supervise(Speaker())
    CoT2().supervise(Speaker())
    assert asked == [("cpu", {}), ("cpu", {"budget": 2, "rule": "nonnegative"}), ("cpu", {"budget": None})]
