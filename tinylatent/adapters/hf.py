"""Hugging Face: any causal language model of `transformers` as a Backbone.

    backbone = HFBackbone(AutoModelForCausalLM.from_pretrained(folder))
    rollout(backbone, plan, prompt_BN, mask_BN)

Four things differ from calling the model directly. The cache is a value: transformers grows its own in place, so every
forward gets a new one that shares the old tensors. Positions are always passed, since left padding shifts them. The
model stays in eval mode (gradients flow all the same), because dropout would draw from a global generator and gradient
checkpointing would drop the cache. Edits are hooks on the decoder's blocks, there only while an edited forward runs.

What is wrapped is tried on two tokens, and refused if its own logits come out different. This leaves out models that
scale embeddings as they look them up (Gemma, BioGPT) or logits after the readout (Granite, Cohere), and eager attention
in float64, where padding becomes NaN; left out too are models without explicit positions (BLOOM) or without keys and
values in every layer (Mamba, Qwen3-Next). A sliding window counts slots, masked ones included.

Letters: B rows, T new slots, S all slots (cache and new), D width, V vocabulary.
"""

import inspect
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.backbone import SITES, Edit, Site, default_positions
from tinylatent.transformer import LayerCache, Transformer

try:
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
except ImportError as error:
    raise ImportError("Hugging Face models need the package transformers: pip install 'tinylatent[hf]'") from error


class HFBackbone(nn.Module):
    """A Hugging Face causal language model behind the Backbone protocol.

    Args:
        model: the model with its head, such as a GPT2LMHeadModel; held, not copied, so training the backbone trains it.

    Raises:
        ValueError: it cannot be driven by embeddings, positions and a cache, or its logits then come out different; or,
            once an edit is asked for, its blocks have unknown names or do more than add attention and MLP.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model.eval()
        self._name = type(model).__name__
        self._editable = False
        self._check_logits()

    def train(self, mode: bool = True) -> "HFBackbone":
        """Sets the mode of the wrapper; the model inside stays in eval mode, for the reasons above."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def embedding(self) -> Float[Tensor, "V D"]:
        """The input embedding matrix."""
        return self.model.get_input_embeddings().weight

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Input embeddings of token ids, without positions."""
        return F.embedding(ids, self.embedding)

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits over the vocabulary, by the model's output embeddings."""
        return self.model.get_output_embeddings()(hidden)

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T D"],
        cache: tuple[LayerCache, ...] | None = None,
        mask_BT: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        edit: Edit | None = None,
    ) -> tuple[Float[Tensor, "B T D"], tuple[LayerCache, ...]]:
        """Hidden states after the last norm, and the grown cache; see Backbone.forward."""
        B, T, _ = embeddings_BTD.shape
        past = 0 if cache is None else cache[0][0].shape[2]
        if positions_BT is None:
            positions_BT = default_positions(past, T, mask_BT, embeddings_BTD.device)
        if edit is not None and not self._editable:
            self._check_sites()
        growing = _thaw(cache)
        with ExitStack() if edit is None else self._edited(edit):
            output = self.model.base_model(
                inputs_embeds=embeddings_BTD,
                past_key_values=growing,  # even if empty: a model's own may drop what leaves a sliding window
                attention_mask=mask_BT,
                position_ids=positions_BT.expand(B, -1),
                use_cache=True,
            )
        return output.last_hidden_state, tuple((keys, values) for keys, values, *_ in growing)

    def fork(self, cache: tuple[LayerCache, ...], times: int) -> tuple[LayerCache, ...]:
        """The cache with every row repeated `times` times; see Backbone.fork."""
        return tuple((keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)) for keys, values in cache)

    def _edited(self, edit: Edit) -> ExitStack:
        """While this context lasts, the edit is called at the four sites of every block."""

        def call(layer: int, site: Site, module: nn.Module, inputs: tuple, output: Any = None) -> Any:
            x = inputs if output is None else output  # hooks that run before a module get no output
            return (edit(layer, site, x[0]), *x[1:]) if isinstance(x, tuple) else edit(layer, site, x)

        hooks = ExitStack()
        for layer, (block, attention, mlp) in enumerate(self._blocks()):
            hooks.enter_context(block.register_forward_pre_hook(partial(call, layer, "resid_in")))
            hooks.enter_context(attention.register_forward_hook(partial(call, layer, "attn_add")))
            hooks.enter_context(mlp.register_forward_hook(partial(call, layer, "mlp_add")))
            hooks.enter_context(block.register_forward_hook(partial(call, layer, "resid_out")))
        return hooks

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Refuses a model whose own logits of two tokens are not those found here, over a cache and with padding."""
        if "position_ids" not in inspect.signature(self.model.base_model.forward).parameters:
            raise ValueError(f"{self._name} takes no position_ids: expected explicit positions, as in GPT-2 or Llama")
        if {type(x) for x in DynamicCache(config=self.model.config).layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
            raise ValueError(f"{self._name} has layers without keys and values: expected attention in every layer")
        ids = torch.tensor([[0, 1]], device=self.embedding.device)
        mask_B3 = torch.tensor([[False, True, True]], device=ids.device)
        _, cache = self.forward(self.embed(ids[:, [0, 0]]), mask_BT=mask_B3[:, :2])
        hidden, _ = self.forward(self.embed(ids[:, 1:]), cache, mask_B3)
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if not _close(self.readout(hidden), logits[:, 1:]):
            raise ValueError(
                f"{self._name} gives other logits from embeddings than from ids: expected inputs that are rows of the "
                "embedding matrix, logits that are its output embeddings alone and, in float64, sdpa attention"
            )

    @torch.no_grad()
    def _check_sites(self) -> None:
        """Refuses edits of a model whose blocks do anything but add their attention and MLP to the residual stream."""
        seen: dict[tuple[int, Site], Tensor] = {}
        with self._edited(lambda layer, site, x: seen.setdefault((layer, site), x)):
            self.forward(self.embedding[None, :2])
        for layer in range(len(self._blocks())):
            resid_in, attn_add, mlp_add, resid_out = (seen[layer, site] for site in SITES)
            if not _close(resid_in + attn_add + mlp_add, resid_out):
                raise ValueError(f"{self._name} cannot be edited: expected blocks that only add attention and MLP")
        self._editable = True

    def _blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Every decoder block with its attention and its MLP."""
        for name, attention in (("h", "attn"), ("layers", "self_attn")):
            blocks = list(getattr(self.model.base_model, name, ()))
            if blocks and all(hasattr(block, attention) and hasattr(block, "mlp") for block in blocks):
                return [(block, getattr(block, attention), block.mlp) for block in blocks]
        raise ValueError(f"{self._name} cannot be edited: expected blocks h (attn, mlp) or layers (self_attn, mlp)")


def _thaw(cache: tuple[LayerCache, ...] | None) -> DynamicCache:
    """A cache for transformers to grow. It shares the tensors, which growing replaces and never changes."""
    growing = DynamicCache()
    for keys, values in cache or ():
        layer: Any = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        growing.layers.append(layer)
    return growing


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two ways through one model agree, as far as its precision tells."""
    return bool((a - b).abs().max() <= torch.finfo(a.dtype).eps ** 0.5 * b.abs().max())


def as_gpt2(transformer: Transformer) -> GPT2LMHeadModel:
    """A GPT-2 that computes the same function: the weights copied (linear ones transposed), every bias at zero."""
    shape, source = transformer.shape, transformer.state_dict()
    config = GPT2Config(
        vocab_size=len(transformer.tokens), n_positions=transformer.positions, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, activation_function="gelu", layer_norm_epsilon=1e-5, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # building draws weights from the global generator
        model: Any = GPT2LMHeadModel(config).eval()
    model.to(transformer.tokens)
    weights = {"wte.weight": source["tokens"], "wpe.weight": source["places"], "ln_f.weight": source["gain"]}
    names = {
        "gain_attn": "ln_1", "split": "attn.c_attn", "merge": "attn.c_proj",
        "gain_mlp": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(shape.layers):
        for ours, theirs in names.items():
            weights[f"h.{layer}.{theirs}.weight"] = source[f"layers.{layer}.{ours}"].t()
    model.transformer.load_state_dict(weights, strict=False)  # what is missing are biases: GPT-2 starts them at zero
    return model
