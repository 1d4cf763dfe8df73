"""Guest: a JSON-lines data set of question, steps and answer, in words; answers end at their stop, and are judged as
text."""

import json

import numpy as np
import pytest
import torch

from tinylatent.core.seeds import Seeds
from tinylatent.evaluation.evaluate import evaluate
from tinylatent.methods import Coconut, CoT2, DiscreteCoT
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent.objectives.examples import Examples, Targets
from tinylatent.objectives.method import Model
from tinylatent.training.config import Training
from tinylatent.training.loop import fit

WORDS = ("<pad>", "<stop>", "zero", "one", "two", "three", "four", "twenty", "plus", "equals", "is")


class Lines:
    """Speaks JSON lines, a token a word; a step of reasoning is a whole line of `steps`."""

    def __init__(self, problems):
        self.problems = problems
        self.vocabulary = len(WORDS)

    def part(self, index):
        return Lines([self.problems[i] for i in index])

    def examples(self, device="cpu", budget=None):
        asked, chains, answers, steps = [], [], [], []
        for line in self.problems:
            asked.append([WORDS.index(word) for word in line["question"].split()])
            words = [[WORDS.index(word) for word in step.split()] for step in line["steps"]]
            chains.append([word for step in words for word in step])
            steps.append([place for place, step in enumerate(words) for _ in step])
            answers.append([WORDS.index(word) for word in line["answer"].split()] + [1])
        N, M, A = (max(map(len, each)) for each in (asked, chains, answers))
        prompt_BN = torch.tensor([[0] * (N - len(ids)) + ids for ids in asked])
        fill = lambda rows, size, pad: torch.tensor([row + [pad] * (size - len(row)) for row in rows]).long()  # noqa: E731
        chain_BT = torch.cat([fill(chains, M, 0), fill(answers, A, 0)], 1)
        shares = torch.ones(*chain_BT.shape, 1)
        last_B1 = torch.tensor([[len(line["steps"])] for line in self.problems])
        step_BT = torch.cat([fill(steps, M, -1), last_B1.expand(-1, A)], 1)
        return Examples(
            prompt_BN,
            prompt_BN != 0,
            torch.tensor([len(ids) for ids in chains]),
            chain_BT,
            Targets(len(WORDS), chain_BT[..., None], shares),
            A,
            self,
            answer_mask_BA=torch.arange(A) < torch.tensor([len(ids) for ids in answers])[:, None],
            step_BT=step_BT,
            stop_ids=(1,),
        )

    def judge(self, examples, answer_BA):
        said = [" ".join(WORDS[i] for i in row if i >= 0) for row in answer_BA.tolist()]
        each = len(said) // len(examples)  # answers to an example stand side by side
        return torch.tensor([text == examples.problems()[n // each]["answer"] for n, text in enumerate(said)])


def lines():
    """Sums of two numbers below three, some with an answer of two words."""
    names, found = WORDS[2:7], []
    for a in range(3):
        for b in range(3):
            total = "twenty " + names[a + b] if b == 2 else names[a + b]
            steps = [f"{names[a]} plus {names[b]}", f"equals {total}"] if a else [f"is {total}"]
            found.append(json.dumps({"question": f"{names[a]} plus {names[b]}", "steps": steps, "answer": total}))
    return Lines([json.loads(line) for line in found])


@pytest.mark.slow
def test_json_lines_fit():
    speaker = lines()
    examples = speaker.examples()
    assert examples.num_steps.tolist()[0] == 2
    assert examples.steps_BT[3].tolist()[:5] == [0, 0, 0, 1, 1]
    for method, sure in ((DiscreteCoT(), True), (CoT2(), True), (Coconut(stages=1), False)):
        model = Model(Decoder.fresh(len(WORDS), 24, ModelConfig(32, 2, 2)))
        fit(model, method, method.supervise(speaker), Training(steps=150, batch_size=9, learning_rate=1e-2), Seeds())
        result = evaluate(speaker, method, model)
        assert result.answer_PA.shape == (9, 3)
        if sure:
            assert result.right_P.all()
            long = np.array(["twenty" in line["answer"] for line in speaker.problems])
            assert ((result.answer_PA >= 0).sum(1) == np.where(long, 2, 1)).all()  # the stop itself is not said


def test_answers_may_all_stop_early(unchecked):
    """A model that says less than the longest answer is judged all the same, in batches of any size."""
    speaker = lines()
    model = Model(Decoder.fresh(len(WORDS), 24, ModelConfig(32, 2, 2)))
    short = speaker.part([0, 1, 3])  # answers of one word
    fit(
        model,
        DiscreteCoT(),
        DiscreteCoT().supervise(short),
        Training(steps=150, batch_size=3, learning_rate=1e-2),
        Seeds(),
    )
    alone, together = (evaluate(speaker, DiscreteCoT(), model, batch=size) for size in (1, 9))
    most = 6  # tokens of thinking; answers may be as long as the longest of their batch
    for result in (alone, together):
        assert result.right_P[[0, 1, 3]].all()
        assert most < len(result.entropy_T) <= most + 3
    assert np.allclose(alone.entropy_T[:most], together.entropy_T[:most], atol=1e-5)
    assert np.allclose(alone.kl_T[:most], together.kl_T[:most], atol=1e-4)
