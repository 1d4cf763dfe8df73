"""`lens`: a folder of a run or of a model of transformers, one way or the other; what fits neither is told."""

import pytest
from tinylatent_tasks import Composition

from tinylatent.cli.main import main
from tinylatent.core.seeds import Seeds
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import train
from tinylatent.methods import CoT2
from tinylatent.models.decoder import ModelConfig
from tinylatent.training.config import Training


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    task = Composition(hops=2, items=4, functions=3)
    train(
        Experiment(task, CoT2(), ModelConfig(8, 2, 2), Training(steps=2, batch_size=8, num_train=100), Seeds.all(0)),
        folder / "a",
    )
    return folder / "a"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tinylatent.models.huggingface_small import save_small_model

    save_small_model(tmp_path_factory.mktemp("model"))
    return tmp_path_factory.getbasetemp() / "model0"


def test_a_run_is_looked_into(run, tmp_path, capsys):
    main(["lens", str(run), "--out", str(tmp_path / "seen"), "--count", "6", "--most", "9"])
    said = capsys.readouterr()
    names = ["attribution", "erasure", "lens", "outliers", "sizes", "skip"]
    files = sorted(path.name for path in (tmp_path / "seen").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("csv", "png"))
    assert "depth score of effects on the future (output, mean): " in said.out
    assert said.out.splitlines()[-1] == f"6 figures and tables: {tmp_path / 'seen'}"
    assert said.err.splitlines() == ["sizes ..", "lens ..", "skip ..", "outliers ..", "erasure ..", "attribution .."]


def test_a_model_is_looked_into_with_prompts(model, tmp_path, capsys):
    (tmp_path / "prompts").write_text("one and one\ntwo and two\n")
    main(["lens", str(model), "--prompts", str(tmp_path / "prompts"), "--out", str(tmp_path / "seen")])
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 figures and tables: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{none}"], "is no folder: expected that of a run, or of a model of transformers"),
        (["{model}"], "holds no run with a checkpoint: a model of transformers needs --prompts FILE"),
        (["{run}", "--prompts", "x"], "--prompts beside {run}, which is a run: it looks at its own problems"),
        (["{run}", "--count", "0"], "--count 0: expected a prompt at least"),
        (["{run}", "--splits", "0"], "splits is 0: expected 1 or more"),
        (["{empty}", "--prompts", "{file}"], "expected one with config.json and weights|holds no model"),
    ],
)
def test_what_fits_neither_is_told(run, model, tmp_path, capsys, words, said):
    places = {"run": run, "model": model, "none": tmp_path / "none", "empty": tmp_path, "file": tmp_path / "file"}
    (tmp_path / "file").write_text("a text of some length\n")
    assert main(["lens", *(word.format(**places) for word in words), "--out", str(tmp_path / "seen")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert any(part.format(**places) in error for part in said.split("|"))
    assert not (tmp_path / "seen").exists()
