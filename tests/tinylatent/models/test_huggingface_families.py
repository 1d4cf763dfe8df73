"""Families of transformers beyond those of `families`: each is right, or refused in words; none is silently wrong.

Small random models in float32. A rollout with padding and rows that wait is held against the model itself, row by row,
without cache, padding or mask, gradients too; in bfloat16 it stays finite.
"""

import pytest
import torch
import transformers
from families import MASK, PROMPT, SIZE, near, spread
from naive import score

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Hidden, Mixture, Token
from tinylatent.models.huggingface import HFBackbone

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
SLIDES = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4}
RIGHT = {
    "Qwen3": {"head_dim": 4},
    "Qwen3Moe": {"head_dim": 4, "num_experts": 4, **EXPERTS},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Phi": {},
    "Phi3": {"pad_token_id": 0},
    "Olmo2": {},
    "Olmo3": SLIDES,
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "GPTNeoX": {},
    "StableLm": {},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "GPTJ": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4},
    "Falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "DeepseekV3": {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
        "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "num_key_value_heads": 4, **EXPERTS,
    },
    "GptOss": {"head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 2, **SLIDES},
    "Cohere2": SLIDES,
    "Glm4": {"head_dim": 4},
    "Exaone4": {},
    "Ernie4_5": {"head_dim": 4},
    "HrmText": {},
}  # fmt: skip
NO_POSITIONS, NO_ATTENTION = "takes no position_ids", "has layers without keys and values"
REFUSED = {
    "Mamba": ({"state_size": 4}, NO_POSITIONS),
    "Mamba2": ({"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}, NO_POSITIONS),
    "Rwkv": ({}, NO_POSITIONS),
    "Bloom": ({}, NO_POSITIONS),
    "Mpt": ({"d_model": 16, "n_heads": 4, "n_layers": 2}, NO_POSITIONS),
    "Jamba": (
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False,
         "mamba_d_state": 4}, NO_ATTENTION,
    ),
    "Zamba2": (
        {"layer_types": ["mamba", "hybrid"], "n_mamba_heads": 4, "mamba_d_state": 4, "mamba_headdim": 8}, NO_ATTENTION
    ),
    "FalconH1": ({"mamba_d_ssm": 32, **MAMBA}, NO_ATTENTION),
    "Qwen3Next": (
        {"layer_types": ["linear_attention", "full_attention"], "head_dim": 4, "num_experts": 4, **EXPERTS,
         "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
         "shared_expert_intermediate_size": 8}, NO_ATTENTION,
    ),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, NO_ATTENTION),
    "RecurrentGemma": (
        {"lru_width": 16, "attention_window_size": 8, "block_types": ["recurrent", "attention"]}, NO_ATTENTION
    ),
    "Bamba": ({"attn_layer_indices": [1], "mamba_n_groups": 1, **MAMBA}, NO_ATTENTION),
    "NemotronH": (
        {"hybrid_override_pattern": "M*", "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 4,
         "n_groups": 1}, NO_ATTENTION,
    ),
    "GraniteMoeHybrid": (
        {"layer_types": ["mamba", "attention"], "mamba_n_groups": 1, "num_local_experts": 2, "num_experts_per_tok": 1,
         "shared_intermediate_size": 16, **MAMBA}, NO_ATTENTION,
    ),
    "Gemma3n": (
        {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2, "head_dim": 4,
         "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 23, "laurel_rank": 4, "altup_num_inputs": 2,
         "intermediate_size": [24, 24], "activation_sparsity_pattern": [0.0, 0.0]}, "gives other logits",
    ),
    "Gemma4": ({}, "cannot be driven by embeddings, explicit positions and a cache; transformers says: .*input_ids"),
    "Llama4": ({}, "cannot be driven by embeddings, explicit positions and a cache"),
}  # fmt: skip
NOISE = pytest.mark.filterwarnings("ignore")
"""Some families warn of kernels that are not installed, when they are made."""


def small(name, options):
    """A small random model of a family."""
    config = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return spread(getattr(transformers, f"{name}ForCausalLM")(config(**SIZE | options)))


WINDOWED = {"Olmo3", "GptOss", "Cohere2"}
"""Their windows would count the slots in which a row waits."""


def alone(backbone, prompt_N, thoughts):
    """One row's hidden states and logits: a whole forward of the model itself before each thought."""
    x_SD, states = backbone.table.rows(prompt_N), []
    for thought in thoughts:
        told = {"inputs_embeds": x_SD[None], "position_ids": torch.arange(len(x_SD))[None], "use_cache": False}
        hidden_D = backbone.model.base_model(**told).last_hidden_state[0, -1]
        logits_V = backbone.model(**told).logits[0, -1]
        states.append((hidden_D, logits_V))
        mixed_D = logits_V.softmax(0) @ backbone.table.rows(torch.arange(len(logits_V)))
        thinks = {Hidden: hidden_D, Mixture: mixed_D, Token: backbone.table.rows(logits_V.argmax())}
        x_SD = torch.cat([x_SD, thinks[thought][None]])
    return tuple(torch.stack(values) for values in zip(*states, strict=True))


@pytest.mark.slow
@NOISE
@pytest.mark.parametrize("name", RIGHT)
def test_it_is_right(name):
    """Values and gradients, with rows that wait."""
    backbone = HFBackbone(small(name, RIGHT[name]))
    hidden_steps = [2, 2, 2] if name in WINDOWED else [0, 3, 1]
    plan = (Segment(Hidden(), torch.tensor(hidden_steps)), Segment(Mixture(), 2), Segment(Token(), 1))
    trace = rollout(backbone, plan, PROMPT, MASK, grad=True)
    thoughts = [[Hidden] * count + [Mixture] * 2 + [Token] for count in hidden_steps]
    wanted = [alone(backbone, PROMPT[row][MASK[row]], thoughts[row]) for row in range(3)]
    hidden_ND, logits_NV = (torch.cat(rows) for rows in zip(*wanted, strict=True))
    live_BT, weights = trace.live_BT, [weight for weight in backbone.model.parameters() if weight.requires_grad]
    near(trace.hidden_BTD[live_BT], hidden_ND)
    near(trace.logits_BTV[live_BT], logits_NV)
    found, asked = (
        torch.autograd.grad(score(hidden) + score(logits), weights, allow_unused=True)
        for hidden, logits in ((trace.hidden_BTD[live_BT], trace.logits_BTV[live_BT]), (hidden_ND, logits_NV))
    )
    assert [x is None for x in found] == [x is None for x in asked]
    pairs = [(a, b) for a, b in zip(found, asked, strict=True) if a is not None]
    near(*(torch.cat([x.flatten() for x in each]) for each in zip(*pairs, strict=True)))


@pytest.mark.slow
@NOISE
@pytest.mark.parametrize("name", RIGHT)
def test_half_precision_stays_finite_and_keeps_its_type(name):
    model = small(name, RIGHT[name]).bfloat16()
    backbone = HFBackbone(model)
    trace = rollout(backbone, (Segment(Hidden(), 2), Segment(Mixture(), 2), Segment(Token(), 1)), PROMPT, MASK)
    assert trace.hidden_BTD.dtype == trace.inputs_BTD.dtype == torch.bfloat16
    assert trace.logits_BTV.dtype == torch.float32
    assert trace.hidden_BTD.isfinite().all()
    assert trace.logits_BTV.isfinite().all()


@pytest.mark.slow
@NOISE
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name):
    options, why = REFUSED[name]
    with pytest.raises(ValueError, match=why):
        HFBackbone(small(name, options))
