"""A rollout is naive recomputation (see naive.py), in values and gradients: over a cache, in batches, in groups."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CLOSE, Case, assert_naive, cases, live, run_score, streams
from fakes import Always
from hypothesis import given, settings
from naive import gradients
from thoughts import D, V

import tinylatent.engine.trace
from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import Noise
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import ANSWER, Repeat, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import (
    GREEDY,
    HIDDEN,
    MIXTURE,
    Dirichlet,
    Hidden,
    Mixture,
    MultiToken,
    Pause,
    Stopping,
    Token,
)
from tinylatent.models.backbone import Cache, Table

PROMPT = torch.tensor([[1, 2], [3, 4]])
IDS = torch.tensor([[1, 2], [3, 4]])
PLAN = (Segment(GREEDY, 1),)


@pytest.mark.slow
@settings(max_examples=30)
@given(make=cases())
def test_rollout_is_naive_recomputation(model, make):
    case = make()
    assert_naive(model, case, case.run(model, grad=True))


def test_repeat_stops_each_row_on_its_own(model):
    """Rows finish after different numbers of passes, and those that are done wait."""
    plan = (Repeat((Segment(Hidden(), 1), Segment(Token(), 1)), lambda state: state.hidden[:, 2] > -0.4, 4),)
    case = Case([[i] for i in range(V)], None, 1, (*plan, Segment(Token(), 1)), 0)
    run = case.run(model, grad=True)
    assert run.length_B.unique().tolist() == [3, 5, 7, 9]
    assert_naive(model, case, run)


@pytest.mark.parametrize("padded", [False, True])
def test_float32_is_close_to_float64(tiny, padded):
    """To 1e-4 of the largest number, for values and gradients. No choice of a token hangs on a rounding error."""
    exact = tiny()
    single = copy.deepcopy(exact).float()
    ids = torch.tensor([[5, 2], [0, 1], [3, 3]])
    plan = (
        Segment(Mixture(), torch.tensor([1, 3, 2])),
        Segment(Hidden(), 2),
        Segment(Token(), 2, Token().given(ids)),
        Segment(Mixture(), 2),
    )
    case = Case([[1, 2], [5] if padded else [5, 3], [4, 6]], None, 1, plan, 0)
    runs = [case.run(model, grad=True) for model in (single, exact)]
    for name in ("hidden_BTD", "logits_BTV", "inputs_BTD", "log_prob_BT"):
        got, expected = (getattr(run, name) for run in runs)
        assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    got, expected = (
        gradients(run_score(run), model.parameters()) for run, model in zip(runs, (single, exact), strict=True)
    )
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_problem_gets_the_same_answer_in_any_batch(model):
    """Alone without padding, in another order, beside longer prompts: with one stream for each problem."""
    prompts = [[1, 2], [5], [4, 4, 6, 0], [3, 1, 2]]
    rows_B, steps_B = torch.tensor([40, 41, 42, 43]), torch.tensor([3, 1, 2, 2])

    def solve(index):
        plan = (
            Segment(Mixture(), steps_B[index]),
            Segment(Noise(Hidden()), 2),
            Repeat((Segment(Token(1.5, (1, 2)), 3),), lambda state: state.hidden[:, 1] > 0, 2),
            Segment(Token(1.5), 3),
        )
        case = Case([prompts[i] for i in index], None, 1, plan, 0)
        run = case.run(model, streams=Streams(7, rows_B[index]))
        at_BT, ids_BA = live(run), run.action("id")
        return {i: (run.hidden_BTD[b][at_BT[b]], ids_BA[b]) for b, i in enumerate(index)}

    whole = solve([0, 1, 2, 3])
    for index in ([0], [1], [2], [3], [3, 1, 0, 2], [1, 2]):
        for i, (hidden_TD, ids_A) in solve(index).items():
            torch.testing.assert_close(hidden_TD, whole[i][0], **CLOSE)
            assert torch.equal(ids_A, whole[i][1])


def test_gradients_are_kept_only_when_asked(model, monkeypatch):
    plan, prompt_BN = (Segment(Mixture(), 2), Segment(Token(), 1)), torch.tensor([[1, 2]])
    assert not rollout(model, plan, prompt_BN).logits_BTV.requires_grad
    assert rollout(model, plan, prompt_BN, grad=True).logits_BTV.requires_grad
    with torch.no_grad():
        run = rollout(model, plan, prompt_BN, grad=True)
        for name in ("logits_BTV", "inputs_BTD", "log_prob_BT"):  # wherever it is asked for first
            assert getattr(run, name).requires_grad
        assert not replay(model, run).logits_BTV.requires_grad
    assert replay(model, run).logits_BTV.requires_grad
    monkeypatch.setattr(tinylatent.engine.trace, "KEPT_BYTES", 0)
    assert not rollout(model, plan, prompt_BN).logits_BTV.requires_grad  # computed again, and still without
    assert not rollout(model, plan, prompt_BN).log_prob_BT.requires_grad


def test_groups_sample_apart_and_share_the_prompt(model):
    """The prompt is read once; the rollouts of a group differ only by their streams."""
    widths, plan = [], (Segment(Token(1.0), 6),)

    def look(layer, site, x_BTD, slots):
        assert len(slots) == x_BTD.shape[1]
        widths.append((*x_BTD.shape[:2], slots.start))
        return x_BTD

    case = Case([[1, 2, 3], [4, 5]], None, 4, plan, 0)
    run = case.run(model, edit=look)
    steps = [(8, 1, 3 + t) for t in range(5) for _ in range(8)]  # the last token is not read
    assert widths == [(2, 3, 0)] * 8 + steps  # two layers, four sites
    assert run.group_B.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(run.prompt_BN, case.prompt_BN.repeat_interleave(4, 0))
    assert torch.equal(run.prompt_mask_BN, case.mask_BN.repeat_interleave(4, 0))
    for ids_GT in run.action("id").split(4):
        assert len(ids_GT.unique(dim=0)) == 4


def test_groups_repeat_what_is_given(model):
    """A forced beginning and sampled ends: given actions belong to prompts, like steps."""
    ids = Token().given(torch.tensor([[1, 2], [3, 4]]))
    plan = (Segment(Token(), torch.tensor([2, 1]), ids), Segment(Token(1.0), 2))
    run = rollout(model, plan, torch.tensor([[1], [2]]), streams=Streams(0, torch.arange(6)), group=3)
    assert run.spans[1].action["id"].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    assert run.length_B.tolist() == [4] * 3 + [3] * 3


def test_the_last_action_is_never_read(tiny):
    """A plan may use the model's last position, in a segment, after a repeat, and when all is forced."""
    model, prompt_BN = tiny(positions=5), torch.tensor([[1, 2, 3]])
    never = Repeat((Segment(Token(), 1),), lambda state: state.hidden[:, 0] > 1e9, 3)
    ids = Token().given(torch.tensor([[1, 1, 1]]))
    assert rollout(model, (Segment(Token(), 3),), prompt_BN).length_B.tolist() == [3]
    assert rollout(model, (never,), prompt_BN).length_B.tolist() == [3]
    assert force(model, (Segment(Token(), 3, ids),), prompt_BN).length_B.tolist() == [3]
    with pytest.raises(ValueError, match="position 5, but the model has 5 positions, 0 to 4"):
        rollout(model, (Segment(Token(), 4),), prompt_BN)


def test_edits_reach_every_forward_of_every_way_to_run(model):
    """An edit that replaces the last layer's output decides all hidden states."""
    new_D = torch.linspace(-1, 2, D, dtype=torch.float64)
    edit = lambda n, site, x, slots: new_D.expand_as(x) if (n, site) == (1, "resid_out") else x  # noqa: E731
    plan, prompt_BN = (Segment(Mixture(), 2), Segment(Token(), 1)), torch.tensor([[1, 2], [3, 4]])
    run = rollout(model, plan, prompt_BN, edit=edit)
    runs = [run, replay(model, run, edit), force(model, run.plan(), prompt_BN, edit=edit)]
    for run in runs:
        torch.testing.assert_close(run.hidden_BTD, model.norm(new_D).expand_as(run.hidden_BTD), **CLOSE)
    run = resume(rollout(model, plan, prompt_BN), (Segment(Token(), 2),), edit=edit)  # what is new is edited
    torch.testing.assert_close(run.hidden_BTD[:, 3:], model.norm(new_D).expand(2, 2, D), **CLOSE)
    assert not torch.allclose(run.hidden_BTD[:, :3], model.norm(new_D).expand(2, 3, D))


def test_a_model_needs_no_module(model):
    """Any object with the protocol's members will do."""

    class Echo:
        """Hidden states are the inputs."""

        table = Table(torch.eye(4, dtype=torch.float64), scale=2.0)

        def forward(
            self, embeddings_BTD, cache=None, mask_BS=None, positions_BT=None, edit=None, read_from=0, keep=True
        ):
            size = 0 if cache is None else cache.size
            return embeddings_BTD[:, read_from:], Cache(size + embeddings_BTD.shape[1], ())

        def readout(self, hidden):
            return F.linear(hidden, self.table.weight)

        def flops(self, new, past=0, read=None):
            return 0

    trace = rollout(Echo(), (Segment(HIDDEN, 2), Segment(GREEDY, 1, name=ANSWER)), torch.tensor([[1], [3]]))
    assert trace.answer().tolist() == [[1], [3]]
    assert trace.hidden_BTD[0, 0].tolist() == [0, 2, 0, 0]
    assert trace.counters.flops == 2 * 4 * 4 * 6


def test_stops_wait_for_the_least_number_of_steps(model):
    """A head that would always stop, and a token that is always likeliest."""
    plan = (Segment(Stopping(HIDDEN, Always(50)), 5, min_steps=2), Segment(GREEDY, 1))
    trace = rollout(model, plan, PROMPT, streams=streams(2))
    assert trace.length_B.tolist() == [3, 3]
    assert trace.acted_BT.tolist() == [[True, True, True, True]] * 2  # two latents, the stop, the token
    assert trace.live_BT.tolist() == [[True, True, False, True]] * 2
    assert torch.equal(trace.log_prob_BT[:, :2], torch.zeros(2, 2).double())
    first = rollout(model, (Segment(GREEDY, 1),), PROMPT).action("id")[0, 0].item()
    barred = Segment(Token(stop_ids=(first,)), 3, min_steps=1)
    said = rollout(model, (barred,), PROMPT[:1]).action("id")[0]
    assert said[0] != first
    with pytest.raises(ValueError, match="a segment of 1 steps, at least -1"):
        Segment(GREEDY, 1, min_steps=-1)


def test_a_delimiter_is_written_for_every_row(model):
    """Rows that stop and rows that are cut at the limit go on alike, at the same place after their own latents."""
    delimiter = Segment(GREEDY, 1, GREEDY.given(torch.tensor([[6], [6]])), "delimiter")
    stop = torch.tensor([[False, True, False], [False, False, False]])
    hidden = rollout(model, (Segment(HIDDEN, 3),), PROMPT).action("hidden")
    given = Action({"hidden": hidden}, stop, stop_slot=False)
    thought = Stopping(HIDDEN, Always(0))
    plan = (Segment(thought, 3, given), delimiter, Segment(GREEDY, 1, name=ANSWER))
    trace = rollout(model, plan, PROMPT)
    assert trace.live_BT.tolist() == [[True, False, False, True, True], [True] * 5]
    alone = rollout(model, (Segment(HIDDEN, 1, Action({"hidden": hidden[:1, :1]})), *plan[2:]), PROMPT[:1])
    short = (Segment(HIDDEN, 1), Segment(GREEDY, 1, GREEDY.given(torch.tensor([[6]]))), Segment(GREEDY, 1, name=ANSWER))
    short_trace = rollout(model, short, PROMPT[:1])
    torch.testing.assert_close(trace.hidden_BTD[:1, -1:], short_trace.hidden_BTD[:, -1:], **CLOSE)
    assert alone.steps == 2


# ---------------------------------------------------------------------------------------------------------------------
# What users get wrong


@pytest.mark.parametrize("plan", [(Segment(Token(1.0), 1),), (Repeat((Segment(Noise(Hidden()), 1),), bool, 1),)])
def test_sampling_needs_a_stream_for_each_rollout(model, plan):
    with pytest.raises(ValueError, match=r"the plan samples: pass streams=Streams\(seed, rows\)"):
        rollout(model, plan, PROMPT)
    with pytest.raises(ValueError, match=r"streams for 2 rows: expected one for each of 6 rollouts"):
        rollout(model, plan, PROMPT, streams=Streams(0, torch.arange(2)), group=3)


def test_given_actions_need_no_streams(model):
    token = Token(1.0)
    plan = (Segment(token, 2, token.given(IDS)),)
    assert torch.equal(rollout(model, plan, PROMPT).action("id"), IDS)


@pytest.mark.parametrize("plan", [(), (Segment(Token(), 0),), (Segment(Token(), torch.tensor([0, 0])),)])
def test_a_plan_without_steps_is_rejected(model, plan):
    with pytest.raises(ValueError, match="the plan has no steps: expected at least one"):
        rollout(model, plan, PROMPT)


def test_right_padding_is_rejected(model):
    mask_BN = torch.tensor([[True, True], [True, False]])
    forced = (Segment(Token(), 2, Token().given(IDS)),)
    with pytest.raises(ValueError, match="expected left padding"):
        rollout(model, PLAN, PROMPT, mask_BN)
    with pytest.raises(ValueError, match="expected left padding"):
        force(model, forced, PROMPT, mask_BN)


def test_plans_for_another_batch_are_rejected(model):
    with pytest.raises(ValueError, match=r"steps of shape \(3,\): expected one for each of 2 prompts"):
        rollout(model, (Segment(Token(), torch.tensor([1, 2, 3])),), PROMPT)
    one_row = (Segment(Token(), 2, Token().given(IDS[:1])),)
    for run in (rollout, force):
        with pytest.raises(ValueError, match="actions given for 1 rows: expected one for each of 2 prompts"):
            run(model, one_row, PROMPT)


@pytest.mark.parametrize("group", [0, -1])
def test_groups_below_one_are_rejected(model, group):
    with pytest.raises(ValueError, match=f"group {group}: expected 1 or more"):
        rollout(model, PLAN, PROMPT, group=group)


@pytest.mark.parametrize("call", [rollout, force])
@pytest.mark.parametrize(
    ("mask", "offset", "steps", "wrong"),
    [
        (None, None, 5, 8),
        ([[True] * 5, [False] * 2 + [True] * 3], None, 5, 8),  # the second row alone would fit
        (None, [0, 2], 3, 8),
        ([[True] * 5, [False] * 2 + [True] * 3], [0, 5], 2, 8),
        (None, [-1, 0], 2, -1),
        (None, None, [1, 5], 8),
        (None, [0, 1], [5, 1], 8),
    ],
)
def test_positions_beyond_those_of_the_model_are_told(tiny, call, mask, offset, steps, wrong):
    """By the prompt's length, a mask, offsets, steps that differ by row: one sentence in all cases."""
    model, prompt_BN = tiny(positions=8), torch.ones(2, 5, dtype=torch.int64)
    mask_BN, offset_B = (None if x is None else torch.tensor(x) for x in (mask, offset))
    most, number = (max(steps), torch.tensor(steps)) if isinstance(steps, list) else (steps, steps)
    given = Token().given(torch.ones(2, most, dtype=torch.int64)) if call is force else None
    plan = (Segment(Token(), number, given),)
    if wrong >= 0:  # with one position more, all fits
        call(tiny(positions=wrong + 1), plan, prompt_BN, mask_BN, offset_B=offset_B)
    with pytest.raises(ValueError, match=f"position {wrong}, but the model has 8 positions, 0 to 7: give its task a"):
        call(model, plan, prompt_BN, mask_BN, offset_B=offset_B)


@pytest.mark.parametrize("wrong", [-1, V])
def test_ids_beyond_the_table_are_told(model, wrong):
    """In prompts, in given tokens, in sparse mixtures."""
    said = f"token ids from .*{wrong}.*: expected 0 to {V - 1}"
    bad = torch.tensor([[1, 2], [wrong, 2]])
    given = Segment(GREEDY, 2, GREEDY.given(bad))
    sparse = Segment(MIXTURE, 2, MIXTURE.given_sparse(bad[:, None].expand(2, 2, 2), torch.full((2, 2, 2), 0.5)))
    last = Segment(GREEDY, 1, GREEDY.given(torch.ones(2, 1, dtype=torch.int64)))
    for run in (rollout, force):
        for plan, prompt in (((last,), bad), ((given, last), PROMPT), ((sparse, last), PROMPT)):
            with pytest.raises(ValueError, match=said):
                run(model, plan, prompt)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["embedding", "norm.weight", "blocks.0.mlp.down_proj"])
@pytest.mark.parametrize("thought", [GREEDY, MIXTURE, HIDDEN, Token(1.0), Dirichlet(2.0), MultiToken(2)])
def test_nothing_is_chosen_from_logits_that_are_not_finite(tiny, thought, where, bad):
    """A greedy choice from NaN would be an id like any other; one weight that is no number reaches the answer."""
    model, plan = tiny(), (Segment(thought, 2), Segment(GREEDY, 1, name=ANSWER))
    rollout(model, plan, PROMPT, streams=Streams(0, torch.arange(2)))
    with torch.no_grad():
        model.get_parameter(where).view(-1)[-1] = bad
    for grad in (False, True):
        with pytest.raises(ValueError, match="nothing to choose from: the logits are not finite, training diverged"):
            rollout(model, plan, PROMPT, streams=Streams(0, torch.arange(2)), grad=grad)


def test_tokens_that_cannot_come_may_have_infinite_logits(tiny):
    """A logit of -inf is a token of probability 0: no error, in any thought."""
    model, barred = tiny(), torch.tensor([0, 3])
    model.readout = lambda hidden: F.linear(hidden, model.embedding).index_fill(-1, barred, -torch.inf)
    plan = (Segment(MIXTURE, 1), Segment(Token(1.0), 1), Segment(MultiToken(2), 1), Segment(GREEDY, 2))
    trace = rollout(model, plan, PROMPT, streams=Streams(0, torch.arange(2)))
    assert not torch.isin(trace.action("id"), barred).any()
    assert trace.log_prob_BT.isfinite().all()


def test_inputs_of_another_width_are_refused(model):
    for pause in (Pause(1), Pause(5)):
        with pytest.raises(ValueError, match=r"Pause made an input of shape \(2, [15]\): expected \(2, 8\)"):
            rollout(model, (Segment(pause.double(), 1), Segment(GREEDY, 1)), PROMPT)
    flat = (
        Segment(HIDDEN, 2, Action({"hidden": torch.ones(2, 2, 1).double()})),
        Segment(GREEDY, 1, GREEDY.given(PROMPT)),
    )
    with pytest.raises(ValueError, match=r"Hidden made an input of shape \(2, 2, 1\): expected \(2, 2, 8\)"):
        force(model, flat, PROMPT)
