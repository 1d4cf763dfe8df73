"""Next token everywhere: trains every token of the prompt beside the answer, then answers at once, as SASRec does.

SASRec (Kang and McAuley 2018, arXiv 1808.09781) is what sequential recommenders are measured against: a causal
transformer over item ids that predicts the next item after every item of a history. It is this method on the task
`recommendation` with `item_tokens`, where a token is an item; the loss of a row whose tokens are s_1 .. s_n (<bos>, the
prompt, the answer) is

    L = - sum_t log softmax(E h_t)[s_t+1]        t = 1 .. n - 1,  E the table, h_t the state after s_1 .. s_t

On any other task it is a language model of prompts and answers. Where this differs from the paper: a full softmax over
the vocabulary instead of one sampled negative, positions counted from the first item instead of the last, <bos> before
it, and the blocks, optimizer and dropout of all our methods.

Letters: B rows, S tokens of prompt and answer, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinylatent.engine.rollout import shifted_positions
from tinylatent.objectives.losses import SKIP
from tinylatent.objectives.method import Loss, Method, Model, TrainState


@dataclass(frozen=True)
class SASRec(Method):
    """Learns to say every next token of prompt and answer; answers without a thought."""

    name = "sasrec"
    compared = False
    label = "SASRec"

    def loss(self, model: Model, batch: Any, state: TrainState) -> Loss:
        """The cross-entropy of every token after the first, summed over a row and divided by the rows of the batch."""
        return Loss(next_token_loss(model, batch, state.rows))


def next_token_loss(model: Model, batch: Any, rows: int | None = None, answers: bool = True) -> Float[Tensor, ""]:
    """The cross-entropy of every next token of the prompts, and of the answers behind them unless they are left out.

    It is summed over a row and divided by `rows`, the rows of the whole batch where this is a part of one.
    """
    backbone, mask_BS = model.backbone, batch.prompt_mask_BN
    ids_BS = torch.cat([batch.prompt_BN, batch.answer_BA], 1) if answers else batch.prompt_BN
    next_BT = ids_BS[:, 1:]
    if mask_BS is not None:
        mask_BS = F.pad(mask_BS, (0, ids_BS.shape[1] - mask_BS.shape[1]), value=True)[:, :-1]
        next_BT = next_BT.masked_fill(~mask_BS, SKIP)  # prompts are padded on the left: no token follows padding
    if answers and batch.answer_mask_BA is not None:
        prompt_BN = torch.ones_like(batch.prompt_BN[:, 1:], dtype=torch.bool)
        next_BT = next_BT.masked_fill(~torch.cat([prompt_BN, batch.answer_mask_BA], 1), SKIP)
    hidden_BTD, _ = backbone.forward(
        backbone.table.rows(ids_BS[:, :-1]),
        mask_BS=mask_BS,
        positions_BT=shifted_positions(0, next_BT.shape[1], mask_BS, batch.offset_B),
    )
    logits_BTV = backbone.readout(hidden_BTD)
    total = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), ignore_index=SKIP, reduction="sum")
    return total / (rows or len(ids_BS))
