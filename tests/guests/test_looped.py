"""Guest: a looped decoder: few layers gone through many times, as deep as a plain one and as small as one layer."""

import pytest
import torch
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.lab.experiment import Experiment
from tinylatent.methods import CoT2
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.training.config import Training
from tinylatent.training.loop import fit


@pytest.mark.slow
def test_a_looped_decoder_fits():
    task, recipe = MNNS(digits=3, high=3), Training(steps=600, batch_size=16, learning_rate=3e-3)
    looped = Experiment(task=task, model=ModelConfig(layers=1, loops=3), training=recipe)
    plain = Experiment(task=task, model=ModelConfig(layers=3), training=recipe)
    assert looped.identity != plain.identity
    assert Experiment.from_json(looped.to_json()) == looped
    model, speaker = looped.fresh(), looped.speaker("train")
    fit(model, CoT2(), speaker.examples(), recipe, Seeds())
    result = evaluate(speaker, CoT2(), model)
    assert result.right_P.mean() > 0.9
    backbone, deep = model.backbone, plain.fresh().backbone
    assert sum(x.numel() for x in deep.blocks.parameters()) == 3 * sum(x.numel() for x in backbone.blocks.parameters())
    unrolled = Decoder(backbone.embedding.data, backbone.pos_emb.data, [*backbone.blocks] * 3, backbone.norm)
    inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    hidden, cache = backbone.forward(inputs)
    torch.testing.assert_close(hidden, unrolled.forward(inputs)[0])
    assert len(cache.layers) == 3
    assert backbone.flops(5) == deep.flops(5)
