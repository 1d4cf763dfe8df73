"""The bench compares like with like: its bare loop computes the laboratory's own loss, and every figure is there."""

import json

import pytest
import torch

from tinylatent.cli.main import main
from tinylatent.lab import bench, bench_decoding
from tinylatent.models.pretrained import Pretrained


def test_decoding_is_timed_by_every_way_on_a_model_of_transformers(tmp_path, monkeypatch, capsys):
    """Every way takes as many steps."""
    from tinylatent.models.huggingface_small import save_small_model

    save_small_model(tmp_path / "model")
    monkeypatch.setattr(bench_decoding, "STEPS", 3)
    assert main(["bench", "--model", str(tmp_path / "model"), "--rounds", "1", "--rows", "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for count in (1, 2):
        assert found[f"generate_ms_b{count}"] > 0
        for name in bench_decoding.THOUGHTS:
            ratio = found[f"{name}_ms_b{count}"] / found[f"generate_ms_b{count}"]
            assert found[f"{name}_over_generate_b{count}"] == pytest.approx(ratio)
    assert (found["model"], found["dtype"], found["device"]) == ("model", "float32", "cpu")
    weights = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert found["checkpoint_gb"] == pytest.approx(3 * weights / 1e9, rel=0.1), "weights and two moments"
    assert found.get("checkpoint_peak_over_resident", 1.0) >= 1.0
    backbone = Pretrained(str(tmp_path / "model")).backbone(260, [], torch.Generator())
    turns = bench_decoding._ways(backbone, 2, frozen=False)
    assert turns["generate"]().shape == (2, bench_decoding.PROMPT + 3)
    assert all(turns[name]().steps == 3 for name in bench_decoding.THOUGHTS)
    with pytest.raises(ValueError, match="0 rounds with"):
        bench_decoding.decoding(backbone, (1,), 0)
    for words in (["--frozen"], ["--groups", "2", "--model", str(tmp_path / "model")]):
        assert main(["bench", *words]) == 2


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
