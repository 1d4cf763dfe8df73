"""Residuals: everything that layers read and add in a run, and ways to run on from any layer.

    record = record_tokens(model, ids_BS, mask_BS)      # or record_trace(rollout(..)), latent steps included
    record.stream[2]                                    # what enters layer 2, for every row and slot
    record.attention[2]                                 # what its attention adds
    record.gap()                                        # 0 up to rounding: the stream is the sum of its additions
    record.on(2, changed_BSD)                           # the last stream, had this entered layer 2

A record is one forward over whole sequences. Inputs of latent steps are those that the run made: an intervention below
changes what follows from them within the forward, not the latents themselves. To change those too, roll out under an
edit and record that trace.

Letters: B rows, S slots, D width, L layers, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinylatent.core.precision import full
from tinylatent.engine.trace import Trace
from tinylatent.models.backbone import Backbone, Edit, Layered, Site, default_positions

NUMBERS_AT_ONCE = 2**25
"""A sweep is cut into forwards of about so many numbers in its largest tensor."""


@dataclass(frozen=True)
class Record:
    """The residual stream of a forward over whole sequences, and all that is added to it.

    A looped stack numbers its layers consecutively. Numbers are float32 at least, whatever the model computes in.
    """

    model: Layered
    stream: Float[Tensor, "L1 B S D"]
    """L + 1 states: before every layer and after the last."""
    attention: Float[Tensor, "L B S D"]
    mlp: Float[Tensor, "L B S D"]
    """Zeros for a layer without MLP."""
    mask_BS: Bool[Tensor, "B S"]
    """True where a slot holds an input."""
    positions_BS: Int[Tensor, "B S"]

    @property
    def depth(self) -> int:
        """L."""
        return len(self.attention)

    @property
    def added(self) -> Float[Tensor, "L B S D"]:
        """What every layer contributes: the stream after it less the stream before it."""
        return self.stream[1:] - self.stream[:-1]

    @property
    def contributions(self) -> Float[Tensor, "L2 B S D"]:
        """All 2 L additions in the order they were made: attention and MLP of layer 0, of layer 1, .."""
        return torch.stack([self.attention, self.mlp], 1).flatten(0, 1)

    def gap(self) -> float:
        """Largest difference between the stream and the sum of its additions, relative to the stream's largest entry.

        0 up to rounding, but for blocks that normalise the sum (norm "post") and where an edit replaced the stream.
        """
        sums = self.stream[:1] + (self.attention + self.mlp).cumsum(0)
        live = self.mask_BS[None, ..., None]
        return (((sums - self.stream[1:]) * live).abs().max() / (self.stream * live).abs().max()).item()

    def cut(self, first: int) -> "Record":
        """The record from a slot on; the slots before it must hold no input of any row."""
        here = (slice(None), slice(None), slice(first, None))
        return replace(
            self,
            stream=self.stream[here],
            attention=self.attention[here],
            mlp=self.mlp[here],
            mask_BS=self.mask_BS[:, first:],
            positions_BS=self.positions_BS[:, first:],
        )

    def rows(self, index_b: Int[Tensor, " b"]) -> "Record":
        """Some of the rows."""
        return replace(
            self,
            stream=self.stream[:, index_b],
            attention=self.attention[:, index_b],
            mlp=self.mlp[:, index_b],
            mask_BS=self.mask_BS[index_b],
            positions_BS=self.positions_BS[index_b],
        )

    def alone(self, row: int) -> "Record":
        """One row by itself, without slots that hold no input: those change nothing."""
        live_S = self.mask_BS[row]
        return replace(
            self,
            stream=self.stream[:, row : row + 1, live_S],
            attention=self.attention[:, row : row + 1, live_S],
            mlp=self.mlp[:, row : row + 1, live_S],
            mask_BS=self.mask_BS[row : row + 1, live_S],
            positions_BS=self.positions_BS[row : row + 1, live_S],
        )

    def rank_BS(self) -> Int[Tensor, "B S"]:
        """The place of every slot among those of its row that hold an input, from 0; -1 before the first."""
        return self.mask_BS.cumsum(1) - 1

    def on(
        self,
        layer: int,
        stream_RSD: Float[Tensor, "R S D"],
        edit: Edit | None = None,
        rows_R: Int[Tensor, " R"] | None = None,
        stop: int | None = None,
    ) -> Float[Tensor, "R S D"]:
        """The stream after the last layer (or before layer `stop`), had `stream_RSD` entered this layer.

        rows_R: the row whose mask and positions each of them has; row r by default.
        """
        mask_RS, positions_RS = self.mask_BS, self.positions_BS
        if rows_R is not None:
            mask_RS, positions_RS = mask_RS[rows_R], positions_RS[rows_R]
        layers, own = range(layer, self.depth if stop is None else stop), self.model.table.weight.dtype
        mask = None if mask_RS.all() else mask_RS
        return full(self.model.through(stream_RSD.to(own), layers, mask, positions_RS, edit))

    def logits(self, stream: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape V"]:
        """Logits of vectors of the last stream: the last norm, then the readout. Of an earlier one: the logit lens."""
        stream_1ND = stream.reshape(1, -1, stream.shape[-1]).to(self.model.table.weight.dtype)
        return self.model.readout(self.model.finish(stream_1ND))[0].unflatten(0, stream.shape[:-1])


def record(
    model: Backbone,
    inputs_BSD: Float[Tensor, "B S D"],
    mask_BS: Bool[Tensor, "B S"] | None = None,
    positions_BS: Int[Tensor, "rows S"] | None = None,
    change: Edit | None = None,
) -> Record:
    """The record of one forward over these inputs.

    Args:
        model: a decoder, or a Hugging Face model behind a backbone.
        inputs_BSD: embeddings of whole sequences.
        mask_BS: True where a slot holds an input; everywhere by default.
        positions_BS: by default the number of inputs before each.
        change: an edit applied first; what it returns is recorded.

    Raises:
        ValueError: the model's layers cannot be run one at a time, or are unknown.
    """
    if not isinstance(model, Layered):
        raise ValueError(
            f"{type(model).__name__} has no layers to look into: expected a Decoder or an HFBackbone (not a frozen one)"
        )
    seen: dict[tuple[int, Site], Tensor] = {}

    def look(layer: int, site: Site, x_BSD: Tensor, slots: range) -> Tensor:
        seen[layer, site] = x_BSD if change is None else change(layer, site, x_BSD, slots)
        return seen[layer, site]

    model.forward(inputs_BSD, mask_BS=mask_BS, positions_BT=positions_BS, edit=look, keep=False)
    rows, slots, last = *inputs_BSD.shape[:2], model.depth - 1
    if positions_BS is None:
        positions_BS = default_positions(0, slots, mask_BS, inputs_BSD.device)
    if mask_BS is None:
        mask_BS = torch.ones(rows, slots, dtype=torch.bool, device=inputs_BSD.device)
    nothing = torch.zeros_like(seen[0, "resid_in"])
    return Record(
        model,
        full(torch.stack([*(seen[layer, "resid_in"] for layer in range(last + 1)), seen[last, "resid_out"]])),
        full(torch.stack([seen[layer, "attn_add"] for layer in range(last + 1)])),
        full(torch.stack([seen.get((layer, "mlp_add"), nothing) for layer in range(last + 1)])),
        mask_BS,
        positions_BS.expand(rows, -1),
    )


def record_tokens(
    model: Backbone,
    ids_BS: Int[Tensor, "B S"],
    mask_BS: Bool[Tensor, "B S"] | None = None,
    change: Edit | None = None,
) -> Record:
    """The record of a forward over tokens. Raises as `record` does, and for ids that the model does not have."""
    return record(model, model.table.rows(ids_BS), mask_BS, change=change)


def record_trace(trace: Trace, change: Edit | None = None) -> Record:
    """The record of a run: of all slots that the model has read, latent steps included.

    Raises:
        ValueError: as `record`, or the weights have changed since the trace was made.
    """
    trace.check_weights()
    read = torch.cat(trace.inputs, 1)
    return record(trace.backbone, read, trace.mask_BS[:, : read.shape[1]], trace.positions_BS, change)


def in_parts(record: Record, rows: int, layers: int = 1) -> Sequence[slice]:
    """Slices of the rows of a sweep that are run at once: logits and hidden units, of so many layers, bound them."""
    slots, width = record.mask_BS.shape[1], record.stream.shape[-1]
    size = max(1, NUMBERS_AT_ONCE // (slots * max(8 * width * layers, len(record.model.table))))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
