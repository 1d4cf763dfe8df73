"""Guest: a latent swapped in from another problem at one step. A solver made by hand then gives the hybrid's answer:
its state is the other problem's up to there, and its own digits after."""

import numpy as np
import torch
from tinylatent_tasks import MNNS
from tinylatent_theory.constructions.choice_sums import mnns_solver

from tinylatent.engine.controls import Shuffled
from tinylatent.engine.plan import ANSWER, Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, MIXTURE
from tinylatent.objectives.speakers import Symbols

TASK = MNNS(digits=4, high=4)


def test_a_swapped_latent_gives_the_hybrid_answer():
    machine = mnns_solver(TASK).float()
    rows_PM = TASK.space()[::7]
    examples = Symbols(TASK, rows_PM).examples()
    source_P = torch.arange(len(rows_PM)).roll(5)
    swap = Shuffled(MIXTURE, source_P)
    for step in range(3):  # the latent that is written at this step
        plan = (Segment(MIXTURE, step), Segment(swap, 1), Segment(MIXTURE, 2 - step), Segment(GREEDY, 1, name=ANSWER))
        trace = rollout(machine, plan, examples.prompt_BN)
        hybrid_PM = np.concatenate([rows_PM[source_P.numpy()][:, : step + 1], rows_PM[:, step + 1 :]], 1)
        answer_PA = trace.answer().numpy()
        assert TASK.score(hybrid_PM, answer_PA).all()
        changed = TASK.answer(hybrid_PM) != TASK.answer(rows_PM)
        assert changed.mean() > 0.2
        assert not TASK.score(rows_PM[changed], answer_PA[changed]).any()
