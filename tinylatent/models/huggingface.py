"""Hugging Face: any causal language model of `transformers` as a Backbone.

    backbone = HFBackbone(AutoModelForCausalLM.from_pretrained(folder))
    rollout(backbone, plan, prompt_BN, mask_BN)

Four things differ from calling the model directly. The cache is a value: transformers grows its own in place, so every
forward gets a new one that shares the old tensors. Positions are always passed, since left padding shifts them. The
model stays in eval mode (gradients flow all the same), because dropout would draw from a global generator and gradient
checkpointing would drop the cache. Edits are hooks on the decoder's blocks, there only while an edited forward runs.

Two computations outside the blocks are reproduced where a model has them: a scale on looked-up embeddings (Gemma,
BioGPT), and logits that are divided, multiplied or softly capped after the head (Granite, Cohere, Gemma 2). Logits are
float32 at least, whatever the model computes in.

The constructor compares logits after two tokens with the model's own and refuses a model where they differ: one that
does anything else between ids and logits, or eager attention in float64, where padding becomes NaN. It also refuses
models without explicit positions (BLOOM) or without keys and values in every layer (Mamba, Qwen3-Next). A forward
refuses what a model would get wrong in silence: positions beyond those it was made for or, where rotary frequencies
depend on the length read (dynamic, longrope), beyond the original ones, since cached keys keep older frequencies; and
rows that waited between two slots, once there are more slots than a sliding window, which counts masked ones too.

Letters: B rows, T new slots, R slots whose result is read, S all slots (cache and new), D width, V vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinylatent.core.extras import MissingExtraError
from tinylatent.core.precision import full
from tinylatent.models.backbone import Cache, Edit, Site, Table, check_positions, default_positions
from tinylatent.models.blocks import MLP, Attention, Block, Norm
from tinylatent.models.decoder import Decoder
from tinylatent.models.huggingface_added import AddedRows
from tinylatent.models.huggingface_layers import Layer, adding, alone, candidates, close, edited

try:
    from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
    from transformers.modeling_layers import GradientCheckpointingLayer
except ImportError as error:
    raise MissingExtraError("Hugging Face models need", "transformers", "hf") from error


class HFBackbone(nn.Module):
    """A Hugging Face causal language model behind the Backbone protocol.

    Args:
        model: the model with its head, such as a GPT2LMHeadModel; not copied, so training the backbone trains it. With
            activation checkpointing enabled, a forward of a whole sequence recomputes its blocks in the backward.
        tokens: number of tokens, where the model's table has more rows: those after them are never read or written.
            Pass `len(tokenizer)`; tables are often padded to a round size. All rows by default.
        added: rows of more tokens, which follow on those.
        added_head: the same for output embeddings, where these are a table of their own.

    Raises:
        ValueError: it cannot be driven by embeddings, positions and a cache, or gives other logits then; its input and
            output embeddings should be one tensor and are not; it has fewer rows than tokens; or, at the first edit,
            its blocks have unknown names or do more than add attention and MLP.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: int | None = None,
        added: AddedRows | None = None,
        added_head: AddedRows | None = None,
    ):
        super().__init__()
        self.model: Any = _unwrapped(model).eval()
        self._name = type(self.model).__name__
        self._found: tuple[Sequence[Layer], bool] | None = None
        self._recomputes = False
        self._config: Any = self.model.config.get_text_config()
        self._check_made()
        rows = len(self.model.get_input_embeddings().weight)
        if tokens is not None and not 2 <= tokens <= rows:
            raise ValueError(f"tokens is {tokens}: expected 2 to {rows}, the rows of the model's embedding table")
        self._tokens = rows if tokens is None else tokens
        self.added, self.added_head = added, added_head
        self._given, self.is_moved = _given(self.model), False
        self._scale = _embedding_scale(self.model.get_input_embeddings())
        self._positions, self._remedy = _positions_known(self._config)
        self.window = _narrowest_window(self._config)
        self.cache_name = _cache_name(self.model.base_model)
        self._check_logits()

    def train(self, mode: bool = True) -> "HFBackbone":
        """Sets the mode of the wrapper; the model inside stays in eval mode, for the reasons above."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def table(self) -> Table:
        """The input embedding table, with the scale of its lookup."""
        weight = self.model.get_input_embeddings().weight
        more = None if self.added is None else self.added.now()
        return Table(weight if len(weight) == self._tokens else weight[: self._tokens], self._scale, more)

    @property
    def layers_to_share(self) -> list[nn.Module]:
        """The blocks, which several processes may keep in parts."""
        return [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The parameters that have rows of tokens: of the embedding and of the head, and what added rows learn."""
        more = [rows.learned_AD for rows in self.every_added]
        return self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight, *more

    @property
    def given(self) -> set[str]:
        """Names of tensors that are those of the model's folder, however long adapters are trained beside them.

        What was frozen when this was made; none without adapters, or once `is_moved` says that they are others.
        """
        return set() if self.is_moved else self._given

    @property
    def every_added(self) -> list[AddedRows]:
        """Rows of added tokens: none, in one table, or in two."""
        return [rows for rows in (self.added, self.added_head) if rows is not None]

    def readout(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits of the tokens, by the model's output embeddings and what its config does to their result."""
        logits, config = self.model.get_output_embeddings()(hidden)[..., : self._tokens], self._config
        if (rows := self.added_head or self.added) is not None:
            logits = torch.cat([logits, nn.functional.linear(hidden, rows.now().to(hidden))], -1)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:
            logits = logits / divisor
        if (factor := getattr(config, "logit_scale", None)) is not None:
            logits = logits * factor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = cap * torch.tanh(logits / cap)
        return full(logits)

    def forward(
        self,
        embeddings_BTD: Float[Tensor, "B T D"],
        cache: Cache | None = None,
        mask_BS: Bool[Tensor, "B S"] | None = None,
        positions_BT: Int[Tensor, "rows T"] | None = None,
        edit: Edit | None = None,
        read_from: int = 0,
        keep: bool = True,
    ) -> tuple[Float[Tensor, "B R D"], Cache]:
        """Hidden states after the last norm from slot `read_from` on, and the extended cache; see Backbone.forward.

        The model computes all slots, whatever is read. Where activation checkpointing is enabled, a forward without
        cache or edit recomputes its blocks in the backward.

        Raises:
            ValueError: a position is beyond those that the model was made for; rotary models would extrapolate in
                silence. Or there are more slots than its sliding window, and a row waited between two of them.
        """
        (B, T, _), past, explicit = embeddings_BTD.shape, 0 if cache is None else cache.size, positions_BT is not None
        positions_BT = self.placed(past, T, mask_BS, positions_BT, embeddings_BTD.device)
        layers = () if edit is None else self._layers()[0]
        growing = _thaw(cache) if keep or cache is not None else None
        if growing is None and mask_BS is None and explicit:
            mask_BS = torch.ones(B, T, dtype=torch.bool, device=embeddings_BTD.device)  # else a repeated position would
            # be taken for the start of another sequence in the same row
        with ExitStack() as context:
            if edit is not None:
                context.enter_context(edited(layers, edit, range(past, past + T)))
            elif growing is None and torch.is_grad_enabled():
                context.enter_context(self._recomputed())
            output = self.model.base_model(
                inputs_embeds=embeddings_BTD,
                **{self.cache_name: growing},  # even if empty: a model's own may drop what leaves a sliding window
                attention_mask=mask_BS,
                position_ids=positions_BT.expand(B, -1),
                use_cache=growing is not None,
            )
        kept = tuple((keys, values) for keys, values, *_ in growing) if growing is not None and keep else ()
        return output.last_hidden_state[:, read_from:], Cache(past + T, kept)

    def placed(
        self, past: int, new: int, mask_BS: Tensor | None, positions_BT: Tensor | None, device: torch.device
    ) -> Int[Tensor, "rows T"]:
        """Positions of new slots, the given ones or those that follow from the mask.

        Raises:
            ValueError: as `forward`.
        """
        explicit = positions_BT is not None
        if positions_BT is None:
            positions_BT = default_positions(past, new, mask_BS, device)
        if self._positions is not None and (explicit or past + new > self._positions):
            check_positions(positions_BT, self._positions, self._remedy)
        if self.window is not None and mask_BS is not None and past + new > self.window:
            self._check_waiting(mask_BS)
        return positions_BT

    def flops(self, new: int, past: int = 0, read: int | None = None) -> int:
        """Operations of a forward: matrices of the base model, and every pair of slots that may attend.

        The count includes slots that are not read, pairs outside a sliding window, and all experts of a mixture.
        """
        modules = self.model.base_model.modules()
        tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
        matrices = [p.numel() for p in self.model.base_model.parameters() if p.ndim > 1 and id(p) not in tables]
        pairs = new * past + new * (new + 1) // 2
        heads, width = self._config.num_attention_heads, self.table.width
        head_width = vars(self._config).get("head_dim") or width // heads  # asked for otherwise, it may be refused
        return 2 * sum(matrices) * new + 4 * heads * head_width * pairs * self._config.num_hidden_layers

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return len(self._layers()[0])

    @property
    def parallel(self) -> bool:
        """Whether a layer's MLP reads what its attention reads."""
        return self._layers()[1]

    def through(
        self,
        stream_BSD: Float[Tensor, "B S D"],
        layers: range,
        mask_BS: Bool[Tensor, "B S"] | None = None,
        positions_BS: Int[Tensor, "rows S"] | None = None,
        edit: Edit | None = None,
    ) -> Float[Tensor, "B S D"]:
        """The residual stream after these layers; see Layered.through."""
        if not len(layers):
            return stream_BSD
        kept: list[Tensor] = []

        def look(layer: int, site: Site, x_BSD: Tensor, slots: range) -> Tensor:
            if edit is not None and layer in layers:
                x_BSD = edit(layer, site, x_BSD, slots)
            if (layer, site) == (layers[-1], "resid_out"):
                kept.append(x_BSD)
            return x_BSD

        with alone(self._layers()[0], layers, stream_BSD):
            self.forward(stream_BSD, None, mask_BS, positions_BS, look, keep=False)
        return kept[0]

    @property
    def sums(self) -> bool:
        """Always: other models are refused."""
        return True

    def finish(self, stream_BSD: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The stream after the last norm: a forward in which no layer computes, over rows of one slot."""
        stream_N1D = stream_BSD.reshape(-1, 1, stream_BSD.shape[-1])
        with alone(self._layers()[0], range(0), stream_N1D):
            return self.forward(stream_N1D, keep=False)[0].reshape(stream_BSD.shape)

    @contextmanager
    def _recomputed(self) -> Iterator[None]:
        """A context in which blocks keep their inputs alone and compute again in the backward, if that is enabled.

        transformers does so in training mode only. Blocks alone are put into it, not what they consist of, where
        dropout is.

        Raises:
            ValueError: they give other results then, at the first use.
        """
        blocks = [x for x in self.model.modules() if isinstance(x, GradientCheckpointingLayer)]
        blocks = [block for block in blocks if block.gradient_checkpointing]
        if blocks and not self._recomputes:
            self._check_recomputed()
        for block in blocks:
            block.training = True
        try:
            yield
        finally:
            for block in blocks:
                block.training = False

    def _check_recomputed(self) -> None:
        """Raises ValueError unless blocks in training mode compute what they compute otherwise."""
        self._recomputes = True
        x_BTD = self.table.rows(torch.tensor([[0, 1, 1, 0]], device=self.table.weight.device)).detach()
        with torch.random.fork_rng(), torch.enable_grad():
            found, _ = self.forward(x_BTD.requires_grad_(), keep=False)
        wanted, _ = self.forward(x_BTD)
        if not close(found, wanted):
            self._recomputes = False
            raise ValueError(
                f"{self._name} computes something else with activation checkpointing: expected blocks without dropout "
                "of their own; set the dropout of its config to 0, or disable checkpointing"
            )

    def _check_waiting(self, mask_BS: Bool[Tensor, "B S"]) -> None:
        """Raises ValueError if a row waited between two slots."""
        begins_B = (mask_BS[:, 1:] & ~mask_BS[:, :-1]).sum(1) + mask_BS[:, 0]
        if bool((begins_B > 1).any()):
            raise ValueError(
                f"a row waited between two slots, and {mask_BS.shape[1]} slots are more than the sliding window of "
                f"{self.window} of {self._name}, which counts the slots it waited in: take prompts one by one or "
                "those that need as many steps, or shorter ones"
            )

    def _check_made(self) -> None:
        """Raises ValueError unless there is a head, and it is the embedding where it should be."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{self._name} has no output embeddings: expected a causal language model with its head")
        tied = getattr(self._config, "tie_word_embeddings", False)
        if tied and head.weight is not self.model.get_input_embeddings().weight:
            raise ValueError(
                f"input and output embeddings of {self._name} are two tensors, though its config ties them: training "
                "would move one of them alone; tie them again by model.tie_weights(), and leave them out of an "
                "adapter's modules_to_save"
            )

    def _check_logits(self) -> None:
        """Raises ValueError unless the wrapper's logits after two tokens, with cache and padding, are the model's."""
        if "position_ids" not in inspect.signature(self.model.base_model.forward).parameters:
            raise ValueError(f"{self._name} takes no position_ids: expected explicit positions, as in GPT-2 or Llama")
        if {type(x) for x in DynamicCache(config=self.model.config).layers} - {DynamicLayer, DynamicSlidingWindowLayer}:
            raise ValueError(f"{self._name} has layers without keys and values: expected attention in every layer")
        if self.table.weight.is_meta:  # there are no logits to compare
            return
        try:
            found, wanted = self._second_token()
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self._name} cannot be driven by embeddings, explicit positions and a cache; transformers says: "
                f"{error}"
            ) from error
        if not close(found, wanted):
            raise ValueError(
                f"{self._name} gives other logits from embeddings than from ids: expected inputs that are rows of the "
                "embedding matrix, scaled at most, logits that are its output embeddings with no more than a scale and "
                "a soft cap and, in float64, sdpa attention"
            )

    @torch.no_grad()
    def _second_token(self) -> tuple[Float[Tensor, "1 1 V"], Float[Tensor, "1 1 V"]]:
        """Logits after two tokens, by the protocol, over a cache and with padding, and by the model itself."""
        table = self.table
        ids = torch.tensor([[0, 1]], device=table.weight.device)
        mask_B3 = torch.tensor([[False, True, True]], device=ids.device)
        _, cache = self.forward(table.rows(ids[:, [0, 0]]), mask_BS=mask_B3[:, :2])
        hidden, _ = self.forward(table.rows(ids[:, 1:]), cache, mask_B3)
        self.forward(table.mix_rows(ids)[:, None])  # what is no row: some models look for the ids behind it
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return self.readout(hidden)[..., : self._tokens], full(logits[:, 1:, : self._tokens])

    def _layers(self) -> tuple[Sequence[Layer], bool]:
        """The layers, and whether they are parallel; found at the first edit.

        Raises:
            ValueError: blocks have unknown names or do more than add attention and MLP.
        """
        if self._found is None:
            ids_12 = torch.tensor([[0, 1]], device=self.table.weight.device)
            found = candidates(self.model.base_model, self._name)
            self._found = adding(lambda: self.forward(self.table.rows(ids_12)), found, self._name)
        return self._found


def _given(model: nn.Module) -> set[str]:
    """Names of the tensors of a model with adapters that are not trained."""
    names, trained = {*model.state_dict()}, {name for name, x in model.named_parameters() if x.requires_grad}
    learned = {name for name in names if "lora_" in name}
    return {f"model.{name}" for name in names - learned - trained} if learned else set()


def _cache_name(model: nn.Module) -> str:
    """What a model calls its cache: newer versions of transformers have a shorter name."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _unwrapped(model: Any) -> Any:
    """The model inside a wrapper of peft, which holds the adapters too.

    Raises:
        ValueError: the wrapper adds prompts or prefixes, which are not in the model.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return model
    for name, config in model.peft_config.items():
        if config.is_prompt_learning:
            raise ValueError(
                f"adapter {name!r} of kind {config.peft_type} lives in its wrapper, which embeddings pass by: expected "
                "adapters within layers, such as LoRA"
            )
    return model.get_base_model()


BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary frequencies that depend on the length read: keys in a cache keep those of their time."""


def _positions_known(config: Any) -> tuple[int | None, str]:
    """How many positions a model was made for, all with the same frequencies; and what to do beyond them."""
    known, remedy = getattr(config, "max_position_embeddings", None), "take a shorter prompt or fewer steps"
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in [ropes] if "rope_type" in ropes else ropes.values():
        original = rope.get("original_max_position_embeddings") if rope.get("rope_type") in BY_LENGTH else None
        if original is not None and (known is None or original < known):
            known = original
            remedy += f" (beyond these, rotary frequencies of kind {rope['rope_type']} change with the length)"
    return known, remedy


def _narrowest_window(config: Any) -> int | None:
    """The size of the narrowest sliding window; None where every slot sees all before it."""
    layers = DynamicCache(config=config).layers
    return min((x.sliding_window for x in layers if isinstance(x, DynamicSlidingWindowLayer)), default=None)


def _embedding_scale(embeddings: Any) -> float | None:
    """What a lookup multiplies rows by, in their precision; None if there is no such number."""
    scale = getattr(embeddings, "embed_scale", None)
    return None if scale is None else torch.as_tensor(scale).to(embeddings.weight.dtype).item()


def _thaw(cache: Cache | None) -> DynamicCache:
    """A cache for transformers to grow. It shares the tensors, which growing replaces and never changes."""
    growing = DynamicCache()
    for keys, values in () if cache is None else cache.layers:
        layer: Any = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        growing.layers.append(layer)
    return growing


# ---------------------------------------------------------------------------------------------------------------------
# Our weights in a GPT-2


def as_gpt2(decoder: Decoder) -> GPT2LMHeadModel:
    """A GPT-2 that computes the same function: the weights copied (linear ones transposed), every bias at zero.

    Raises:
        ValueError: the decoder's blocks are not GPT-2's (those of a default ModelConfig are).
    """
    if not _is_gpt2(decoder):
        raise ValueError(
            "only a decoder with the blocks of GPT-2 can be copied: expected norm 'pre', mlp 'gelu', experts 1, loops 1"
        )
    attention: Any = decoder.blocks[0].attention
    config = GPT2Config(
        vocab_size=len(decoder.table), n_positions=decoder.positions, n_embd=decoder.width, n_layer=len(decoder.blocks),
        n_head=attention.heads, activation_function="gelu", layer_norm_epsilon=1e-5, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # building draws weights from the global generator
        model: Any = GPT2LMHeadModel(config).eval()
    model.to(decoder.embedding)
    source = decoder.state_dict()
    weights = {"wte.weight": source["embedding"], "wpe.weight": source["pos_emb"], "ln_f.weight": source["norm.weight"]}
    names = {
        "attn_norm.weight": "ln_1", "attention.qkv_proj": "attn.c_attn", "attention.out_proj": "attn.c_proj",
        "mlp_norm.weight": "ln_2", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
    }  # fmt: skip
    for layer in range(len(decoder.blocks)):
        for ours, theirs in names.items():
            weights[f"h.{layer}.{theirs}.weight"] = source[f"blocks.{layer}.{ours}"].t()
    model.transformer.load_state_dict(weights, strict=False)  # what is missing are biases: GPT-2 starts them at zero
    return model


def _is_gpt2(decoder: Decoder) -> bool:
    """Whether the decoder is a GPT-2 without biases."""

    def fits(block: nn.Module) -> bool:
        return (
            isinstance(block, Block)
            and isinstance(block.attention, Attention)
            and isinstance(block.mlp, MLP)
            and (block.placement, block.mlp.activation, len(block.mlp.up_proj)) == ("pre", "gelu", 4 * decoder.width)
            and isinstance(block.attn_norm, Norm)
        )

    return (
        len(decoder.blocks) > 0
        and decoder.loops == 1
        and isinstance(decoder.norm, Norm)
        and all(map(fits, decoder.blocks))
    )
