"""Loading models of transformers from folders, with rows for tokens that a run adds."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from tinylatent.core.extras import MissingExtraError
from tinylatent.models.huggingface import HFBackbone
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
    if len(model.get_input_embeddings().weight) < tokens:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(tokens, mean_resizing=False)
    begin_rows(model, known, added, generator)
    if settings.lora is not None:
        add_lora(model, settings.lora, generator)
        if added:
            train_rows_alone(model, known)
    if settings.checkpointing:
        model.activation_checkpointing_enable()
    return HFBackbone(model, tokens)


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


@torch.no_grad()
def begin_rows(model: Any, first: int, added: list[list[int]], generator: torch.Generator) -> None:
    """Sets the rows of added tokens, in the embedding and the head: each to the mean of the rows of some other tokens.

    Args:
        model: changed in place.
        first: the first of these rows.
        added: ids whose rows each is the mean of; none for a row that is drawn, as far from the mean of all as others.
        generator: draws.
    """
    tables = {id(module.weight): module.weight for module in _tables(model)}
    for weight in tables.values():
        mean, spread = weight[:first].float().mean(0), weight[:first].float().std(0)
        for place, ids in enumerate(added, first):
            if ids:
                weight[place] = weight[torch.tensor(ids, device=weight.device)].float().mean(0).to(weight)
            else:
                noise = torch.empty(len(mean)).normal_(generator=generator).to(mean)
                weight[place] = (mean + spread * noise).to(weight)


def train_rows_alone(model: Any, first: int) -> None:
    """Lets the rows of added tokens train beside adapters: other rows of these tables get no gradient.

    An optimizer must not shrink them either: see `tinylatent.training.optimizer`.
    """

    def rows_alone(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[:first] = 0
        return gradient

    for weight in {id(module.weight): module.weight for module in _tables(model)}.values():
        weight.requires_grad_()
        weight.register_hook(rows_alone)
        weight.decays = False


def _tables(model: Any) -> list[Any]:
    """The modules of a model that have a row for every token."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


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
