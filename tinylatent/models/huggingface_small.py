"""Small models of transformers with random weights and a tokenizer of bytes, in a folder as users have them.

They are for trying things: whatever runs on one runs on a real model of the family.
"""

from pathlib import Path
from typing import Any

import torch

from tinylatent.core.extras import MissingExtraError
from tinylatent.models.huggingface_loading import quiet

try:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
except ImportError as error:
    raise MissingExtraError("Hugging Face models need", "transformers", "hf") from error

CHAT = (
    "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
PAIRS = [("t", "h"), ("n", "1"), ("i", "s"), ("1", "0")]
PADDED = 9
"""Rows of the table that no token owns, as published tables have them."""


def byte_tokenizer(chat: bool = False, begins: bool = False) -> Any:
    """A tokenizer with a token for every byte and for a few pairs, so that some names have one piece and most several.

    Args:
        chat: whether it has a chat template.
        begins: whether it begins texts with <bos>; and ends them with <eos>.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(a + b for a, b in PAIRS)]
    made: Any = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, PAIRS))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>"} | ({"bos_token": "<bos>"} if begins else {})
    found: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    if begins:
        found.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", found.bos_token_id), ("<eos>", found.eos_token_id)]
        )
    if chat:
        found.add_special_tokens({"additional_special_tokens": ["<user>", "<end>", "<reply>"]})
        found.chat_template = CHAT
    return found


def save_small_model(
    folder: Path, family: str = "Llama", chat: bool = True, positions: int = 256, **settings: Any
) -> None:
    """Saves a random model of two layers, always the same for a family, and its tokenizer.

    Args:
        folder: where to.
        family: as transformers names its classes: GPT2, Llama, Qwen2, ..
        chat: whether the tokenizer has a chat template.
        positions: most positions.
        settings: of its configuration, in place of those here.
    """
    words = byte_tokenizer(chat)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": positions,
    }  # fmt: skip
    if family == "GPT2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": positions}
    ids = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    common = {"vocab_size": len(words) + PADDED, "tie_word_embeddings": True, **ids}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **common, **settings})
    with torch.random.fork_rng(devices=[]):  # building draws weights from the global generator; others are drawn below
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.ndim > 1):
            weight.normal_(0.0, 0.02, generator=generator)
    with quiet():
        model.save_pretrained(folder)
    words.save_pretrained(folder)
