"""The bench compares like with like: its bare loop computes the laboratory's own loss, and every figure is there."""

import pytest
import torch

from tinylatent.lab import bench


def test_the_bare_loop_is_the_same_mathematics():
    experiment = bench.EXPERIMENT
    examples = experiment.speaker("train").examples().rows(slice(0, 32))
    model = experiment.fresh()
    bare = bench.bare_model(experiment)
    ours = experiment.method.forced(model, examples).logits_BTV
    torch.testing.assert_close(bare.logits_BTV(examples.prompt_BN, examples.frontier.dense()), ours)


def test_both_loops_learn():
    experiment = bench.EXPERIMENT
    examples = experiment.speaker("train").examples().rows(slice(0, 64))
    for loop in (bench.ours, bench.bare):
        turn = loop(examples, 16)
        losses = [turn().item() for _ in range(40)]
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_rollouts_of_several_group_sizes():
    figures = bench.grouped_rollouts((2, 8), 1, torch.device("cpu"))
    assert list(figures) == [f"rollouts{what}_per_s_g{group}" for group in (2, 8) for what in ("", "_trained")]
    assert all(value > 0 for value in figures.values())


@pytest.mark.slow
def test_many_searches_at_once(monkeypatch):
    """In float64 their answers are those of each alone; float32 is counted, its sums being another order's."""
    monkeypatch.setattr(bench, "QUESTIONS", 24)
    figures = bench.searching(turns=1)
    assert figures["searches_differ_float64"] == 0
    assert 0 <= figures["searches_differ_float32"] <= 24
    for name in ("float32", "float64"):
        ratio = figures[f"searches_per_s_{name}"] / figures[f"searches_alone_per_s_{name}"]
        assert figures[f"searches_over_alone_{name}"] == pytest.approx(ratio)


@pytest.mark.slow
def test_figures_and_profile(monkeypatch):
    monkeypatch.setattr(bench, "searching", dict)
    monkeypatch.setattr(bench, "GENERATED", {"mnns": bench.GENERATED["mnns"]})  # one task of all
    figures = bench.measure(rounds=1)
    wanted = ["train_b16_per_s", "train_b256_per_s", "eval_per_s", "matmul_gflops", "train_share", "bare_loop_per_s"]
    wanted += ["rollouts_per_s", "rollouts_trained_per_s", "mnns_100k_s", "mnns_100k_gb"]
    assert set(wanted) <= set(figures)
    assert all(value > 0 for value in figures.values())
    assert "matrix products" in bench.profile(steps=1)
