"""Shapes: published models without their weights, to know what a run takes before there is a machine for it.

    backbone = on_meta("qwen2.5-1.5b", lora=LoRA(rank=32))    # true shapes, no memory
    kept = kept_for_backward(backbone, rows=4, slots=512)     # bytes, counted on a forward that computes nothing
    misplaced("qwen2.5-1.5b", folder)                         # what in a folder of weights has no place

What a forward keeps for its backward is counted by hooks on the meta device, where tensors have shapes alone. A folder
with the real weights is compared with its shape by the headers of its files; the weights are not read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinylatent.core.extras import MissingExtraError
from tinylatent.models.huggingface import HFBackbone
from tinylatent.models.huggingface_lora import LoRA, add_lora

try:
    import transformers
    from safetensors import safe_open
except ImportError as error:
    raise MissingExtraError("Hugging Face models need", "transformers", "hf") from error


def _llama3(factor: float) -> dict[str, Any]:
    """Rotary frequencies of Llama 3.1 and later."""
    lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, **lengths}


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {}),
    "smollm2-135m": (
        "Llama",
        {
            "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.2-1b": (
        "Llama",
        {
            "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
            "rope_parameters": _llama3(32.0), "tie_word_embeddings": True,
        },
    ),
    "llama-3.1-8b": (
        "Llama",
        {
            "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
            "rope_parameters": _llama3(8.0), "tie_word_embeddings": False,
        },
    ),
    "qwen2.5-1.5b": (
        "Qwen2",
        {
            "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-8b": (
        "Qwen3",
        {
            "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960,
            "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
"""Published models by name: the family in transformers, and what differs from that family's defaults."""


def on_meta(
    name: str, dtype: torch.dtype = torch.float32, lora: LoRA | None = None, layers: int | None = None
) -> HFBackbone:
    """A published model without weights.

    Args:
        name: of its shape.
        dtype: of its weights; those of adapters are float32 at least.
        lora: adapters, which are then trained alone.
        layers: fewer of them than it has.

    Raises:
        ValueError: there is no such shape, or no layer gets adapters.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}: expected one of {', '.join(SHAPES)}")
    family, settings = SHAPES[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    if layers is not None:
        config.num_hidden_layers = layers
        if hasattr(config, "layer_types"):
            config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    model.to(dtype)
    if lora is not None:
        add_lora(model, lora)
    return HFBackbone(model)


class Kept(NamedTuple):
    """Bytes that a forward keeps for its backward beside weights."""

    blocks: int
    """Of all blocks and the last norm."""
    logits: int
    """Of the head, and of log-probabilities of all slots."""
    inputs: int
    """Of the inputs of blocks, which is what activation checkpointing keeps of them."""


def kept_for_backward(backbone: HFBackbone, rows: int, slots: int) -> Kept:
    """What a supervised forward of some rows keeps; their lengths are equal, and all slots have a loss."""
    weight, width = backbone.table.weight, backbone.table.width
    x_BTD = torch.empty(rows, slots, width, dtype=weight.dtype, device=weight.device, requires_grad=True)
    held: dict[int, Tensor] = {parameter.untyped_storage()._cdata: parameter for parameter in backbone.parameters()}
    own = {*held}

    def pack(x: Tensor) -> Tensor:
        held.setdefault(x.untyped_storage()._cdata, x)
        return x

    def size() -> int:
        return sum(x.untyped_storage().nbytes() for place, x in held.items() if place not in own)

    with _Fused(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden_BTD, _ = backbone.forward(x_BTD)  # with a cache: its tensors are kept for the backward anyway
        blocks = size()
        backbone.readout(hidden_BTD).log_softmax(-1)
    layers = len(backbone.layers_to_share)
    return Kept(blocks, size() - blocks, layers * x_BTD.numel() * x_BTD.element_size())


class _Fused(TorchFunctionMode):
    """Attention by the fused kernel, which keeps no weights; the meta device by itself has only the one that does."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3], is_causal=True)[0]
        return function(*args, **(kwargs or {}))


def cache_bytes(backbone: HFBackbone, rows: int, slots: int) -> int:
    """Bytes of the keys and values of some rows."""
    config, weight = backbone._config, backbone.table.weight
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or backbone.table.width // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * heads * width * rows * slots * weight.element_size())


def misplaced(name: str, folder: Path) -> list[str]:
    """What does not fit between the weights in a folder and a shape, in words; nothing if every tensor has its place.

    Raises:
        ValueError: there is no such shape, or the folder holds no weights in safetensors.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one with a model, as save_pretrained writes it")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors: expected a folder as save_pretrained writes it")
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no dict
    backbone = on_meta(name)
    wanted = {key: tuple(x.shape) for key, x in backbone.model.state_dict().items()}
    return _unlike(found, wanted, tied=set(getattr(backbone.model, "_tied_weights_keys", None) or ()))


def _unlike(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], tied: set[str]) -> list[str]:
    """How stored tensors differ from a model's; one that is tied to another need not be stored."""
    prefix = "transformer."  # GPT-2's published files lack it
    found = {key if key in wanted or prefix + key not in wanted else prefix + key: x for key, x in found.items()}
    said = [f"{key} is missing" for key in wanted if key not in found and key not in tied]
    for key, shape in found.items():
        if key not in wanted:
            said.append(f"{key} has no place")
        elif shape != wanted[key]:
            said.append(f"{key} is {list(shape)} instead of {list(wanted[key])}")
    return said
