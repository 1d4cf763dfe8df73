"""Small random models of Hugging Face, offline, and how they are held against ours.

transformers is imported with this file: a test file that imports it pays for that, and no other does.
"""

import os
from functools import partial

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import transformers

VOCABULARY, POSITIONS, WIDTH = 23, 40, 16
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Mistral": {"sliding_window": 3},
    "Gemma": {"head_dim": 8, "tie_word_embeddings": True},
    "Gemma3": {"head_dim": 4, "tie_word_embeddings": True, "final_logit_softcapping": 1.5, "sliding_window": 3},
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
}
ROUGH = {
    "Gemma2": {"head_dim": 4, "tie_word_embeddings": True, "final_logit_softcapping": 2.0, "sliding_window": 3},
    "Cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
}
"""Families that are not exact in float64: Gemma 2 has eager attention alone, Cohere rotates in float32."""
SCALE = {"Gemma": 4.0, "Gemma2": 4.0, "Gemma3": 4.0}
"""What a lookup multiplies rows by: the root of the width."""
HEADS = {
    "Gemma2": lambda logits: 2.0 * torch.tanh(logits / 2.0),
    "Gemma3": lambda logits: 1.5 * torch.tanh(logits / 1.5),
    "Granite": lambda logits: logits / 8.0,
    "Cohere": lambda logits: logits * 0.25,
}
"""What is done to logits after the head."""
WINDOWS = {"Mistral", "Gemma2", "Gemma3"}
PROMPT = torch.tensor([[0, 0, 3, 4, 5], [6, 7, 8, 9, 10], [0, 11, 12, 13, 14]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def near(a, b):
    """To 1e-4 of the largest number: float32."""
    assert (a - b).abs().max() < 1e-4 * b.abs().max()


def spread(model, seed=0):
    """Weights wide enough that attention and arg max are decided, and nothing hides behind logits near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(generator=generator), alpha=0.3)
    return model


def small(family, **options):
    """A small random model of a family, in float64; its norms too, which transformers computes in float32."""
    config = getattr(transformers, f"{family}{'Text' * (family == 'Gemma3')}Config")
    config = config(**SIZE | (FAMILIES | ROUGH).get(family, {}) | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith(("RMSNorm", "CohereLayerNorm")):
            parent, _, child = name.rpartition(".")
            kind = torch.nn.RMSNorm if "RMS" in type(norm).__name__ else partial(torch.nn.LayerNorm, bias=False)
            setattr(model.get_submodule(parent), child, kind(norm.weight.shape, eps=1e-6))
    return spread(model.double())


LAYERED = ["GPT-2", "Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma3", "Olmo2", "GPTNeoX"]
"""Families whose layers are looked into, in float64."""
ROUGHLY = ["Gemma2"]
"""And in float32."""
SETTINGS = {"GPTNeoX, in turn": {"use_parallel_residual": False}, "Qwen3": {"head_dim": 4}}


def layered(family):
    """A small model of a family behind a backbone, in float64 where it is exact; its settings may follow its name."""
    from tinylatent.models.huggingface import HFBackbone, as_gpt2  # not at the top: shape checks hook in first

    if family == "GPT-2":
        from tinylatent.models.decoder import Decoder, ModelConfig

        return HFBackbone(spread(as_gpt2(Decoder.fresh(VOCABULARY, POSITIONS, ModelConfig(WIDTH, 2, 4)).double())))
    model = small(family.split(",")[0], **SETTINGS.get(family, {}))
    return HFBackbone(model.float() if family in ROUGHLY else model)
