"""What all tests share: one thread, reproducible searches, a small model.

Helpers beside this file are imported by name. For the inner rooms: naive (model and engine written a second time),
thoughts (the definition of each thought), cases (drawn plans), fakes (thoughts and heads made for tests), losses,
variants (every registered method), families (small models of Hugging Face).
"""

import os

import pytest
import torch
from hypothesis import Phase, settings
from jaxtyping import config

if os.environ.get("TINYLATENT_TESTS") != "all":
    # Methods whose studies have not been run yet; with these, tests take longer than ten minutes: `make every`.
    collect_ignore = [
        f"tinylatent/{name}.py"
        for name in (
            "methods/test_ctrls",
            "methods/test_ctrls_rl",
            "methods/test_latentr3",
            "methods/test_latentr3_rl",
            "lab/studies/test_ctrls",
            "lab/studies/test_latentr3",
            "evaluation/test_diversity",
            "evaluation/test_retrieval",
        )
    ]

torch.set_num_threads(1)
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)  # explaining a failure takes longer than finding it
settings.register_profile("tinylatent", derandomize=True, deadline=None, database=None, print_blob=True, phases=PHASES)
settings.register_profile("fast", settings.get_profile("tinylatent"), max_examples=20)
settings.load_profile("tinylatent")


@pytest.fixture
def unchecked():
    """Shapes go unchecked, as they do for users: training is faster, and bad values reach the code's own words."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny():
    """Makes a small float64 model whose weights are large enough to matter; read-only for tests."""
    from tinylatent.models.decoder import Decoder, ModelConfig  # not at the top: shape checks hook in first

    def make(seed=0, vocabulary=7, positions=64, spread=0.4, **kind):
        generator = torch.Generator().manual_seed(seed)
        model = Decoder.fresh(vocabulary, positions, ModelConfig(width=8, layers=2, heads=2, **kind)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=spread)
        return model

    return make


@pytest.fixture(scope="session")
def model(tiny):
    """The small model most tests use."""
    return tiny()
