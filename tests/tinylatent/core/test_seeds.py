"""Randomness is a pure function of seed, row and step, and looks random.

`mix` is held against splitmix64 in plain integers and against published values; streams against independence of the
batch. Statistical tests fix their seed, so they never flicker; each states how often it would fail, on correct code, if
the seed were drawn anew.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tinylatent.core.seeds import PURPOSES, Seeds, Streams, derive, mix

WORD = 1 << 64
FALSE_ALARM = 1e-6


def splitmix64(state):
    """The output of splitmix64 for a state, in unbounded integers (Steele, Lea, Flood 2014, figure 13)."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def unmix(output):
    """The state whose splitmix64 output this is: every stage undone in turn."""

    def unshift(z, bits):
        x = z
        for _ in range(64 // bits):
            x = z ^ (x >> bits)
        return x

    z = unshift(output, 31) * pow(0x94D049BB133111EB, -1, WORD) % WORD
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD
    return (unshift(z, 30) - 0x9E3779B97F4A7C15) % WORD


def signed(word):
    return word - WORD if word >= WORD // 2 else word


# splitmix64


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=8))
def test_mix_is_splitmix64(states):
    assert mix(torch.tensor(states)).tolist() == [signed(splitmix64(state)) for state in states]


def test_mix_gives_the_published_sequence():
    """The first outputs of seed 1234567, as implementations in many languages print them."""
    states = [signed((1234567 + i * 0x9E3779B97F4A7C15) % WORD) for i in range(5)]
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [word % WORD for word in mix(torch.tensor(states)).tolist()] == published


# Streams


def table(streams, steps, draws=3):
    """Uniforms of every row (B, steps, draws)."""
    out = []
    for step in range(steps):
        streams.at(torch.full_like(streams.root_B, step))
        out.append(streams.uniform(draws))
    return torch.stack(out, 1)


@given(rows=st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5), seed=st.integers(-(1 << 70), 1 << 70))
def test_a_row_draws_the_same_in_any_batch(rows, seed):
    whole = table(Streams(seed, torch.tensor(rows)), 3)
    for b, row in enumerate(rows):
        assert torch.equal(whole[b : b + 1], table(Streams(seed, torch.tensor([row])), 3))


def test_rows_may_stand_at_different_steps():
    streams = Streams(5, torch.arange(3))
    whole = table(Streams(5, torch.arange(3)), 4)
    streams.at(torch.tensor([3, 0, 2]))
    assert torch.equal(streams.uniform(3), whole[[0, 1, 2], [3, 0, 2]])


def test_draws_of_a_step_are_numbered_by_call():
    one, many = Streams(5, torch.arange(3)), Streams(5, torch.arange(3))
    assert torch.equal(torch.cat([one.uniform(), one.uniform(2)], 1), many.uniform(3))
    many.at(torch.zeros(3, dtype=torch.long))
    one.at(torch.zeros(3, dtype=torch.long))
    assert torch.equal(one.uniform(), many.uniform())


def test_seeds_rows_steps_and_draws_all_matter():
    """4 seeds x 5 rows x 6 steps x 7 draws give 840 different numbers (a clash of 53-bit numbers: below 1e-10)."""
    values = torch.stack([table(Streams(seed, torch.arange(5)), 6, 7) for seed in range(4)])
    assert values.unique().numel() == 840


@pytest.mark.slow
def test_uniforms_are_uniform():
    """Kolmogorov-Smirnov for each of four ways to walk through the streams; false alarm 1e-6 in all."""
    walks = {
        "rows": Streams(1, torch.arange(20_000)).uniform().flatten(),
        "draws": Streams(2, torch.arange(1)).uniform(20_000).flatten(),
        "steps": table(Streams(3, torch.arange(1)), 3_000, 1).flatten(),
        "seeds": torch.cat([Streams(seed, torch.arange(1)).uniform().flatten() for seed in range(3_000)]),
    }
    for name, values in walks.items():
        assert stats.kstest(values.numpy(), "uniform").pvalue > FALSE_ALARM / len(walks), name


def test_neighbours_are_not_correlated():
    """Rows, steps and draws next to each other: |r| of n pairs is normal with deviation 1 / sqrt(n); false alarm 1e-6.

    A seed that differs in one bit counts as a neighbour too.
    """
    values = table(Streams(7, torch.arange(101)), 101, 2)
    other = table(Streams(6, torch.arange(101)), 101, 2)
    pairs = {
        "rows": (values[1:], values[:-1]),
        "steps": (values[:, 1:], values[:, :-1]),
        "draws": (values[..., 0], values[..., 1]),
        "seeds": (values, other),
        "row and step": (values[1:, :-1], values[:-1, 1:]),
    }
    for name, (a, b) in pairs.items():
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert 2 * stats.norm.sf(abs(r) * a.numel() ** 0.5) > FALSE_ALARM / len(pairs), name


@pytest.mark.parametrize("word", [0, WORD - 1])
def test_uniforms_never_reach_zero_or_one(word):
    """Even where the 64 bits are all zero or all one: a 1 would send sampling past the last token."""
    streams = Streams(0, torch.zeros(1, dtype=torch.long))
    streams.step_B = torch.tensor([signed(unmix(word) ^ splitmix64(0))])
    value = streams.uniform().item()
    assert 0 < value < 1
    assert value == pytest.approx(word / WORD, abs=1e-15)


def test_normals_have_the_moments_of_a_standard_normal():
    """Mean, variance, skewness and kurtosis of 80 000 normals, and Kolmogorov-Smirnov; false alarm 1e-6 in all."""
    values = Streams(11, torch.arange(20_000)).normal(4)
    x = values.flatten()
    n = len(x)
    moments = {
        "mean": (x.mean(), 1),
        "variance": ((x**2).mean() - 1, 2),
        "third": ((x**3).mean(), 15),
        "fourth": ((x**4).mean() - 3, 96),  # 105 - 9
    }
    tests = {name: 2 * stats.norm.sf(abs(value.item()) / (var / n) ** 0.5) for name, (value, var) in moments.items()}
    tests["distribution"] = stats.kstest(x.numpy(), "norm").pvalue
    for a, b in itertools.combinations(range(4), 2):
        r = torch.corrcoef(values[:, [a, b]].T)[0, 1].item()
        tests[f"draws {a} and {b}"] = 2 * stats.norm.sf(abs(r) * 20_000**0.5)
    for name, p in tests.items():
        assert p > FALSE_ALARM / len(tests), name


def test_normals_use_fresh_draws():
    streams = Streams(11, torch.arange(3))
    first, second = streams.normal(2), streams.normal(2)
    assert torch.cat([first, second]).unique().numel() == 12


# Seeds by purpose


def test_derive_is_stable():
    """These values are part of the format of stored runs."""
    assert derive(0) == 4246866556266386882
    assert derive(3, "sampling", "train", 7) == 3357002584771525950
    assert Seeds.all(3).derive("sampling", "train", 7) == 3357002584771525950


def test_derived_seeds_are_63_bits_and_differ():
    seeds = [derive(root, *path) for root in range(9) for path in ((), ("a",), ("b",), ("a", 0), ("a", 1))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert max(seeds) >= 1 << 61


def test_purposes_are_independent():
    """Equal roots give different streams, and changing one root changes one purpose."""
    base = Seeds.all(4)
    seeds = {purpose: base.derive(purpose) for purpose in PURPOSES}
    assert len(set(seeds.values())) == 4
    for changed in PURPOSES:
        other = Seeds(**{purpose: 5 if purpose == changed else 4 for purpose in PURPOSES})
        assert {purpose for purpose in PURPOSES if other.derive(purpose) != seeds[purpose]} == {changed}


def test_generator_is_fresh_and_follows_its_purpose():
    seeds = Seeds.all(4)
    first, again = (torch.rand(3, generator=seeds.generator("order", 2)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(3, generator=seeds.generator("order", 3)))
    assert not torch.equal(first, torch.rand(3, generator=seeds.generator("init", 2)))
    assert seeds.generator("order", 2).initial_seed() == seeds.derive("order", 2)


def test_unknown_purposes_are_rejected():
    with pytest.raises(ValueError, match=r"unknown purpose 'dropout'.*split, init, order, sampling"):
        Seeds().derive("dropout")


def test_derived_and_repeated_streams_are_independent_and_their_own():
    """Another round, another rollout of the same row: other numbers, which are the row's own in any batch."""
    rows = torch.arange(5)
    whole = Streams(3, rows)
    for make in (lambda s: s.derived("round", 1), lambda s: s.derived("round", 2), lambda s: s.repeated(2)):
        fresh = make(Streams(3, rows))
        own = fresh.uniform(4)
        assert not torch.isin(own, whole.uniform(4)).any()
        fresh.at(0)
        assert torch.equal(fresh.uniform(4), own)
    assert not torch.equal(whole.derived(1).uniform(), whole.derived(2).uniform())
    twice, few = whole.repeated(2), Streams(3, rows[3:4]).repeated(2)
    assert torch.equal(twice.uniform()[6:8], few.uniform())
    assert len(twice.step_B.unique()) == 10
    whole.at(0)
    child = whole.branch()
    before = child.uniform(2)
    child.at(7)
    assert not torch.equal(child.uniform(2), whole.uniform(2))
    assert before.shape == (5, 2)
