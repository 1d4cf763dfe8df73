"""The engine equals naive recomputation, in values and gradients, and its shortcuts equal the engine.

The reference runs one row at a time: no padding, no cache, the whole input sequence built anew for every step, and its
own reading of what each thought does. Plans and shapes are drawn: tokens greedy, sampled and stopping (with a slot and
without), mixtures dense and sparse, hidden states, pauses, a gated thought, a thought that reads its history, latents
that stop by themselves, given actions, steps per row, a least number of steps, passes repeated until a row is done,
left-padded prompts, groups and position offsets. Everything in float64 to 1e-9, unless said otherwise.
"""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from fakes import Gated
from hypothesis import given, settings
from hypothesis import strategies as st

import tinylatent.engine.force
import tinylatent.engine.rollout
import tinylatent.engine.trace
from tinylatent.core.seeds import Streams
from tinylatent.engine.controls import Noise, Shuffled, Zero
from tinylatent.engine.distributions import log_dirichlet
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Repeat, Segment
from tinylatent.engine.rollout import resume, rollout
from tinylatent.engine.thought import Action, State
from tinylatent.engine.thoughts import Dirichlet, Hidden, Mixture, MultiToken, Pause, Stopping, Token
from tinylatent.models.backbone import Table

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
V, D = 7, 8


class Recall(Token):
    """Greedy tokens plus the state and the mean of everything read: `embed` needs more than the action."""

    parallel = False
    reads_history = True

    def embed(self, state, action):
        history = state.history()
        mask_BS1 = history.mask_BS[..., None]
        means = [(x * mask_BS1).sum(1) / mask_BS1.sum(1) for x in (history.inputs_BSD, history.hidden_BSD)]
        return super().embed(state, action) + state.hidden / 2 + means[0] - means[1]


def head(seed):
    """A head with weights that decide."""
    linear, generator = torch.nn.Linear(D, 1).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return linear


PAUSE = Pause(D, torch.Generator().manual_seed(1)).double()
THOUGHTS = {
    "greedy": Token(),
    "stopping": Token(stop_ids=(0, 1, 2)),
    "sampled": Token(1.5, stop_ids=(4,)),
    "mixture": Mixture(),
    "hidden": Hidden(),
    "pause": PAUSE,
    "tokens": MultiToken(2, 1.3),
    "simplex": Dirichlet(1.5),
    "recall": Recall(stop_ids=(5, 6)),
    "gated": Gated(1.2, stop_ids=(3,)),
    "slotless": Token(1.1, stop_ids=(0, 1, 2), stop_slot=False),
    "ending": Stopping(Hidden(), head(0)),
    "deciding": Stopping(Mixture(), head(1), temperature=0.0),
}
PARALLEL = [name for name, thought in THOUGHTS.items() if thought.parallel]


# Drawn cases


@dataclass
class Case:
    """A batch and a plan for it."""

    prompts: list[list[int]]
    offset_B: torch.Tensor | None
    groups: int
    plan: tuple
    seed: int

    @property
    def prompt_BN(self):
        N = max(map(len, self.prompts))
        return torch.tensor([[3] * (N - len(prompt)) + prompt for prompt in self.prompts])

    @property
    def mask_BN(self):
        N = max(map(len, self.prompts))
        if min(map(len, self.prompts)) == N:
            return None
        return torch.arange(N) >= N - torch.tensor([len(prompt) for prompt in self.prompts])[:, None]

    def streams(self):
        return Streams(self.seed, torch.arange(len(self.prompts) * self.groups))

    def run(self, model, **changes):
        options = {"streams": self.streams(), "offset_B": self.offset_B, "groups": self.groups, **changes}
        return rollout(model, self.plan, self.prompt_BN, self.mask_BN, **options)


def given_action(name, rows, steps, seed):
    """Any action of a thought; its numbers ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    match THOUGHTS[name]:
        case Token() as token:
            return token.given(torch.randint(V, (rows, steps), generator=generator))
        case Stopping(inner=inner):
            action = given_action("hidden" if isinstance(inner, Hidden) else "mixture", rows, steps, seed)
            stop = torch.rand(rows, steps, generator=generator) < 0.3
            return Action(action.values, stop, stop_slot=False)
        case Mixture() as mixture if seed % 2:
            ids = torch.randint(V, (rows, steps, 3), generator=generator)
            shares = torch.rand(rows, steps, 3, generator=generator, dtype=torch.float64)
            return mixture.given_sparse(ids, shares.requires_grad_())
        case Mixture() as mixture:
            alpha = torch.rand(rows, steps, V, generator=generator, dtype=torch.float64)
            return mixture.given((alpha / alpha.sum(-1, keepdim=True)).requires_grad_())
        case Hidden():
            return Action(
                {"hidden": torch.randn(rows, steps, D, generator=generator, dtype=torch.float64).requires_grad_()}
            )
        case Pause() as pause:
            return pause.given((rows, steps))
        case MultiToken() as tokens:
            return tokens.given(torch.randint(V, (rows, steps, tokens.samples), generator=generator))
        case Dirichlet() as simplex:
            log_a = torch.randn(rows, steps, V, generator=generator, dtype=torch.float64).log_softmax(-1)
            return simplex.given(log_a.requires_grad_())


@st.composite
def segments(draw, rows, names, forced, most=3):
    """How to make a segment: a function, because runtime type checks would disturb the search."""
    name = draw(st.sampled_from(names))
    per_row = st.lists(st.integers(0, most), min_size=rows, max_size=rows).map(torch.tensor)
    steps = draw(st.one_of(st.integers(0, most), per_row))
    if forced == "never" or (forced == "sometimes" and draw(st.booleans())):
        least = draw(st.integers(0, 2))
        return lambda: Segment(THOUGHTS[name], steps, least=least)
    held = (steps if isinstance(steps, int) else int(steps.max())) + draw(st.integers(0, 1))
    seed = draw(st.integers(0, 99))
    return lambda: Segment(THOUGHTS[name], steps, given_action(name, rows, held, seed))


@st.composite
def repeats(draw, rows, names):
    """How to make one or two segments repeated until a hidden unit exceeds a bound."""
    inside = draw(st.lists(segments(rows, names, "never", most=2), min_size=1, max_size=2))
    bound, at_most = draw(st.sampled_from([-0.5, 0.0, 0.5])), draw(st.integers(1, 3))
    return lambda: Repeat(tuple(make() for make in inside), lambda state: state.hidden[:, 0] > bound, at_most)


@st.composite
def cases(draw, names=tuple(THOUGHTS), forced="sometimes", most_groups=3):
    """How to make a batch of one to three prompts, with a plan of two to four parts; the last says one token."""
    rows = draw(st.integers(1, 3))
    prompts = draw(st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=4), min_size=rows, max_size=rows))
    part = segments(rows, names, forced)
    if forced != "always":
        part = st.one_of(part, part, repeats(rows, names))
    parts = draw(st.lists(part, min_size=1, max_size=3))
    offset_B = draw(st.none() | st.lists(st.integers(0, 4), min_size=rows, max_size=rows).map(torch.tensor))
    groups, seed = draw(st.integers(1, most_groups)), draw(st.integers(0, 9))

    def make():
        end = Segment(Token(), 1, given_action("greedy", rows, 1, 0) if forced == "always" else None)
        return Case(prompts, offset_B, groups, (*(make() for make in parts), end), seed)

    return make


# The reference


@dataclass
class Step:
    """One step of one row."""

    thought: str
    hidden: torch.Tensor
    logits: torch.Tensor
    input: torch.Tensor
    log_prob: torch.Tensor
    slot: bool


def naive_token(logits, threshold):
    """The token at which the cumulative distribution passes the threshold."""
    total = 0.0
    for i, p in enumerate(logits.softmax(0).tolist()):
        total += p
        if threshold < total:
            return torch.tensor(i)


def naive_choice(segment, b, t, hidden, logits, draw):
    """What is chosen, by the definition of each thought: an id, a distribution, or nothing."""
    if segment.given is not None:
        values = segment.given.values
        if "shares" in values:
            return sum(values["shares"][b, t, k] * F.one_hot(values["ids"][b, t, k], V) for k in range(3))
        return next(iter(values.values()))[b, t]
    match segment.thought.inner if isinstance(segment.thought, Stopping) else segment.thought:
        case Hidden():
            return hidden
        case Token(temperature=0):
            return logits.argmax()
        case Token(temperature=temperature):
            return naive_token(logits / temperature, draw().uniform().item())
        case MultiToken(temperature=temperature, samples=samples):
            streams = draw()
            thresholds = [streams.uniform().item() for _ in range(samples)]
            return torch.stack([naive_token(logits / temperature, threshold) for threshold in thresholds])
        case Dirichlet(gamma=gamma):
            return log_dirichlet(draw(), (gamma * logits.softmax(0)).log()[None])[0].detach()
        case Mixture():
            return logits.exp() / logits.exp().sum()


def naive_rollout(model, naive_hidden, case, row):
    """All steps of one rollout, each from the row's whole input sequence."""
    b = row // case.groups
    offset = 0 if case.offset_B is None else int(case.offset_B[b])
    table = model.embedding
    inputs, steps = [table[i] for i in case.prompts[b]], []

    def read():
        hidden_SD = naive_hidden(model, inputs, range(offset, offset + len(inputs)))
        return hidden_SD, table @ hidden_SD[-1]

    def draw():
        streams = Streams(case.seed, torch.tensor([row]))
        streams.at(torch.tensor([len(steps)]))
        return streams

    def take(segment, t):
        hidden_SD, logits = read()
        hidden, thought, early = hidden_SD[-1], segment.thought, t < segment.least
        if isinstance(thought, Token) and early:
            barred = torch.tensor([i in thought.stop_ids for i in range(V)])
            logits_read, logits = logits, logits.masked_fill(barred, -torch.inf)
        else:
            logits_read = logits
        chosen, log_prob, stop = naive_choice(segment, b, t, hidden, logits, draw), torch.zeros(()).double(), False
        slot = True
        match thought:
            case Stopping(inner=inner, head=head, temperature=temperature):
                logit, known = head(hidden).squeeze(), segment.given is not None
                if known:
                    stop = bool(segment.given.stop[b, t])
                elif not early:
                    p = float(logit.detach().sigmoid())
                    stop = draw().uniform().item() < p if temperature else p > 0.5
                if temperature and not early:
                    log_prob = (logit if stop else -logit).sigmoid().log()
                new = chosen if isinstance(inner, Hidden) else chosen @ table
                slot = not stop
            case Gated():
                new = 0.8 * table[chosen] + 0.6 * (logits_read.softmax(0) @ table)
                log_prob = (logits / (thought.temperature or 1)).log_softmax(0)[chosen]
                stop = int(chosen) in thought.stop_ids
            case Token():
                new = table[chosen]
                log_prob = (logits / (thought.temperature or 1)).log_softmax(0)[chosen]
                stop = int(chosen) in thought.stop_ids
                slot = thought.stop_slot or not stop
                if isinstance(thought, Recall):
                    new = new + hidden / 2 + torch.stack(inputs).mean(0) - hidden_SD.mean(0)
            case Mixture():
                new = sum(chosen[i] * table[i] for i in range(V))
            case Hidden():
                new = hidden if segment.given is None else chosen
            case Pause():
                new = thought.constant_D
            case MultiToken(samples=samples):
                new = sum(table[i] for i in chosen) / samples
                log_prob = sum((logits / thought.temperature).log_softmax(0)[i] for i in chosen)
            case Dirichlet(gamma=gamma):
                new = sum(chosen[i].exp() * table[i] for i in range(V))
                shares = gamma * logits.softmax(0)
                log_prob = torch.lgamma(shares.sum()) + (shares * chosen - torch.lgamma(shares)).sum()
        if slot:
            inputs.append(new)
        steps.append(Step(type(thought).__name__, hidden, logits_read, new, log_prob, slot))
        return stop

    for part in case.plan:
        for _ in range(part.at_most if isinstance(part, Repeat) else 1):
            for segment in part.segments if isinstance(part, Repeat) else (part,):
                for t in range(segment.steps if isinstance(segment.steps, int) else int(segment.steps[b])):
                    if take(segment, t):
                        break
            if isinstance(part, Repeat):
                hidden_SD, logits = read()
                if part.until(State(hidden_SD[-1:], logits[None], Table(table))):
                    break
    return steps


# Comparisons


def live(run):
    """Which steps took a slot, always as a tensor."""
    return torch.ones(run.rows, run.steps, dtype=torch.bool) if run.live_BT is None else run.live_BT


def acted(run):
    """Which steps took an action, always as a tensor."""
    return torch.ones(run.rows, run.steps, dtype=torch.bool) if run.acted_BT is None else run.acted_BT


def thought_names(run):
    """The name of the thought of every step; spans must tile the trace."""
    assert [span.start for span in run.spans] == [0, *(span.stop for span in run.spans[:-1])]
    assert run.spans[0].name == "prompt"
    assert run.spans[-1].stop == run.prompt_BN.shape[1] + run.steps
    return [type(span.thought).__name__ for span in run.thought_spans for _ in range(span.start, span.stop)]


def score(hidden, logits, inputs, log_prob):
    """A scalar in which every number counts differently."""
    total = log_prob.sum()
    for x in (hidden, logits, inputs):
        total = total + (x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)).sin().sum()
    return total


def run_score(run):
    at_BT = acted(run)
    inputs = run.inputs_BTD[live(run)[:, :-1]]
    return score(run.hidden_BTD[at_BT], run.logits_BTV[at_BT], inputs, run.log_prob_BT)


def weights(model, plan=()):
    """Everything a trace may depend on: the model, the pause, the heads, and the numbers of given actions."""
    flat = [segment for part in plan for segment in (part.segments if isinstance(part, Repeat) else (part,))]
    given_numbers = [x for s in flat if s.given is not None for x in s.given.values.values() if x.requires_grad]
    heads = [x for name in ("ending", "deciding") for x in THOUGHTS[name].parameters()]
    return [*model.parameters(), PAUSE.constant_D, *heads, *given_numbers]


def groups_of(run):
    """Which prompt each row belongs to, as a list."""
    return run.group_B.tolist()


def assert_equal_runs(model, gradients, got, expected, plan=()):
    """The same traces, waiting steps included, with the same gradients where both have them."""
    for name in ("hidden_BTD", "logits_BTV", "inputs_BTD", "log_prob_BT"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), **CLOSE)
    assert torch.equal(live(got), live(expected))
    assert torch.equal(acted(got), acted(expected))
    assert torch.equal(got.length_B, expected.length_B)
    assert groups_of(got) == groups_of(expected)
    assert thought_names(got) == thought_names(expected)
    if got.logits_BTV.requires_grad and expected.logits_BTV.requires_grad:
        wanted = weights(model, plan)
        got_G, expected_G = (gradients(run_score(run), wanted) for run in (got, expected))
        assert expected_G.abs().max() > 1e-3
        torch.testing.assert_close(got_G, expected_G, **CLOSE)


def assert_sampled(run):
    """What was stored when actions were drawn is their log-probability; elsewhere 0."""
    drawn_BT = acted(run) if run.drawn_BT is None else run.drawn_BT
    expected = run.log_prob_BT.masked_fill(~drawn_BT, 0.0).detach()
    torch.testing.assert_close(run.sampled_log_prob_BT, expected, check_dtype=False, **CLOSE)
    assert not run.sampled_log_prob_BT.requires_grad


def assert_naive(model, naive_hidden, gradients, case, run):
    """Every row of a run is what the reference does for it alone, and so are the gradients of all rows together."""
    names, at_BT, slot_BT, total = thought_names(run), acted(run), live(run), 0.0
    last = run.logits_BTV.shape[1] - 1
    for row in range(len(case.prompts) * case.groups):
        steps = naive_rollout(model, naive_hidden, case, row)
        taken = at_BT[row].nonzero().flatten().tolist()
        assert [names[t] for t in taken] == [step.thought for step in steps]
        assert slot_BT[row].tolist() == [
            t in [u for u, s in zip(taken, steps, strict=True) if s.slot] for t in range(run.steps)
        ]
        inputs = [step.input for step, t in zip(steps, taken, strict=True) if t < last and step.slot]
        expected = [
            torch.stack([step.hidden for step in steps]),
            torch.stack([step.logits for step in steps]),
            torch.stack(inputs) if inputs else torch.zeros(0, D, dtype=torch.float64),
            torch.stack([step.log_prob for step in steps]),
        ]
        got = [run.hidden_BTD[row][taken], run.logits_BTV[row][taken]]
        got += [run.inputs_BTD[row][slot_BT[row][:-1]], run.log_prob_BT[row][taken]]
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        total = total + score(*expected)
    assert (run.log_prob_BT[~at_BT] == 0).all()
    assert torch.equal(run.length_B, slot_BT.sum(1))
    assert_sampled(run)
    wanted = weights(model, case.plan)
    torch.testing.assert_close(gradients(run_score(run), wanted), gradients(total, wanted), **CLOSE)


# Rollout


@settings(max_examples=60)
@given(make=cases())
def test_rollout_is_naive_recomputation(model, naive_hidden, gradients, make):
    case = make()
    assert_naive(model, naive_hidden, gradients, case, case.run(model, grad=True))


@pytest.mark.parametrize("name", THOUGHTS)
def test_each_thought_alone_is_naive_recomputation(model, naive_hidden, gradients, name):
    plan = (Segment(THOUGHTS[name], torch.tensor([3, 1, 4])), Segment(Token(), 2))
    case = Case([[1, 2], [5], [4, 4, 6]], torch.tensor([2, 0, 1]), 2, plan, seed=3)
    assert_naive(model, naive_hidden, gradients, case, case.run(model, grad=True))


def test_repeat_stops_each_row_on_its_own(model, naive_hidden, gradients):
    """Rows finish after different numbers of passes, and those that are done wait."""
    plan = (Repeat((Segment(Hidden(), 1), Segment(Token(), 1)), lambda state: state.hidden[:, 2] > -0.4, 4),)
    case = Case([[i] for i in range(V)], None, 1, (*plan, Segment(Token(), 1)), 0)
    run = case.run(model, grad=True)
    assert run.length_B.unique().tolist() == [3, 5, 7, 9]
    assert_naive(model, naive_hidden, gradients, case, run)


@pytest.mark.parametrize("padded", [False, True])
def test_float32_is_close_to_float64(tiny, gradients, padded):
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
    assert groups_of(run) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(run.prompt_BN, case.prompt_BN.repeat_interleave(4, 0))
    assert torch.equal(run.prompt_mask_BN, case.mask_BN.repeat_interleave(4, 0))
    for ids_GT in run.action("id").split(4):
        assert len(ids_GT.unique(dim=0)) == 4


def test_the_last_action_is_never_read(tiny):
    """A plan may use the model's last position, in a segment, after a repeat, and when all is forced."""
    model, prompt_BN = tiny(positions=5), torch.tensor([[1, 2, 3]])
    never = Repeat((Segment(Token(), 1),), lambda state: state.hidden[:, 0] > 1e9, 3)
    ids = Token().given(torch.tensor([[1, 1, 1]]))
    assert rollout(model, (Segment(Token(), 3),), prompt_BN).length_B.tolist() == [3]
    assert rollout(model, (never,), prompt_BN).length_B.tolist() == [3]
    assert force(model, (Segment(Token(), 3, ids),), prompt_BN).length_B.tolist() == [3]
    with pytest.raises(ValueError, match=r"6 slots: the model has 5 positions"):
        rollout(model, (Segment(Token(), 4),), prompt_BN)


def test_history_names_what_wrote_each_slot(model):
    seen = []

    class Spy(Pause):
        reads_history = True

        def embed(self, state, action):
            history = state.history()
            spans = tuple((span.name, span.start, span.stop) for span in history.spans)
            seen.append((spans, history.mask_BS.tolist(), tuple(history.inputs_BSD.shape)))
            return super().embed(state, action)

    plan = (Segment(Mixture(), torch.tensor([2, 1])), Segment(Token(), 1), Segment(Spy(D).double(), 2))
    rollout(model, plan, torch.tensor([[1, 2], [3, 4]]))
    spans = (("prompt", 0, 2), ("Mixture", 2, 4), ("Token", 4, 5))
    assert seen[0] == (spans, [[True] * 5, [True, True, True, False, True]], (2, 5, D))
    assert seen[1][0] == (*spans, ("Spy", 5, 6))  # the segment that runs, so far


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


# Resuming


@settings(max_examples=40)
@given(make=cases(), cut=st.integers(1, 3))
def test_a_resumed_rollout_is_one_rollout(model, gradients, make, cut):
    """Cut anywhere between parts; twice from the same trace, which stays as it was; replayed as a whole."""
    case = make()
    cut = min(cut, len(case.plan) - 1)
    later = tuple(part.forked(case.groups) for part in case.plan[cut:])
    first = replace(case, plan=(*case.plan[:cut], Segment(PAUSE, 1)))
    whole = replace(case, plan=(*first.plan, *case.plan[cut:])).run(model, grad=True, whole=True)
    begin = first.run(model, grad=True, whole=True)
    before = begin.hidden_BTD.clone()
    resume(begin, (Segment(Token(), 3),))
    rest = resume(begin, later, streams=case.streams(), grad=True)
    assert torch.equal(begin.hidden_BTD, before)
    assert_equal_runs(model, gradients, rest, whole, case.plan)
    assert rest.counters == whole.counters
    for name in ("inputs_BSD", "hidden_BSD", "mask_BS"):
        torch.testing.assert_close(getattr(rest.history(), name), getattr(whole.history(), name), **CLOSE)
    assert_equal_runs(model, gradients, replay(model, rest), replay(model, whole))


def test_resuming_may_take_another_model(tiny):
    """The cache is the earlier model's; what is new is read by the model that is passed."""
    old, new = tiny(0), tiny(1)
    begin = rollout(old, (Segment(Token(), 1),), torch.tensor([[1, 2]]))
    plan = (Segment(Mixture(), 1), Segment(Token(), 1))
    kept, changed = resume(begin, plan), resume(begin, plan, backbone=new)
    assert torch.equal(kept.logits_BTV[:, :1], changed.logits_BTV[:, :1])
    assert not torch.allclose(kept.logits_BTV[:, 1:], changed.logits_BTV[:, 1:])
    assert changed.backbone is new


# Force and replay


@settings(max_examples=60)
@given(make=cases(PARALLEL, forced="always", most_groups=1))
def test_force_is_the_stepwise_rollout_of_the_same_plan(model, gradients, make):
    """Values of all steps, waiting ones too, and gradients with respect to weights and given actions."""
    case = make()
    forced = force(model, case.plan, case.prompt_BN, case.mask_BN, offset_B=case.offset_B)
    assert forced.end is None
    assert forced.forwards == 1
    assert_equal_runs(model, gradients, forced, case.run(model, grad=True), case.plan)


def test_force_falls_back_to_steps_for_thoughts_that_look_around(model, naive_hidden, gradients):
    ids = torch.tensor([[1, 2, 3], [4, 6, 0]])
    plan = (Segment(THOUGHTS["recall"], torch.tensor([3, 2]), THOUGHTS["recall"].given(ids)), Segment(Token(), 1))
    plan = (plan[0], replace(plan[1], given=Token().given(ids[:, :1])))
    case = Case([[1, 2], [5]], None, 1, plan, 0)
    assert_naive(model, naive_hidden, gradients, case, force(model, plan, case.prompt_BN, case.mask_BN))


def test_force_makes_one_forward(model):
    calls = []
    edit = lambda n, site, x, slots: calls.append(x.shape[1]) or x  # noqa: E731
    plan = (
        Segment(Mixture(), 3, given_action("mixture", 2, 3, 0)),
        Segment(Token(), 2, given_action("greedy", 2, 2, 0)),
    )
    force(model, plan, torch.tensor([[1, 2], [3, 4]]), edit=edit)
    assert calls == [2 + 5 - 1] * 8


@settings(max_examples=40)
@given(make=st.one_of(cases(), cases(PARALLEL)))
def test_replay_is_the_rollout(model, gradients, make):
    """Sampled tokens with stop ids, repeats, groups, waiting rows; step by step, and in one forward."""
    run = make().run(model)
    again = replay(model, run)
    assert again.logits_BTV.requires_grad
    assert_equal_runs(model, gradients, again, run)
    assert (again.log_prob_BT - run.log_prob_BT).abs().max() < 1e-9
    assert_equal_runs(model, gradients, replay(model, again), again)


@pytest.mark.parametrize("control", [Noise, Shuffled, Zero])
@pytest.mark.parametrize("groups", [1, 3])
def test_replay_feeds_what_a_control_fed(model, gradients, control, groups):
    plan = (Segment(control(Hidden()), torch.tensor([2, 1, 3])), Segment(control(Mixture()), 2), Segment(Token(1.0), 2))
    case = Case([[1, 2], [5], [3, 3, 3]], torch.tensor([0, 3, 1]), groups, plan, 0)
    run = case.run(model)
    assert_equal_runs(model, gradients, replay(model, run), run)


def test_replay_keeps_steps_that_nobody_took(model, gradients):
    """A row that wants one step beside a row that stops at once: the third step is empty, and must stay there."""
    stopper = Token(stop_ids=tuple(range(V)))
    case = Case([[1, 2], [5, 3]], None, 1, (Segment(stopper, torch.tensor([0, 3])), Segment(Token(), 1)), 0)
    given_stops = Segment(stopper, 3, stopper.given(torch.ones(2, 3, dtype=torch.long)))
    for part in (*case.plan[:1], given_stops):
        run = replace(case, plan=(part, case.plan[1])).run(model)
        assert_equal_runs(model, gradients, replay(model, run), run)


def test_replay_is_under_the_weights_of_today(tiny, naive_hidden, gradients):
    """The actions stay, the logits change: the ratio is that of the two policies."""
    old, new = tiny(0), tiny(1)
    case = Case([[1, 2], [5]], None, 1, (Segment(Token(1.5, (4,)), 4), Segment(Mixture(), 2), Segment(Token(), 1)), 0)
    run = case.run(old)
    again = replay(new, run)
    assert torch.equal(again.action("id"), run.action("id"))
    given_case = replace(case, plan=run.plan())
    assert_naive(new, naive_hidden, gradients, given_case, again)
    assert not torch.allclose(again.log_prob_BT, run.log_prob_BT)


def test_groups_repeat_what_is_given(model):
    """A forced beginning and sampled ends: given actions belong to prompts, like steps."""
    ids = Token().given(torch.tensor([[1, 2], [3, 4]]))
    plan = (Segment(Token(), torch.tensor([2, 1]), ids), Segment(Token(1.0), 2))
    run = rollout(model, plan, torch.tensor([[1], [2]]), streams=Streams(0, torch.arange(6)), groups=3)
    assert run.spans[1].action["id"].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    assert run.length_B.tolist() == [4] * 3 + [3] * 3


def test_actions_are_found_by_name_from_the_end(model):
    plan = (Segment(Token(), 1), Segment(Mixture(), 1), Segment(Token(), 2))
    run = rollout(model, plan, torch.tensor([[1, 2]]))
    assert run.action("id").shape == (1, 2)
    assert run.action("alpha").shape == (1, 1, V)
    with pytest.raises(KeyError, match="hidden"):
        run.action("hidden")


# What users get wrong


PROMPT = torch.tensor([[1, 2], [3, 4]])
IDS = torch.tensor([[1, 2], [3, 4]])
GREEDY = (Segment(Token(), 1),)


@pytest.mark.parametrize("plan", [(Segment(Token(1.0), 1),), (Repeat((Segment(Noise(Hidden()), 1),), bool, 1),)])
def test_sampling_needs_a_stream_for_each_rollout(model, plan):
    with pytest.raises(ValueError, match=r"the plan samples: pass streams=Streams\(seed, rows\)"):
        rollout(model, plan, PROMPT)
    with pytest.raises(ValueError, match=r"streams for 2 rows: expected one for each of 6 rollouts"):
        rollout(model, plan, PROMPT, streams=Streams(0, torch.arange(2)), groups=3)


def test_given_actions_need_no_streams(model):
    token = Token(1.0)
    plan = (Segment(token, 2, token.given(IDS)),)
    assert torch.equal(rollout(model, plan, PROMPT).action("id"), IDS)


@pytest.mark.parametrize("plan", [(), (Segment(Token(), 0),), (Segment(Token(), torch.tensor([0, 0])),)])
def test_a_plan_without_steps_is_rejected(model, plan):
    with pytest.raises(ValueError, match="the plan has no steps: expected at least one"):
        rollout(model, plan, PROMPT)


@pytest.mark.parametrize("plan", [(), (Segment(Token(), 0, Token().given(IDS)),)])
def test_force_without_steps_is_rejected(model, plan):
    with pytest.raises(ValueError, match="the plan has no steps: expected at least one"):
        force(model, plan, PROMPT)


@pytest.mark.parametrize("plan", [GREEDY, (Repeat((Segment(Token(), 2, Token().given(IDS)),), bool, 1),)])
def test_force_needs_every_action(model, plan):
    with pytest.raises(ValueError, match="force needs every action given; use rollout"):
        force(model, plan, PROMPT)


def test_right_padding_is_rejected(model):
    mask_BN = torch.tensor([[True, True], [True, False]])
    forced = (Segment(Token(), 2, Token().given(IDS)),)
    with pytest.raises(ValueError, match="expected left padding"):
        rollout(model, GREEDY, PROMPT, mask_BN)
    with pytest.raises(ValueError, match="expected left padding"):
        force(model, forced, PROMPT, mask_BN)


def test_plans_for_another_batch_are_rejected(model):
    with pytest.raises(ValueError, match=r"steps of shape \(3,\): expected one for each of 2 prompts"):
        rollout(model, (Segment(Token(), torch.tensor([1, 2, 3])),), PROMPT)
    one_row = (Segment(Token(), 2, Token().given(IDS[:1])),)
    for run in (rollout, force):
        with pytest.raises(ValueError, match="actions given for 1 rows: expected one for each of 2 prompts"):
            run(model, one_row, PROMPT)


@pytest.mark.parametrize("groups", [0, -1])
def test_groups_below_one_are_rejected(model, groups):
    with pytest.raises(ValueError, match=f"groups {groups}: expected 1 or more"):
        rollout(model, GREEDY, PROMPT, groups=groups)


def test_what_cannot_be_resumed_is_rejected(model, monkeypatch):
    forced = force(model, (Segment(Token(), 2, Token().given(IDS)),), PROMPT)
    begin = rollout(model, GREEDY, PROMPT)
    for trace in (forced, begin.part(slice(0, 1))):
        with pytest.raises(ValueError, match="cannot be resumed: only what rollout or resume returned"):
            resume(trace, GREEDY)
    with pytest.raises(ValueError, match="the plan has no steps"):
        resume(begin, ())
    monkeypatch.setattr(tinylatent.engine.rollout, "WORTH", 1)
    with pytest.raises(ValueError, match="holds no hidden states of its prompt, which the plan reads: pass whole=True"):
        resume(rollout(model, GREEDY, PROMPT), (Segment(THOUGHTS["recall"], 1),))
