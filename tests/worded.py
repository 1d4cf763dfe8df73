"""A tokenizer of transformers made on the spot: a token a byte, and a few merges, so that names have several pieces."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
PAIRS = [("t", "h"), ("n", "1"), ("i", "s"), ("1", "0")]


def tokenizer(chat=False, begins=False):
    """Its first tokens are bytes; it ends texts with <eos>, and begins them with <bos> if asked."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(a + b for a, b in PAIRS)]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, PAIRS))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>"} | ({"bos_token": "<bos>"} if begins else {})
    found = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    if begins:
        from tokenizers.processors import TemplateProcessing

        found.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", found.bos_token_id), ("<eos>", found.eos_token_id)]
        )
    if chat:
        found.add_special_tokens({"additional_special_tokens": ["<user>", "<end>", "<reply>"]})
        found.chat_template = CHAT
    return found


def save_small_model(folder, family="Llama", chat=True, **options):
    """A small random model of a family with its tokenizer in a folder, as a user has them; some rows no token owns."""
    import torch
    import transformers

    words = tokenizer(chat)
    settings = {
        "vocab_size": len(words) + 9, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None,
        "eos_token_id": words.eos_token_id, "pad_token_id": None, "tie_word_embeddings": True,
    } | options  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
