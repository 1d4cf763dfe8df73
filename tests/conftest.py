"""What all tests share: one thread, reproducible searches, a small model.

Helpers beside this file are imported by name. For the inner rooms: naive (model and engine written a second time),
thoughts (the definition of each thought), cases (drawn plans), fakes (thoughts and heads made for tests), losses,
variants (every registered method), families (small models of Hugging Face).
"""

import pytest
import torch
from hypothesis import Phase, settings
from jaxtyping import config

torch.set_num_threads(1)
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)  # explaining a failure takes longer than finding it
settings.register_profile("tinylatent", derandomize=True, deadline=None, database=None, print_blob=True, phases=PHASES)
settings.register_profile("fast", settings.get_profile("tinylatent"), max_examples=20)
settings.load_profile("tinylatent")


@pytest.fixture(autouse=True)
def as_users_run(request):
    """Shapes are checked in tests that are not slow: those check every room, and slow ones take a third less time."""
    if request.node.get_closest_marker("slow"):
        request.getfixturevalue("unchecked")


@pytest.fixture
def unchecked():
    """Shapes go unchecked, as they do for users: training is faster, and bad values reach the code's own words."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals come from a hundred draws: for tests that do not depend on their ends."""
    from tinylatent.evaluation import statistics  # not at the top: shape checks hook in first

    monkeypatch.setattr(statistics, "_remembered", lambda *known: statistics._interval(*known[:-2], 100, 0))


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
