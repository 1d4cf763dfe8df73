"""Published analyses: what one takes is what it takes where it computes, and each runs in small."""

import pytest
import torch

from tinylatent.lab.lensed import Settings, tables
from tinylatent.lab.prompts import of_model
from tinylatent.lab.published_lenses import LENSED, TRIED, passes, plan, small
from tinylatent.models.huggingface import HFBackbone
from tinylatent.models.huggingface_shapes import SHAPES
from tinylatent.models.huggingface_small import save_small_model


def test_passes_are_those_that_are_made(tmp_path, monkeypatch):
    """Three layers, four prompts of equal lengths; every layer counts its rows, forward and backward."""
    save_small_model(tmp_path, "Llama", chat=False, num_hidden_layers=3)
    made = {"forward": 0, "backward": 0}
    through = HFBackbone.through

    def counted(self, stream, layers, *given):
        made["forward"] += len(stream) * len(layers)
        made["backward"] += len(stream) * len(layers) * (torch.is_grad_enabled() and stream.requires_grad)
        return through(self, stream, layers, *given)

    prompts = of_model(tmp_path, [*TRIED])
    monkeypatch.setattr(HFBackbone, "through", counted)
    asked = Settings(splits=2, shown=2, most=9)
    tables(prompts, asked)
    slots = int(prompts.record.mask_BS.sum(1).max())
    assert prompts.record.mask_BS.sum() == 4 * slots
    forward, backward = passes(3, 4, slots, asked)
    assert made == {"forward": forward - 3 * 4, "backward": backward}, "but for the record itself"


def test_plans_have_true_sizes():
    found = plan(LENSED["depth-llama-3.1-8b"])
    assert (found.parameters, found.layers) == (8_030_261_248, 32)
    assert found.weights == 4 * found.parameters
    assert found.record == 4 * (33 + 32 + 32) * 10 * 512 * 4096
    assert found.memory == found.weights + found.record + max(found.stacking, found.sweep + found.outcomes)
    assert found.outcomes == 2 * 4 * 10 * 512 * 128_256
    a_layer = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14_336 + 2 * 4096
    forward, backward = passes(32, 10, 512, LENSED["depth-llama-3.1-8b"].settings)
    assert found.operations == pytest.approx(2 * a_layer * 512 * (forward + 2 * backward))


@pytest.mark.parametrize("name", LENSED)
def test_every_analysis_runs_in_small(name, tmp_path):
    assert LENSED[name].shape in SHAPES
    found = small(LENSED[name], tmp_path)
    assert [*found] == ["sizes", "lens", "skip", "outliers", "erasure", "attribution"]
    assert all(table.rows for table in found.values())
