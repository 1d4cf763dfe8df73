"""Loading models of transformers from folders, with rows for tokens that a run adds."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from tinylatent.core.extras import MissingExtraError
from tinylatent.models.huggingface import HFBackbone
from tinylatent.models.huggingface_added import begun_rows
from tinylatent.models.huggingface_lora import add_lora
from tinylatent.models.pretrained import Pretrained

try:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
except ImportError as error:
    raise MissingExtraError("Hugging Face models need", "transformers", "hf") from error


def load_backbone(settings: Pretrained, tokens: int, added: list[list[int]], generator: torch.Generator) -> HFBackbone:
    """A model from its folder, never from elsewhere, with as many rows as a run has tokens.

    Args:
        settings: which, and how it computes.
        tokens: of the tokenizer and of the run.
        added: for each of the last tokens but those drawn from the generator, the ids whose mean its row begins as.
        generator: draws the rows of tokens that stand for nothing, and adapters.

    Raises:
        ValueError: transformers cannot load it, or it cannot be driven; see HFBackbone.
    """
    try:
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                settings.path,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attention,
                local_files_only=True,
            )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{settings.path}: transformers cannot load it: {error}") from error
    known = tokens - len(added)
    tables = {id(module.weight): module.weight for module in (model.get_input_embeddings(), _head(model))}
    rows = [begun_rows(table, known, added, generator) for table in tables.values()] if added else []
    if settings.lora is not None:
        add_lora(model, settings.lora, generator)
    if settings.checkpointing:
        model.activation_checkpointing_enable()
    return HFBackbone(model, known, *rows)


@contextmanager
def quiet() -> Iterator[None]:
    """A context without bars of transformers, which would stand between ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _head(model: Any) -> Any:
    """The output embeddings of a model, or its input embeddings if it has none; HFBackbone says so."""
    return model.get_output_embeddings() or model.get_input_embeddings()


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{path}: transformers finds no tokenizer there: {error}") from error
