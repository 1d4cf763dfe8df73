"""Problems: a task's batch as tensors on the model's device, uploaded once and indexed from then on.

Letters: B rows, N prompt, T words of a trace (its steps before the answer, then the answer's tokens), V vocabulary,
A answer tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks import Batch


@dataclass(frozen=True)
class Problems:
    """What methods read. Masks are None where nothing is masked, so that the common case costs nothing."""

    prompt_BN: Int[Tensor, "B N"]
    prompt_mask_BN: Bool[Tensor, "B N"] | None
    thinking: int | Int[Tensor, " B"]
    """Steps before the answer: one number for all rows, or one for each."""
    words_BT: Int[Tensor, "B T"]
    """The optimal trace: its steps before the answer, then the answer's tokens."""
    target_BTV: Float[Tensor, "B T V"]
    """What CSFT supervises: the frontier before the answer, then one-hot on the answer's tokens."""
    answer_tokens: int
    """A, the number of tokens of an answer."""
    offset_B: Int[Tensor, " B"] | None = None
    """Position of each row's first token (training with room to spare draws it at random); 0 if None."""

    @classmethod
    def upload(cls, batch: Batch, device: torch.device | str = "cpu") -> "Problems":
        """The batch as tensors."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        answer_BA, frontier_BTV = tensor(batch.answer_BA), tensor(batch.frontier_BTV)
        answers_BAV = F.one_hot(answer_BA, frontier_BTV.shape[2]).to(frontier_BTV)
        uniform = bool((batch.steps_B == batch.steps_B[0]).all())
        return cls(
            prompt_BN=tensor(batch.prompt_BN),
            prompt_mask_BN=None if batch.prompt_mask_BN.all() else tensor(batch.prompt_mask_BN),
            thinking=int(batch.steps_B[0]) - 1 if uniform else tensor(batch.steps_B) - 1,
            words_BT=torch.cat([tensor(batch.chain_BT)[:, :-1], answer_BA], 1),
            target_BTV=torch.cat([frontier_BTV[:, :-1], answers_BAV], 1),
            answer_tokens=answer_BA.shape[1],
        )

    def __len__(self) -> int:
        return len(self.prompt_BN)

    def rows(self, index: Int[Tensor, " b"] | slice) -> "Problems":
        """Some of the problems, by index or slice."""

        def cut(x: Tensor) -> Tensor:
            return x[index] if isinstance(index, slice) else x.index_select(0, index)

        return Problems(
            cut(self.prompt_BN),
            None if self.prompt_mask_BN is None else cut(self.prompt_mask_BN),
            self.thinking if isinstance(self.thinking, int) else cut(self.thinking),
            cut(self.words_BT),
            cut(self.target_BTV),
            self.answer_tokens,
            None if self.offset_B is None else cut(self.offset_B),
        )

    @property
    def slots(self) -> int:
        """Slots a model reads: the prompt and all words but the last."""
        return self.prompt_BN.shape[1] + self.words_BT.shape[1] - 1

    @property
    def answer_BA(self) -> Int[Tensor, "B A"]:
        """The answer's tokens."""
        return self.words_BT[:, -self.answer_tokens :]

    @property
    def words_before(self) -> int:
        """Steps before the answer of the longest row."""
        return self.words_BT.shape[1] - self.answer_tokens
