"""What committing costs: discrete chains of thought on MNNS, with exact probabilities of success.

The same hand-made layer as CoT2's solver, its thoughts replaced by sampled tokens: each step commits to one partial
sum, drawn from the exact frontier of the sums it can still hold, and the last step takes the smaller non-negative sum
that is left. Its success is the share of the first m - 1 signs from which the optimum can still be reached. Better than
drawing signs by coin is to choose them well: the best any chain can do that reads the numbers one by one is a value
function, solved backwards here. Only a chain that sees the numbers to come can do better.

Letters: P problems, M = m numbers, H the numbers before the last, K = 2^(m-1) sign tuples, N values of a number.
"""

import numpy as np
import numpy.typing as npt
import torch
from tinylatent_tasks import MNNS
from tinylatent_tasks.choice_sums import all_choices

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Token
from tinylatent.models.decoder import Decoder

Chances = npt.NDArray[np.float64]
CHUNK = 1 << 16  # rows at a time


def committed(task: MNNS, problems: npt.ArrayLike) -> Chances:
    """Probability (P,) that a chain which draws its signs by fair coins, but the last, ends at the right answer."""
    rows_PM = task.rows(problems)
    signs_KH = all_choices(task.digits - 1, (-1, 1))
    before_PK = rows_PM[:, :-1] @ signs_KH.T
    answer_P1, last_P1 = task.answer(rows_PM)[:, None], rows_PM[:, -1:]
    return ((before_PK == answer_P1 - last_P1) | (before_PK == answer_P1 + last_P1)).mean(axis=1)


@torch.no_grad()
def committed_by_engine(task: MNNS, machine: Decoder, problems: npt.ArrayLike) -> Chances:
    """The same (P,), by running the machine along every chain of sums that signs can make, as tokens.

    A chain counts with the probability the machine itself gives it; what it answers is read off its logits.
    """
    rows_PM = task.rows(problems)
    signs_KM = all_choices(task.digits - 1, (-1, 1))
    K, thought = len(signs_KM), Token(temperature=1.0)
    chances = []
    for part_PM in np.array_split(rows_PM, max(1, len(rows_PM) * K // CHUNK)):
        sums_PKH = (part_PM[:, None, :-1] * signs_KM).cumsum(-1)
        ids_RH = torch.from_numpy(task.sum_ids(sums_PKH.reshape(-1, task.digits - 1)))
        plan = (Segment(thought, task.digits - 1, thought.given(ids_RH)), Segment(GREEDY, 1))
        prompt_RN = torch.from_numpy(np.repeat(task.prompt(part_PM)[0], K, axis=0))
        run = rollout(machine, plan, prompt_RN)
        answer_R = torch.from_numpy(task.sum_ids(task.answer(part_PM))).repeat_interleave(K)
        right_R = run.logits_BTV[:, -1].argmax(-1) == answer_R
        chance_R = run.log_prob_BT[:, :-1].sum(1).double().exp()
        chances.append((chance_R * right_R).view(-1, K).sum(1).numpy())
    return np.concatenate(chances)


def best_online(task: MNNS) -> float:
    """Success of the best chain that sees each number only when it must give it a sign; numbers are uniform.

    V(d_1 .. d_m, s) = [s is the answer]; V(d_1 .. d_t, s) = max over signs of the mean over d_{t+1} of the next V,
    at s + sign d_{t+1} with the sign chosen after d_{t+1} is seen.
    """
    space_PM = task.space()
    reach, N = task.digits * task.high, task.high - task.low + 1
    value_PS = np.zeros((len(space_PM), 2 * reach + 1))
    value_PS[np.arange(len(space_PM)), reach + task.answer(space_PM)] = 1.0
    for t in range(task.digits, 0, -1):
        number_P = np.tile(np.arange(task.low, task.high + 1), N ** (t - 1))
        padded_PS = np.pad(value_PS, ((0, 0), (task.high, task.high)))
        place_S = np.arange(value_PS.shape[1]) + task.high
        rows_P1 = np.arange(len(value_PS))[:, None]
        up_PS = padded_PS[rows_P1, place_S + number_P[:, None]]
        down_PS = padded_PS[rows_P1, place_S - number_P[:, None]]
        value_PS = np.maximum(up_PS, down_PS).reshape(-1, N, value_PS.shape[1]).mean(axis=1)
    return float(value_PS[0, reach])
