"""Plans: segments know which rows want which steps, fork with their groups, reject nonsense, and take controls."""

import pytest
import torch

from tinylatent.engine.controls import CONTROLS, Noise, Shuffled, Zero, controlled
from tinylatent.engine.plan import Repeat, Segment, distinct, segments
from tinylatent.engine.thought import Action
from tinylatent.engine.thoughts import Hidden, Mixture, Pause, Token

STEPS_B = torch.tensor([2, 0, 3])
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 1], [2, 2, 2, 2]])


def grid(segment, rows=3):
    """Who acts when, as text: one word for each row; "o" is an act that takes no slot."""
    acted_BT = segment.acted_BT(rows, torch.device("cpu"))
    marks = zip(acted_BT.tolist(), segment.live_BT(acted_BT).tolist(), strict=True)
    return ["".join("x" if live else "o" if act else "." for act, live in zip(*row, strict=True)) for row in marks]


# Steps


def test_a_number_of_steps_is_for_every_row():
    assert Segment(Token(), 2).longest == 2
    assert grid(Segment(Token(), 2)) == ["xx", "xx", "xx"]


def test_steps_may_differ_by_row():
    assert Segment(Token(), STEPS_B).longest == 3
    assert grid(Segment(Token(), STEPS_B)) == ["xx.", "...", "xxx"]


def test_given_actions_keep_their_width_where_rows_differ():
    """A batch whose longest row is missing has the shape of the whole part; a plain number of steps cuts."""
    assert grid(Segment(Token(), STEPS_B, Token().given(IDS))) == ["xx..", "....", "xxx."]
    assert grid(Segment(Token(), 3, Token().given(IDS))) == ["xxx", "xxx", "xxx"]


def test_a_given_stop_is_taken_and_ends_the_row():
    token = Token(stop_ids=(2, 6))
    assert grid(Segment(token, 4, token.given(IDS))) == ["xx..", "xx..", "x..."]
    assert grid(Segment(token, torch.tensor([1, 4, 0]), token.given(IDS))) == ["x...", "xx..", "...."]


def test_a_stop_without_a_slot_is_an_act_and_no_more():
    token = Token(stop_ids=(2, 6), stop_slot=False)
    assert grid(Segment(token, 4, token.given(IDS))) == ["xo..", "xo..", "o..."]
    assert grid(Segment(token, torch.tensor([1, 4, 0]), token.given(IDS))) == ["x...", "xo..", "...."]


def test_segments_have_names():
    assert [Segment(Token(), 1).label, Segment(Token(), 1, name="answer").label] == ["Token", "answer"]


def test_repeated_segments_run_often_and_are_listed_once():
    inside = Segment(Token(), 2), Segment(Hidden(), 1)
    plan = (Segment(Mixture(), 1), Repeat(inside, bool, 3))
    assert list(segments(plan)) == [plan[0], *inside * 3]
    assert list(distinct(plan)) == [plan[0], *inside]


def test_forks_repeat_what_is_per_row():
    segment = Segment(Token(), STEPS_B, Token().given(IDS))
    forked = segment.forked(2)
    assert forked.steps.tolist() == [2, 2, 0, 0, 3, 3]
    assert forked.given["id"].tolist() == [row for row in IDS.tolist() for _ in range(2)]
    assert Segment(Token(), 4).forked(2).steps == 4
    inside = Repeat((segment, Segment(Hidden(), 1)), bool, 5).forked(2)
    assert inside.segments[0].steps.tolist() == [2, 2, 0, 0, 3, 3]
    assert inside.segments[1].steps == 1
    assert (inside.until, inside.at_most) == (bool, 5)


# What users get wrong


@pytest.mark.parametrize("steps", [-1, torch.tensor([2, -1])])
def test_negative_steps_are_rejected(steps):
    with pytest.raises(ValueError, match="a segment of -1 steps, at least 0: expected 0 or more"):
        Segment(Token(), steps)


@pytest.mark.parametrize("steps", [5, torch.tensor([2, 5, 0])])
def test_given_actions_must_cover_the_steps(steps):
    with pytest.raises(ValueError, match="given actions cover 4 steps of a segment of 5"):
        Segment(Token(), steps, Token().given(IDS))
    with pytest.raises(ValueError, match="given actions cover 0 steps of a segment of"):
        Segment(Token(), steps, Action())


# Controls


@pytest.mark.parametrize(("name", "kind"), [("noise", Noise), ("shuffled", Shuffled), ("zero", Zero)])
def test_controls_replace_latent_thoughts_only(name, kind):
    mixture, hidden, token, pause = Mixture(), Hidden(), Token(0.5), Pause(4)
    until = lambda state: state.hidden[:, 0] > 0  # noqa: E731
    plan = (
        Segment(mixture, STEPS_B),
        Repeat((Segment(token, 2), Segment(hidden, 1)), until, 3),
        Segment(pause, 2),
        Segment(token, 1),
    )
    changed = controlled(plan, name)
    assert [type(changed[0].thought), type(changed[1].segments[1].thought)] == [kind, kind]
    assert changed[0].thought.inner is mixture
    assert changed[1].segments[1].thought.inner is hidden
    assert changed[0].steps is STEPS_B
    assert (changed[1].until, changed[1].at_most, changed[1].segments[1].steps) == (until, 3, 1)
    assert changed[1].segments[0] is plan[1].segments[0]
    assert changed[2:] == plan[2:]
    assert plan[0].thought is mixture


def test_unknown_controls_are_rejected():
    assert set(CONTROLS) == {"noise", "shuffled", "zero"}
    with pytest.raises(ValueError, match="unknown control 'silence': expected one of noise, shuffled, zero"):
        controlled((Segment(Token(), 1),), "silence")
