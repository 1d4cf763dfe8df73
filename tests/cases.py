"""Plans for batches, drawn or written down, and what it means that a run is naive recomputation or another run.

Plans and shapes are drawn: all thoughts of `thoughts`, given actions, steps per row, a least number of steps, passes
repeated until a row is done, left-padded prompts, groups and position offsets.
"""

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from naive import gradients, naive, naive_rollout
from thoughts import THOUGHTS, D, V

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import force, replay
from tinylatent.engine.plan import Repeat, Segment, distinct
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def streams(rows, seed=0):
    """A stream for each row."""
    return Streams(seed, torch.arange(rows))


@dataclass
class Case:
    """A batch and a plan for it."""

    prompts: list[list[int]]
    offset_B: torch.Tensor | None
    group: int
    plan: tuple
    seed: int = 0

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
        return streams(len(self.prompts) * self.group, self.seed)

    def run(self, model, **changes):
        options = {
            "streams": self.streams(),
            "offset_B": self.offset_B,
            "group": self.group,
            **changes,
        }
        return rollout(model, self.plan, self.prompt_BN, self.mask_BN, **options)

    def naive(self, model, row):
        """The steps of one rollout by definition."""

        def draw(step):
            streams = Streams(self.seed, torch.tensor([row]))
            streams.at(torch.tensor([step]))
            return streams

        b = row // self.group
        offset = 0 if self.offset_B is None else int(self.offset_B[b])
        return naive_rollout(model, self.plan, self.prompts[b], offset, b, draw)


# ---------------------------------------------------------------------------------------------------------------------
# Drawn


def given_action(thought, rows, steps, seed):
    """Any action of a thought; its numbers ask for gradients."""
    return naive(thought).given(rows, steps, torch.Generator().manual_seed(seed))


@st.composite
def drawn_segments(draw, rows, names, forced, most=3):
    """How to make a segment: a function, because runtime type checks would disturb the search."""
    thought = THOUGHTS[draw(st.sampled_from(names))]
    per_row = st.lists(st.integers(0, most), min_size=rows, max_size=rows).map(torch.tensor)
    steps = draw(st.one_of(st.integers(0, most), per_row))
    if forced == "never" or (forced == "sometimes" and draw(st.booleans())):
        min_steps = draw(st.integers(0, 2))
        return lambda: Segment(thought, steps, min_steps=min_steps)
    held = (steps if isinstance(steps, int) else int(steps.max())) + draw(st.integers(0, 1))
    seed = draw(st.integers(0, 99))
    return lambda: Segment(thought, steps, given_action(thought, rows, held, seed))


@st.composite
def drawn_repeats(draw, rows, names):
    """How to make one or two segments repeated until a hidden unit exceeds a bound."""
    inside = draw(st.lists(drawn_segments(rows, names, "never", most=2), min_size=1, max_size=2))
    bound, at_most = draw(st.sampled_from([-0.5, 0.0, 0.5])), draw(st.integers(1, 3))
    return lambda: Repeat(tuple(make() for make in inside), lambda state: state.hidden[:, 0] > bound, at_most)


@st.composite
def cases(draw, names=tuple(THOUGHTS), forced="sometimes", most_group=3):
    """How to make a batch of one to three prompts, with a plan of two to four parts; the last says one token."""
    rows = draw(st.integers(1, 3))
    prompts = draw(st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=4), min_size=rows, max_size=rows))
    part = drawn_segments(rows, names, forced)
    if forced != "always":
        part = st.one_of(part, part, drawn_repeats(rows, names))
    parts = draw(st.lists(part, min_size=1, max_size=3))
    offset_B = draw(st.none() | st.lists(st.integers(0, 4), min_size=rows, max_size=rows).map(torch.tensor))
    group, seed = draw(st.integers(1, most_group)), draw(st.integers(0, 9))

    def make():
        end = Segment(GREEDY, 1, given_action(GREEDY, rows, 1, 0) if forced == "always" else None)
        return Case(prompts, offset_B, group, (*(make() for make in parts), end), seed)

    return make


# ---------------------------------------------------------------------------------------------------------------------
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
    """The score of what a run's rows did, waiting steps left out."""
    at_BT = acted(run)
    inputs = run.inputs_BTD[live(run)[:, :-1]]
    return score(run.hidden_BTD[at_BT], run.logits_BTV[at_BT], inputs, run.log_prob_BT)


def leaves(model, run, plan=()):
    """Everything a run may depend on: the model, what its thoughts are made of, and the numbers of given actions."""
    found = list(model.parameters())
    for span in run.thought_spans:
        found += [x for x in span.thought.parameters() if not any(x is other for other in found)]
    given = [segment.given for segment in distinct(plan) if segment.given is not None]
    return found + [x for action in given for x in action.values.values() if x.requires_grad]


def assert_equal_runs(model, got, expected, plan=()):
    """The same traces, waiting steps included, with the same gradients where both have them."""
    for name in ("hidden_BTD", "logits_BTV", "inputs_BTD", "log_prob_BT"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), **CLOSE)
    assert torch.equal(live(got), live(expected))
    assert torch.equal(acted(got), acted(expected))
    assert torch.equal(got.length_B, expected.length_B)
    assert torch.equal(got.group_B, expected.group_B)
    assert thought_names(got) == thought_names(expected)
    if got.logits_BTV.requires_grad and expected.logits_BTV.requires_grad:
        wanted = leaves(model, expected, plan)
        got_G, expected_G = (gradients(run_score(run), wanted) for run in (got, expected))
        assert expected_G.abs().max() > 1e-3
        torch.testing.assert_close(got_G, expected_G, **CLOSE)


def assert_sampled(run):
    """What was stored when actions were drawn is their log-probability; elsewhere 0."""
    drawn_BT = acted(run) if run.drawn_BT is None else run.drawn_BT
    expected = run.log_prob_BT.masked_fill(~drawn_BT, 0.0).detach()
    torch.testing.assert_close(run.sampled_log_prob_BT, expected, check_dtype=False, **CLOSE)
    assert not run.sampled_log_prob_BT.requires_grad


def assert_naive(model, case, run):
    """Every row of a run is what the reference does for it alone, and so are the gradients of all rows together."""
    names, at_BT, slot_BT, total = thought_names(run), acted(run), live(run), 0.0
    last = run.logits_BTV.shape[1] - 1
    for row in range(len(case.prompts) * case.group):
        steps = case.naive(model, row)
        taken = at_BT[row].nonzero().flatten().tolist()
        assert [names[t] for t in taken] == [step.thought for step in steps]
        slots = [t for t, step in zip(taken, steps, strict=True) if step.slot]
        assert slot_BT[row].tolist() == [t in slots for t in range(run.steps)]
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
    wanted = leaves(model, run, case.plan)
    torch.testing.assert_close(gradients(run_score(run), wanted), gradients(total, wanted), **CLOSE)


def assert_a_thought_is_its_definition(model, thought):
    """In the engine, beside others: sampled, given, forced, replayed; padded, shifted, in groups, steps of each row.

    A new thought registers its definition (`class X(naive.Naive, of=Thought)`) and is taken through this.
    """
    steps_B = torch.tensor([3, 1])
    plan = (Segment(thought, steps_B), Segment(GREEDY, 2))
    case = Case([[1, 2], [5]], torch.tensor([2, 0]), 2, plan, 3)
    run = case.run(model, grad=True)
    assert_naive(model, case, run)
    assert_equal_runs(model, replay(model, run), run)
    given = (given_action(thought, 2, 3, 5), given_action(GREEDY, 2, 2, 1))
    told = replace(case, group=1, plan=tuple(replace(a, given=b) for a, b in zip(plan, given, strict=True)))
    assert_naive(model, told, force(model, told.plan, told.prompt_BN, told.mask_BN, offset_B=told.offset_B))
