"""Runs on models of transformers: what they are, where they begin, that they learn, go on, and are read again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tinylatent_tasks import MNNS, Recommendation
from tinylatent_tasks.published import read_lines

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.evaluation.retrieval import scores_and_beams
from tinylatent.lab.experiment import Experiment
from tinylatent.lab.folders import load, train
from tinylatent.lab.lines import LinesFile
from tinylatent.lab.names import run_name
from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.run import read_record
from tinylatent.lab.thinking import think
from tinylatent.methods import GRPO, METHODS, CoLaR, CoT2, Direct, DiscreteCoT
from tinylatent.models.decoder import ModelConfig
from tinylatent.models.huggingface_lora import LoRA
from tinylatent.models.huggingface_small import save_small_model
from tinylatent.models.pretrained import Pretrained
from tinylatent.objectives.text import InText
from tinylatent.training.checkpoints import WEIGHTS, find_checkpoint
from tinylatent.training.config import Training
from tinylatent.training.inherit import inherit_weights

TASK = MNNS(digits=2, high=6)
SHORT = Training(
    steps=6, batch_size=4, learning_rate=1e-3, num_train=16, log_every=3, save_every=3, validate=0, weight_decay=0.1
)
LINES = [
    {"question": f"{a} plus {b}?", "steps": [f"{a}+{b}"], "answer": str(a + b)} for a in range(5) for b in range(4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with its tokenizer."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_small_model(path)
    return path


COT2 = CoT2()


def experiment(folder, method=COT2, task=TASK, training=SHORT, names="own", lora=None, **options):
    hf = Pretrained(str(folder), lora=lora, **options).found()
    return Experiment(task, method, training=training, seeds=Seeds.all(3), hf=hf, text=InText(names))


def lines_file(path):
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES), "utf-8")
    return LinesFile(str(path)).found()


# ---------------------------------------------------------------------------------------------------------------------
# What a run is


def test_a_run_goes_to_json_and_back_and_where_files_lie_is_no_part_of_it(folder, tmp_path):
    run = experiment(folder, lora=LoRA(rank=4, targets=("q_proj",)))
    again = Experiment.from_json(json.loads(json.dumps(run.to_json())))
    assert again == run
    assert run.to_json()["hf"]["lora"] == {"rank": 4, "targets": ["q_proj"]}
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    other = experiment(moved, lora=LoRA(rank=4, targets=("q_proj",)))
    assert other == run
    assert other.to_json() != run.to_json()
    assert other.identity == run.identity
    assert replace(run, start=run).identity == replace(other, start=other).identity
    assert len({run.identity, experiment(folder).identity, experiment(folder, names="spelled").identity}) == 3
    assert run_name(run) == "mnns/cot2 on small seed 3"


def test_another_model_in_the_folder_is_noticed(folder, tmp_path):
    there = tmp_path / "there"
    shutil.copytree(folder, there)
    run = experiment(there)
    save_small_model(there, hidden_size=16)
    with pytest.raises(ValueError, match="holds another model than this run was made with"):
        run.fresh()
    (there / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no model: expected a folder with config.json and weights"):
        experiment(there)


def test_text_and_a_model_of_transformers_go_together(folder):
    hf = Pretrained(str(folder)).found()
    with pytest.raises(ValueError, match="a model of transformers needs a task in text, and text a model"):
        Experiment(TASK, hf=hf)
    with pytest.raises(ValueError, match="needs a task in text, and text a model"):
        Experiment(TASK, text=InText())
    with pytest.raises(ValueError, match="a size of model beside a model of transformers"):
        Experiment(TASK, model=ModelConfig(8), hf=hf, text=InText())
    with pytest.raises(ValueError, match="knows no text, only the symbols of its task"):
        Experiment(TASK).wording.ids([])
    with pytest.raises(ValueError, match="the run to start from has another text"):
        replace(experiment(folder), start=experiment(folder, names="spelled"))


def test_settings_that_do_not_fit_are_refused(folder, unchecked):
    with pytest.raises(ValueError, match="dtype 'int8': expected one of float32, bfloat16, float16"):
        Pretrained(str(folder), dtype="int8")
    with pytest.raises(ValueError, match="attention 'flash': expected one of sdpa, eager"):
        Pretrained(str(folder), attention="flash")
    with pytest.raises(ValueError, match="names 'own' with 1 words: expected words with names 'words'"):
        InText("own", ("a",))


# ---------------------------------------------------------------------------------------------------------------------
# Where it begins


def every_row(model):
    """The embeddings of all tokens of a run."""
    return model.backbone.table.rows(torch.arange(len(model.backbone.table))).detach()


def test_rows_of_names_begin_as_the_mean_of_their_pieces(folder):
    """Extra tokens of a method are drawn, and rows that no token owns are gone."""
    run = experiment(folder, CoLaR())
    speaker, model = run.asks(np.empty((0, 2), np.int64)), run.fresh()
    table, known = every_row(model), len(run.wording)
    assert len(table) == run.tokens == speaker.vocabulary + len(run.method.extra_tokens) > known + 9
    for place, ids in enumerate(speaker.added, known):
        torch.testing.assert_close(table[place], table[torch.tensor(ids)].mean(0))
    drawn = table[speaker.vocabulary :]
    assert len(drawn) == len(run.method.extra_tokens)
    assert (drawn.std(1) > 0.5 * table[:known].std()).all()
    assert torch.equal(every_row(run.fresh()), table)
    assert not torch.equal(every_row(replace(run, seeds=Seeds.all(4)).fresh()), table)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_and_rows_of_added_tokens_alone_are_trained(tmp_path, tied):
    """Neither by gradients nor by decay do other weights move."""
    save_small_model(tmp_path / "m", tie_word_embeddings=tied)
    run = experiment(tmp_path / "m", lora=LoRA(rank=2))
    before, after = run.fresh(), train(run)
    known, pairs = len(run.wording), [(every_row(before), every_row(after))]
    hidden_BD = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs.append(tuple(model.backbone.readout(hidden_BD).T for model in (before, after)))
    for old, new in pairs:
        assert torch.equal(old[:known], new[:known])
        assert not torch.equal(old[known:], new[known:])
    ours, theirs = before.state_dict(), after.state_dict()
    moved = {name for name in ours if not torch.equal(ours[name], theirs[name])} - {"stage"}
    assert {name for name in moved if "lora_" not in name} == {
        f"backbone.{name}.learned_AD" for name in ("added", *(() if tied else ("added_head",)))
    }
    assert sum("lora_B" in name for name in moved) == 14


def test_a_start_without_added_rows_gives_the_rest(folder, tmp_path):
    """And one with fewer gives those that it has."""
    task = lines_file(tmp_path / "lines.jsonl")
    direct = experiment(folder, Direct(), task, replace(SHORT, num_train=None))
    plain = replace(direct, method=DiscreteCoT())
    earlier, model = train(plain), replace(direct, method=DiscreteCoT(ends=True)).fresh()
    assert earlier.backbone.added is None
    began = model.backbone.added.now().detach().clone()
    taken = inherit_weights(model, earlier, ("backbone",))
    assert torch.equal(model.backbone.added.now(), began)
    assert "backbone.model.model.norm.weight" in taken
    few, more = train(replace(direct, method=DiscreteCoT(ends=True))), replace(direct, method=CoLaR()).fresh()
    drawn = more.backbone.added.now().detach().clone()
    inherit_weights(more, few, ("backbone",))
    assert torch.equal(more.backbone.added.now()[:1], few.backbone.added.now())
    assert torch.equal(more.backbone.added.now()[1:], drawn[1:])


# ---------------------------------------------------------------------------------------------------------------------
# That it works


WITH_ADAPTERS = ("coconut", "grpo", "hrpo", "ctrls", "latentseek")
"""Methods that are run with adapters too: a stage, a reference, a gate, a frozen model, a search."""
QUICK = ("cot2", "colar")
RUNS = [
    pytest.param(
        name, lora, id=f"{name}-{'adapters' if lora else 'whole'}", marks=[pytest.mark.slow] * (name not in QUICK)
    )
    for name in METHODS
    for lora in (None, LoRA(rank=2))
    if lora is None or name in WITH_ADAPTERS
]


def started(whole, method):
    """The run with this method, and with what that starts from."""
    start = None
    if method.starts_from is not None:
        start = started(whole, replace(METHODS[method.starts_from](), **method.start_settings))
    training = replace(whole.training, steps=0) if method.recipe.get("steps") == 0 else whole.training
    return replace(whole, method=method, training=training, start=start)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_trained_on_lines(folder, tmp_path, name):
    """Question, steps and answer from a file: some steps of training, and an answer to each line that was held out."""
    lines = lines_file(tmp_path / "lines.jsonl")
    run = started(experiment(folder, task=lines, training=replace(SHORT, num_train=None)), METHODS[name]())
    model = train(run, tmp_path / "run")
    found = evaluate(run.speaker("validation"), run.method, model, batch=4)
    assert len(found.right_P) == len(run.rows("validation")) == 4
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "lora"), RUNS)
def test_every_method_runs_on_a_small_llama(folder, tmp_path, name, lora):
    """Trained, with what it starts from, measured, recorded, and read again; the same twice."""
    method = METHODS[name]()
    run = started(experiment(folder, lora=lora), method)
    record = run.measure(tmp_path / "run")
    assert isinstance(record, ExperimentRecord)
    assert read_record(Experiment, json.loads(json.dumps(record.to_json()))) == record
    assert record.experiment == run
    assert sum(record.total) == len(run.rows("validation"))
    again, model = load(tmp_path / "run")
    assert again == run
    found = evaluate(run.speaker("validation"), method, model, seed=run.seeds.derive("sampling", "evaluation"), batch=4)
    assert found.right_P.sum() == sum(record.evaluations["default"].right)


LONG = replace(SHORT, steps=300, batch_size=16, learning_rate=5e-3, num_train=None, weight_decay=0.0, log_every=100)


def test_it_learns_lines_by_heart(folder, tmp_path):
    run = experiment(folder, DiscreteCoT(), lines_file(tmp_path / "lines.jsonl"), LONG)
    found = evaluate(run.speaker("train"), run.method, train(run), batch=16)
    assert found.right_P.all()
    assert max(found.kl_T) < 0.1


@pytest.mark.slow
def test_it_learns_to_think_in_superpositions(folder):
    """MNNS with two digits, in words: latents hold the frontier, and answers are right."""
    run = experiment(folder, training=replace(LONG, steps=700))
    model = train(run)
    found = evaluate(run.speaker("train"), run.method, model, batch=16)
    assert found.right_P.mean() > 0.9
    assert max(found.kl_T) < 0.2
    told = think(TASK, run.rows("train")[0], run, model)
    assert told.is_right
    assert told.is_held
    for name, share in told.steps[0].oracle.items():
        assert told.steps[0].model[name] == pytest.approx(share, abs=0.2)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "adapters"])
def test_a_run_that_is_interrupted_goes_on(folder, tmp_path, lora):
    """Bit for bit; a tied table is stored once, and beside adapters nothing that lies in the model's folder."""
    run = experiment(folder, lora=lora)

    def stop(step, loss):
        if step >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "a", on_progress=stop)
    resumed, whole = train(run, tmp_path / "a"), train(run, tmp_path / "b")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    saved = find_checkpoint(tmp_path / "b")
    stored = (saved.folder / WEIGHTS).stat().st_size
    if lora is None:
        assert [*saved.manifest["tied"]] == ["backbone.model.lm_head.weight"]
    weights = [x.numel() for x in whole.parameters() if x.requires_grad]
    rows = whole.backbone.added.given_AD.numel()
    assert 4 * sum(weights) < stored < 4 * (sum(weights) + rows) + 10_000
    _, again = load(tmp_path / "b")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_what_adapters_learned_before_a_reference_is_kept_by_all_who_come_after(folder, tmp_path):
    """It is folded into the model, which is then stored whole: by the run, and by one that starts there."""
    lora, short = LoRA(rank=2), replace(SHORT, learning_rate=3e-2)
    first = experiment(folder, training=short, lora=lora)
    rewarded = replace(first, method=GRPO(samples=2, group=2, kl=0.1), start=first)
    train(first, tmp_path / "first")
    model = train(rewarded, tmp_path / "rewarded", start=tmp_path / "first")
    fresh = rewarded.fresh().state_dict()
    weight = "backbone.model.model.layers.0.mlp.up_proj.base_layer.weight"
    assert not torch.equal(model.state_dict()[weight], fresh[weight])
    _, again = load(tmp_path / "rewarded")
    after = replace(rewarded, method=GRPO(samples=3, group=2), start=rewarded)
    _, later = (train(after, tmp_path / "after", start=tmp_path / "rewarded"), load(tmp_path / "after")[1])
    for found in (again, later):
        assert torch.equal(found.state_dict()[weight], model.state_dict()[weight])
        assert found.backbone.is_moved

    def stop(step, loss):
        if step >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rewarded, tmp_path / "resumed", on_progress=stop, start=tmp_path / "first")
    resumed = train(rewarded, tmp_path / "resumed", start=tmp_path / "first")
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert torch.equal(load(tmp_path / "resumed")[1].state_dict()[weight], model.state_dict()[weight])


def test_a_whole_model_in_half_precision_is_refused_since_it_would_not_move(folder, tmp_path):
    with pytest.raises(ValueError, match=r"is bfloat16, whose steps are coarser than most of an optimizer's"):
        train(experiment(folder, dtype="bfloat16"), tmp_path / "run")


def test_adapters_train_beside_half_precision_and_checkpointing(folder, tmp_path):
    run = experiment(folder, dtype="bfloat16", checkpointing=True, lora=LoRA(2))
    before = {name: x.clone() for name, x in run.fresh().named_parameters() if x.requires_grad}
    model = train(run, tmp_path / "run")
    assert all((x != before[name]).any() for name, x in model.named_parameters() if name in before)
    assert model.backbone.table.weight.dtype == torch.bfloat16
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert evaluate(run.speaker("validation"), run.method, model).right_P.shape == (len(run.rows("validation")),)


# ---------------------------------------------------------------------------------------------------------------------
# Lines


def test_lines_are_split_by_question_and_read_again(folder, tmp_path):
    task = lines_file(tmp_path / "lines.jsonl")
    run = experiment(folder, DiscreteCoT(), task, replace(SHORT, num_train=None))
    parts = {part: {run.task.lines[row[0]].question for row in run.rows(part)} for part in ("train", "validation")}
    assert len(parts["train"]) == 16
    assert len(parts["validation"]) == 4
    assert not parts["train"] & parts["validation"]
    record = run.measure(tmp_path / "run")
    assert record.experiment == run
    assert sum(record.total) == 4
    assert record.majority_baseline <= 0.5
    again, _ = load(tmp_path / "run")
    assert again == run
    (tmp_path / "lines.jsonl").write_text(json.dumps(LINES[0]) + "\n", "utf-8")
    with pytest.raises(ValueError, match="holds other lines than this run was made with"):
        _ = task.lines


def test_lines_for_validation_may_stand_in_a_file_of_their_own(folder, tmp_path):
    """Questions that are in both are asked and not trained on; the run knows both files by what is in them."""
    path, held = tmp_path / "lines.jsonl", tmp_path / "held.jsonl"
    lines_file(path)
    others = [{**LINES[3], "question": f" {LINES[3]['question'].upper()}"}, {**LINES[0], "question": "a new one?"}]
    held.write_text("".join(json.dumps(line) + "\n" for line in others), "utf-8")
    task = LinesFile(str(path), held=str(held)).found()
    assert task.size == len(LINES) + 2
    assert task.split("validation", 0).tolist() == task.split("validation", 7).tolist() == [[20], [21]]
    trained = [row for row in range(len(LINES)) if row != 3]
    assert task.split("train", 0)[:, 0].tolist() == trained
    few = task.split("train", 0, 5)[:, 0].tolist()
    assert (len(few), {*few} <= {*trained}) == (5, True)
    assert {*few} <= {*task.split("train", 0, 9)[:, 0].tolist()}
    assert task.to_json([21]) == {"question": "a new one?"}
    run = experiment(folder, DiscreteCoT(), task, replace(SHORT, num_train=None))
    assert run.identity != experiment(folder, DiscreteCoT(), LinesFile(str(path)).found(), run.training).identity
    record = run.measure(tmp_path / "run")
    assert sum(record.total) == 2
    again, _ = load(tmp_path / "run")
    assert again == run
    held.write_text(json.dumps(others[0]) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"held\.jsonl holds other lines than this run was made with"):
        _ = task.lines
    with pytest.raises(ValueError, match=r"asks every question of .*: nothing is left to train on"):
        LinesFile(str(path), held=str(path)).found().split("train", 0)


def test_questions_that_are_alike_share_a_key(tmp_path):
    path = tmp_path / "some.jsonl"
    texts = ["What is it?", "what  is it? ", "What is that?"]
    path.write_text("".join(json.dumps({"question": q, "steps": [], "answer": "5"}) + "\n" for q in texts), "utf-8")
    task = LinesFile(str(path)).found()
    first, second, third = task.key([[0], [1], [2]]).tolist()
    assert first == second != third
    assert task.answer([[0], [2]]).tolist() == [0, 0]
    assert len(read_lines(path)) == task.size == 3
    path.write_text(json.dumps({"question": texts[0], "steps": [], "answer": "5"}) + "\n", "utf-8")
    assert LinesFile(str(path)).found().size == 1, "a file that was changed is read anew"
    path.write_text("".join(json.dumps({"question": q, "steps": [], "answer": "5"}) + "\n" for q in texts), "utf-8")
    with pytest.raises(ValueError, match="line 3 of 3: they are numbered from 0"):
        task.rows([[3]])
    with pytest.raises(ValueError, match="'x' is no line: expected its number, from 0 to 2"):
        task.read("x")
    assert task.to_json(task.read([1])) == {"question": "what  is it?"}


# ---------------------------------------------------------------------------------------------------------------------
# Titles


@torch.no_grad()
def test_titles_are_ranked_by_all_their_tokens_and_a_stop(folder):
    """Against the model's own logits on question, title and stop in one sequence, without padding."""
    task = Recommendation(categories=3, brands=2, numbers=2, intents=2, events=4)
    run = experiment(folder, Direct(), task, names="spelled")  # no rows are added, so that the model has them all
    model, rows = run.fresh(), task.problems(5, seed=2)
    speaker, words = run.asks(rows), run.wording
    titles = [[id for id in title if id >= 0] for title in speaker.titles.tolist()]
    assert len(titles) == len(task.catalogue) == 12
    assert all(title[-1] == words.stop_id for title in titles)
    bare_IA = np.where(speaker.titles == words.stop_id, -1, speaker.titles)
    said = [task.read_answer(text).tolist() for text in words.texts(torch.tensor(bare_IA))]
    assert said == task.answer_ids(np.arange(12)).tolist()
    scores_PI, listed_PW = scores_and_beams(speaker, run.method, model, speaker.titles, width=3, batch=2)
    network = model.backbone.model
    for place, prompt in enumerate(words.asked([task.question(row) for row in rows.tolist()])):
        for item, title in enumerate(titles):
            ids = torch.tensor([[*prompt, *title]])
            logits = network(inputs_embeds=model.backbone.table.rows(ids)).logits[0, :, : speaker.vocabulary]
            log_prob = logits.log_softmax(-1)[torch.arange(len(prompt) - 1, ids.shape[1] - 1), ids[0, len(prompt) :]]
            assert scores_PI[place, item] == pytest.approx(float(log_prob.sum()), abs=1e-3)
    assert listed_PW.shape == (5, 3)


def test_a_run_on_titles_in_text_has_their_ranks(folder, tmp_path):
    task = Recommendation(categories=3, brands=2, numbers=2, intents=2, events=4)
    record = experiment(folder, Direct(), task).measure(tmp_path)
    assert len(record.ranking.ranks["default"]) == sum(record.total)
    assert set(record.ranking.ranks) >= {"default", "beam"}
    assert np.mean(record.ranking.nll) > 0


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_run_is_of_its_tokenizer_too(name, folder, tmp_path):
    """What a text is in tokens is part of a run's identity."""
    other = tmp_path / "model"
    shutil.copytree(folder, other)
    known = Pretrained(str(other)).found().digest
    (other / name).write_text((other / name).read_text("utf-8") + "\n", "utf-8")
    assert Pretrained(str(other)).found().digest != known
