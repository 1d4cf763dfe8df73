"""The trace: one record, read in several ways. Wide runs, moved weights, answers, counters, parts, stops, replays."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fakes import Gated

import tinylatent.engine.force
import tinylatent.engine.rollout
import tinylatent.engine.trace
from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import CONTROLS, controlled
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import ANSWER, Repeat, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import GREEDY, HIDDEN, MIXTURE, MultiToken, Pause, Stopping, Token
from tinylatent.engine.trace import NOTHING
from tinylatent.models.backbone import Cache, Table, weights_moved

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
V, D = 7, 8
PROMPT = torch.tensor([[1, 2, 5], [3, 4, 0]])
PLAN = (Segment(MIXTURE, 2), Segment(MultiToken(2), 2), Segment(Token(1.0), 2, name=ANSWER))


def streams(rows, seed=0):
    return Streams(seed, torch.arange(rows))


# ---------------------------------------------------------------------------------------------------------------------
# Logits: kept, or computed again in chunks


@pytest.fixture
def wide(monkeypatch):
    """Everything counts as wide: no logits are kept, and chunks hold a single row."""
    monkeypatch.setattr(tinylatent.engine.trace, "KEPT_BYTES", 0)


def test_wide_runs_say_the_same(model, gradients, request):
    """Log-probabilities, logits and gradients of a run whose logits are not kept, sampled and replayed."""
    runs = [rollout(model, PLAN, PROMPT, streams=streams(4), groups=2, grad=True)]
    runs.append(replay(model, runs[0]))
    request.getfixturevalue("wide")
    runs.append(rollout(model, PLAN, PROMPT, streams=streams(4), groups=2, grad=True))
    runs.append(replay(model, runs[0]))
    assert [run.kept_logits is None for run in runs] == [False, False, True, True]
    calls = []
    runs[2].over_logits(lambda logits, rows: calls.append((tuple(logits.shape), rows)) or logits)
    assert calls == [((2, 6, V), slice(i, i + 2)) for i in (0, 2)]  # whole groups
    for run in runs[1:]:
        torch.testing.assert_close(run.log_prob_BT, runs[0].log_prob_BT, **CLOSE)
        grads = [gradients(each.log_prob_BT.sum(), model.parameters()) for each in (run, runs[0])]
        torch.testing.assert_close(*grads, **CLOSE)
        torch.testing.assert_close(run.logits_BTV, runs[0].logits_BTV, **CLOSE)


def test_chunks_are_not_held_for_the_backward(model, wide):
    """The graph of a wide run keeps hidden states alone: no tensor of the size of all logits."""
    saved = []

    def pack(x):
        saved.append(x.numel())
        return x

    trace = force(model, rollout(model, PLAN, PROMPT, streams=streams(2)).plan(), PROMPT)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        total = trace.sum_over_logits(lambda logits, rows: logits.logsumexp(-1).sum())
    assert saved
    assert max(saved) <= 6 * D  # hidden states of a row
    total.backward()


def test_a_step_without_logits_makes_no_readout(tiny, wide):
    """A wide vocabulary is read where a thought asks for it: hidden states and pauses do not."""
    model, reads = tiny(), []
    readout = model.readout
    model.readout = lambda hidden: reads.append(hidden.shape) or readout(hidden)
    pause = Pause(D).double()
    rollout(model, (Segment(HIDDEN, 3), Segment(pause, 2), Segment(GREEDY, 1)), PROMPT)
    assert reads == [(2, D)]


# ---------------------------------------------------------------------------------------------------------------------
# Weights that move


def in_place(model):
    with torch.no_grad():
        next(model.parameters()).add_(0.1)


def by_optimizer(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()


@pytest.mark.parametrize("move", [in_place, by_optimizer, weights_moved])
def test_moved_weights_are_noticed(tiny, move):
    model = tiny(3)
    trace = rollout(model, PLAN, PROMPT, streams=streams(2))
    stored, before = trace.sampled_log_prob_BT, trace.log_prob_BT.clone()
    again = rollout(model, PLAN, PROMPT, streams=streams(2))
    move(model)
    asked = [lambda: again.logits_BTV, lambda: again.log_prob_BT, lambda: again.over_logits(lambda x, rows: x)]
    for ask in (*asked, lambda: resume(again, (Segment(GREEDY, 1),))):
        with pytest.raises(ValueError, match="the weights have moved since this trace was made"):
            ask()
    assert torch.equal(again.sampled_log_prob_BT, stored)  # what was drawn stays known
    drawn = torch.tensor([False, False, True, True, True, True])
    torch.testing.assert_close(stored, before.masked_fill(~drawn, 0.0), check_dtype=False, **CLOSE)
    assert replay(model, again).log_prob_BT.shape == (2, 6)


def test_a_copy_of_a_model_moves_alone(tiny):
    model = tiny(4)
    trace = rollout(model, PLAN, PROMPT, streams=streams(2))
    in_place(copy.deepcopy(model))
    assert trace.logits_BTV.shape == (2, 6, V)


# ---------------------------------------------------------------------------------------------------------------------
# Answers and stops


def test_an_answer_ends_at_its_stop_token(model):
    """Nothing at and after the stop token; an answer that is cut at the limit has none."""
    token = Token(stop_ids=(6,))
    ids = torch.tensor([[1, 6, 2], [3, 4, 5], [6, 0, 0]])
    plan = (Segment(MIXTURE, 1), Segment(token, 3, token.given(ids), ANSWER), Segment(GREEDY, 1))
    trace = rollout(model, plan, torch.tensor([[1], [2], [3]]))
    assert trace.answer().tolist() == [[1, NOTHING, NOTHING], [3, 4, 5], [NOTHING] * 3]
    assert trace.length_B.tolist() == [1 + 2 + 1, 1 + 3 + 1, 1 + 1 + 1]
    again = replay(model, trace)
    assert torch.equal(again.answer(), trace.answer())
    with pytest.raises(ValueError, match="no span 'answer' of at least one step: there are prompt, Token"):
        rollout(model, (Segment(GREEDY, 1),), PROMPT).answer()
    with pytest.raises(ValueError, match="Mixture, which says no tokens"):
        rollout(model, (Segment(MIXTURE, 1, name=ANSWER),), PROMPT).answer()


class Always(torch.nn.Module):
    """A head whose logit is the same everywhere."""

    def __init__(self, logit):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor([float(logit)], dtype=torch.float64))

    def forward(self, hidden):
        return self.logit.expand(*hidden.shape[:-1], 1)


def test_stops_wait_for_the_least_number_of_steps(model):
    """A head that would always stop, and a token that is always likeliest."""
    plan = (Segment(Stopping(HIDDEN, Always(50)), 5, least=2), Segment(GREEDY, 1))
    trace = rollout(model, plan, PROMPT, streams=streams(2))
    assert trace.length_B.tolist() == [3, 3]
    assert trace.acted_BT.tolist() == [[True, True, True, True]] * 2  # two latents, the stop, the token
    assert trace.live_BT.tolist() == [[True, True, False, True]] * 2
    assert torch.equal(trace.log_prob_BT[:, :2], torch.zeros(2, 2).double())
    first = rollout(model, (Segment(GREEDY, 1),), PROMPT).action("id")[0, 0].item()
    barred = Segment(Token(stop_ids=(first,)), 3, least=1)
    said = rollout(model, (barred,), PROMPT[:1]).action("id")[0]
    assert said[0] != first
    with pytest.raises(ValueError, match="a segment of 1 steps, at least -1"):
        Segment(GREEDY, 1, least=-1)


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
# Token and latent parts


@pytest.mark.parametrize("name", CONTROLS)
def test_a_gated_thought_keeps_its_token_under_controls(model, name):
    plan = controlled((Segment(Gated(), 2), Segment(GREEDY, 1)), name)
    trace = rollout(model, plan, PROMPT, streams=streams(2))
    tokens = model.table.rows(trace.spans[1].action["id"])
    rest = trace.inputs_BTD - 0.8 * tokens
    own = 0.6 * model.table.mix(trace.logits_BTV[:, :2].softmax(-1))
    if name == "zero":
        torch.testing.assert_close(rest, torch.zeros_like(rest), **CLOSE)
    elif name == "shuffled":
        torch.testing.assert_close(rest, own.roll(1, 0), **CLOSE)
    else:
        torch.testing.assert_close(rest.norm(dim=-1), own.norm(dim=-1), **CLOSE)
        assert not torch.allclose(rest, own)
    assert plan[0].label == "Gated"


def test_controls_pass_by_what_has_no_latent_part(model):
    plan = (Segment(Pause(D).double(), 2), Segment(MultiToken(1), 1), Segment(GREEDY, 1))
    assert controlled(plan, "zero") == plan
    with pytest.raises(ValueError, match="Pause has no latent part to replace"):
        CONTROLS["zero"](Pause(D))


def test_replay_under_another_thought_reads_tokens_only(model):
    """What carries a latent part is read by the other thought; tokens and pauses stay what they are."""
    plan = (Segment(Gated(1.0), 3), Segment(Pause(D).double(), 1), Segment(Token(1.0), 2, name=ANSWER))
    trace = rollout(model, plan, PROMPT, streams=streams(2))
    bare = replay(model, trace, thought=Token(1.0))
    ids = trace.spans[1].action["id"]
    given = (
        Segment(GREEDY, 3, GREEDY.given(ids)),
        Segment(plan[1].thought, 1, trace.spans[2].action),
        Segment(GREEDY, 2, GREEDY.given(trace.action("id"))),
    )
    torch.testing.assert_close(bare.logits_BTV, force(model, given, PROMPT).logits_BTV, **CLOSE)
    assert bare.at_once
    assert not replay(model, trace).at_once
    assert not torch.allclose(bare.logits_BTV[:, 1:], trace.logits_BTV[:, 1:])
    with pytest.raises(KeyError, match="id"):
        replay(model, rollout(model, (Segment(MIXTURE, 2), Segment(GREEDY, 1)), PROMPT), thought=GREEDY)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts whose last layer is read at the end alone


@pytest.mark.parametrize("padded", [False, True])
def test_leaving_out_what_nobody_reads_changes_nothing(model, gradients, monkeypatch, padded):
    mask_BN = torch.tensor([[False, True, True], [True, True, True]]) if padded else None

    def runs():
        sampled = rollout(model, PLAN, PROMPT, mask_BN, streams=streams(6), groups=3, grad=True)
        return sampled, replay(model, sampled)

    whole = runs()
    monkeypatch.setattr(tinylatent.engine.rollout, "WORTH", 1)
    monkeypatch.setattr(tinylatent.engine.force, "unread", tinylatent.engine.rollout.unread)
    for got, expected in zip(runs(), whole, strict=True):
        assert (got.prompt_read, expected.prompt_read) == (1, None)
        torch.testing.assert_close(got.logits_BTV, expected.logits_BTV, **CLOSE)
        grads = [gradients(each.logits_BTV.square().sum(), model.parameters()) for each in (got, expected)]
        torch.testing.assert_close(*grads, **CLOSE)
        assert got.counters.flops < expected.counters.flops
        with pytest.raises(ValueError, match="holds no hidden states of its prompt: pass whole=True"):
            got.history()
        assert expected.history().prompt[0].shape == (6, 3, D)
    kept = rollout(model, PLAN, PROMPT, mask_BN, streams=streams(2), whole=True)
    assert kept.history().hidden_BSD.shape == (2, 3 + 6 - 1, D)


# ---------------------------------------------------------------------------------------------------------------------
# Counters and parts


class Counting:
    """A model that counts what it is asked to do, slot by slot and readout by readout."""

    def __init__(self, model):
        self.model, self.forwards, self.flop, self.reads = model, 0, 0, 0

    table = property(lambda self: self.model.table)

    def flops(self, new, past=0, read=None):
        return self.model.flops(new, past, read)

    def forward(self, embeddings_BTD, cache=None, **options):
        self.forwards += 1
        past = 0 if cache is None else cache.size
        read = embeddings_BTD.shape[1] - options.get("read_from", 0)
        self.flop += len(embeddings_BTD) * self.model.flops(embeddings_BTD.shape[1], past, read)
        return self.model.forward(embeddings_BTD, cache, **options)

    def readout(self, hidden):
        self.reads += hidden.numel() // D
        return self.model.readout(hidden)


@pytest.mark.parametrize("worth", [1, 100])
def test_counters_are_what_the_model_did(model, monkeypatch, worth):
    """Nobody waits and nothing is padded here, so the model's own count is the record's."""
    monkeypatch.setattr(tinylatent.engine.rollout, "WORTH", worth)
    counting = Counting(model)
    trace = rollout(counting, PLAN, PROMPT, streams=streams(6), groups=3)
    spent = trace.counters
    assert (spent.forwards, counting.forwards) == (6, 6)
    assert spent.slots == 2 * 3 + 6 * 5
    assert (spent.steps, spent.tokens, spent.latents) == (36, 12, 24)
    mixtures = 12
    assert spent.flops == counting.flop + 2 * V * D * (counting.reads + mixtures)
    more = resume(trace, (Segment(GREEDY, 1),))
    assert (more.forwards, counting.forwards) == (7, 7)
    assert more.counters.flops == counting.flop + 2 * V * D * (counting.reads + mixtures)
    again = Counting(model)
    forced = replay(again, trace)
    assert forced.counters.flops == again.flop + 2 * V * D * (again.reads + mixtures)
    assert forced.counters.forwards == 1
    assert (spent + spent).slots == 2 * spent.slots


def test_counters_leave_out_waiting_and_padding(model):
    """A padded, early row costs what it costs alone."""
    mask_BN = torch.tensor([[False, True, True], [True, True, True]])
    plan = lambda steps: (Segment(MIXTURE, torch.tensor(steps)), Segment(GREEDY, 1))  # noqa: E731
    both = rollout(model, plan([1, 3]), PROMPT, mask_BN).counters
    alone = [rollout(model, plan([1]), PROMPT[:1, 1:]), rollout(model, plan([3]), PROMPT[1:])]
    for name in ("slots", "steps", "tokens", "latents", "flops"):
        assert getattr(both, name) == sum(getattr(trace.counters, name) for trace in alone), name


def test_a_part_is_the_rows_it_says(model):
    trace = rollout(model, PLAN, PROMPT, streams=streams(6), groups=3)
    for rows in (slice(0, 3), slice(3, 6)):
        part = trace.part(rows)
        assert torch.equal(part.logits_BTV, trace.logits_BTV[rows])
        assert torch.equal(part.answer(), trace.answer()[rows])
        assert torch.equal(part.sampled_log_prob_BT, trace.sampled_log_prob_BT[rows])
        torch.testing.assert_close(replay(model, part).log_prob_BT, trace.log_prob_BT[rows], **CLOSE)
    parts = trace.part(slice(0, 3)).counters + trace.part(slice(3, 6)).counters
    assert (parts.slots, parts.flops, parts.tokens) == (
        trace.counters.slots,
        trace.counters.flops,
        trace.counters.tokens,
    )


def test_groups_know_their_places(model):
    trace = rollout(model, PLAN, PROMPT, streams=streams(6), groups=3)
    assert trace.group_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert trace.place_B.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_model_needs_no_module(model):
    """Any object with the protocol's members will do."""

    class Echo:
        """Hidden states are the inputs."""

        table = Table(torch.eye(4, dtype=torch.float64), scale=2.0)

        def forward(self, embeddings_BTD, cache=None, mask_BS=None, positions_BT=None, edit=None, read_from=0):
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


# ---------------------------------------------------------------------------------------------------------------------
# History


class Averaging(Token):
    """Draws a token from logits moved by the mean of all it has read, and looks at what it did so far."""

    parallel, reads_history = True, True

    def __init__(self, temperature):
        super().__init__(temperature)
        self.seen = []

    def _logits(self, state):
        history = state.history()
        self.seen.append([span.action["id"].tolist() for span in history.spans if span.name == "Averaging"])
        mask_BS1 = history.mask_BS[..., None]
        mean_BD = (history.hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)
        return state.logits + 3 * F.linear(mean_BD, state.table.weight)


def test_a_history_ends_where_the_step_stands(model, gradients):
    """What was drawn and its scores, in the trace and in a replay, are of the same history: no step sees later ones."""
    thought = Averaging(1.0)
    plan = (Segment(thought, torch.tensor([3, 2])), Segment(Token(1.0), 1))
    trace = rollout(model, plan, PROMPT, streams=streams(2), grad=True)
    first, second = thought.seen[0], thought.seen[2]
    assert first == []
    assert torch.tensor(second[0]).shape == (2, 1)  # the step before, of both rows
    torch.testing.assert_close(trace.sampled_log_prob_BT, trace.log_prob_BT.detach(), check_dtype=False, **CLOSE)
    again = replay(model, trace)
    torch.testing.assert_close(again.log_prob_BT, trace.log_prob_BT, **CLOSE)
    grads = [gradients(each.log_prob_BT.sum(), model.parameters()) for each in (again, trace)]
    torch.testing.assert_close(*grads, **CLOSE)


def test_a_history_is_whole_or_refused(model, monkeypatch):
    """A thought, or the end of a repeat, that reads it without saying so does not get half of it."""
    monkeypatch.setattr(tinylatent.engine.rollout, "WORTH", 1)
    silent = Averaging(1.0)
    silent.reads_history = False
    with pytest.raises(ValueError, match="says so by reads_history, or pass whole=True"):
        rollout(model, (Segment(silent, 2),), PROMPT, streams=streams(2))
    until = lambda state: state.history().prompt[0][:, 0, 0] > 9  # noqa: E731
    ends = Repeat((Segment(GREEDY, 1),), until, 2)
    with pytest.raises(ValueError, match="says so by reads_history"):
        rollout(model, (ends,), PROMPT)
    assert rollout(model, (Repeat(ends.segments, until, 2, reads_history=True),), PROMPT).steps == 2


def test_a_thought_that_only_says_parallel_is_found_out(model):
    """It reads its state to make an input, which one forward for all cannot give it."""

    class Wrong(Gated):
        def __init__(self):
            super().__init__(1.0)
            self.parallel = True

    trace = rollout(model, (Segment(Wrong(), 2), Segment(GREEDY, 1)), PROMPT, streams=streams(2))
    with pytest.raises(ValueError, match="says parallel reads read of its state"):
        replay(model, trace)


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


def test_weights_of_thoughts_are_watched_too(model):
    thought = Stopping(HIDDEN, Always(0))
    trace = rollout(model, (Segment(thought, 2), Segment(GREEDY, 1)), PROMPT, streams=streams(2))
    with torch.no_grad():
        thought.head.logit.add_(1)
    with pytest.raises(ValueError, match="the weights have moved"):
        trace.check_weights()


def test_places_and_logits_do_not_depend_on_chunks(model, monkeypatch):
    """Places within groups, and float32 for models of half precision."""
    places = []

    class Placed(MultiToken):
        def log_prob(self, state, action):
            places.append(state.place_B.tolist())
            return super().log_prob(state, action)

    monkeypatch.setattr(tinylatent.engine.trace, "KEPT_BYTES", 4 * 2 * V * 8)
    trace = rollout(model, (Segment(Placed(2), 1), Segment(GREEDY, 1)), PROMPT, streams=streams(6), groups=3)
    places.clear()
    assert trace.log_prob_BT.shape == (6, 2)
    assert places == [[0, 1, 2], [0, 1, 2]]
    half = copy.deepcopy(model).bfloat16()
    assert rollout(half, PLAN, PROMPT, streams=streams(2)).log_prob_BT.dtype == torch.float32
