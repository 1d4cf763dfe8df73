"""Text: speakers in words, through a tokenizer of transformers or anything that has its methods.

`Text` poses the problems of a task as questions and lets the task judge what is answered; its steps are states, which
need names in the model's vocabulary (NAMES):

    own      a token of its own for each state, added to the model: one latent a state, and the frontier is exact
    words    an existing token for each state: the same, and nothing is added
    spelled  the state's name in the tokenizer's pieces, as many steps as the longest name has; targets are the shares
             of each piece by itself, so that which pieces belong together is lost where several states are possible

`Lines` speaks lines of question, steps and answer, such as GSM8K; a step is its text up to a line break, and there is
one chain, so that the frontier is that chain. In both an answer ends with the tokenizer's end-of-sequence token and is
judged as text.

Letters: B rows, N prompt, T tokens of the chain, A answer tokens, S states of a target, L pieces of a name, V symbols
of the task.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from tinylatent_tasks import Task
from tinylatent_tasks.batch import SPECIAL_TOKENS
from tinylatent_tasks.checks import short
from tinylatent_tasks.published import Line, is_right
from torch import Tensor

from tinylatent.engine.trace import NO_TOKEN
from tinylatent.objectives.examples import Examples, Targets
from tinylatent.objectives.speakers import Symbols

Naming = Literal["own", "words", "spelled"]
NAMES: tuple[Naming, ...] = get_args(Naming)
BREAK = "\n"
"""Ends a question without a chat template, and every step of a line; fills up names that are shorter than others."""
UNKNOWN = "\ufffd"
"""Stands for a token that the tokenizer does not have, so that no answer with one can be read."""


@dataclass(frozen=True)
class InText:
    """How a task is put into words.

    Raises ValueError for an unknown kind of names, and for words beside other names.
    """

    names: Naming = "own"
    """How states are named: by tokens of their own, by existing words, or spelled in pieces."""
    words: tuple[str, ...] = ()
    """With names "words", a word of one token for every symbol of the task's vocabulary, in its order."""
    chat: bool | None = None
    """Whether questions are put into the tokenizer's chat template; None where it has one."""

    def __post_init__(self) -> None:
        if self.names not in NAMES:
            raise ValueError(f"names {self.names!r}: expected one of {', '.join(NAMES)}")
        if bool(self.words) != (self.names == "words"):
            raise ValueError(f"names {self.names!r} with {len(self.words)} words: expected words with names 'words'")


@dataclass(frozen=True)
class Wording:
    """How text becomes tokens and back.

    Raises ValueError for a tokenizer without an end-of-sequence token, or a chat without a template.
    """

    tokenizer: Any
    """Of transformers; anything with its methods will do."""
    chat: bool | None = None
    """Whether questions are put into the tokenizer's chat template; None where it has one."""

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, which ends an answer: set its eos_token")
        if self.chat and not self.tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template: leave out chat, or take an instruction-tuned model")

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)

    @property
    def stop_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    def asked(self, questions: Sequence[str]) -> list[list[int]]:
        """The ids of questions as prompts: in the chat template up to where the reply begins, or with a line break."""
        if self.tokenizer.chat_template if self.chat is None else self.chat:
            template = self.tokenizer.apply_chat_template
            turns = [[{"role": "user", "content": question}] for question in questions]
            texts = [template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
            return self.ids(texts)
        ids = [self.tokenizer.encode(question + BREAK) for question in questions]
        return [each[:-1] if each and each[-1] == self.stop_id else each for each in ids]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, without special tokens around them."""
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return found

    def name(self, id: int) -> str:
        """What a single token stands for."""
        return str(self.tokenizer.decode([id]))

    def texts(self, ids_BA: Int[Tensor, "B A"]) -> list[str]:
        """The texts that ids stand for, -1 for no token."""
        rows, size = [[id for id in row if id >= 0] for row in ids_BA.tolist()], len(self)
        known = [[] if any(id >= size for id in row) else row for row in rows]
        texts = self.tokenizer.batch_decode(known)
        return [UNKNOWN if row and not ids else text.strip() for row, ids, text in zip(rows, known, texts, strict=True)]


def assembled(
    wording: Wording,
    vocabulary: int,
    prompts: Sequence[Sequence[int]],
    steps_BT: Int[Tensor, "B T"],
    count_B: Int[Tensor, " B"],
    answers: Sequence[Sequence[int]],
    targets: tuple[Tensor, Tensor],
    step_BT: Int[Tensor, "B T"],
    speaker: Any,
    device: torch.device | str,
) -> Examples:
    """Examples of text: prompts padded on the left, steps and answers on the right, a stop behind every answer.

    Args:
        wording: gives the stop token.
        vocabulary: number of tokens.
        prompts: ids of every prompt.
        steps_BT: ids of the tokens before the answer.
        count_B: how many of them a row has.
        answers: ids of every answer, without a stop.
        targets: ids and shares (B, T, S) of the tokens before the answer.
        step_BT: the step of reasoning that each of these tokens belongs to.
        speaker: judges answers.
        device: where the examples are to be.
    """
    (prompt_BN, mask_BN), stop = _padded(prompts, left=True), wording.stop_id
    answer_BA, answer_mask_BA = _padded([[*ids, stop] for ids in answers])
    answer_BA = answer_BA.masked_fill(~answer_mask_BA, stop)
    ids_BTS, shares_BTS = targets
    fill = (0, ids_BTS.shape[2] - 1)
    answer_ids = F.pad(answer_BA[..., None], fill)
    ones = F.pad(torch.ones_like(answer_BA, dtype=torch.float32)[..., None], fill)
    real_BT = torch.arange(steps_BT.shape[1]) < count_B[:, None]
    last_B = F.pad((step_BT + 1) * real_BT, (1, 0)).amax(1)
    frontier = Targets(
        vocabulary,
        torch.cat([ids_BTS, answer_ids], 1).to(device),
        torch.cat([shares_BTS.float(), ones], 1).to(device),
    )
    return Examples(
        prompt_BN=prompt_BN.to(device),
        prompt_mask_BN=None if mask_BN.all() else mask_BN.to(device),
        num_steps=int(count_B[0]) if bool((count_B == count_B[0]).all()) else count_B.to(device),
        chain_BT=torch.cat([steps_BT, answer_BA], 1).to(device),
        frontier=frontier,
        answer_tokens=answer_BA.shape[1],
        speaker=speaker,
        answer_mask_BA=None if answer_mask_BA.all() else answer_mask_BA.to(device),
        step_BT=torch.cat([step_BT, last_B[:, None].expand(-1, answer_BA.shape[1])], 1).to(device),
        stop_ids=(stop,),
    )


def _padded(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Ids of equal length, with zeros where a row is shorter, and where it is not."""
    most = max(map(len, rows))
    ids = torch.tensor([[*[0] * (most - len(r)), *r] if left else [*r, *[0] * (most - len(r))] for r in rows]).long()
    length_B1 = torch.tensor([[len(row)] for row in rows])
    place_N = torch.arange(most)
    return ids.view(len(rows), most), (place_N >= most - length_B1) if left else (place_N < length_B1)


# ---------------------------------------------------------------------------------------------------------------------
# Problems of a task


class Text:
    """Problems of a task as questions; states have names (see NAMES).

    Args:
        task: gives questions, chains, frontiers, and judges answers.
        problems: rows of the task (P, M).
        wording: of questions and answers.
        names: how states are named.
        words: with names "words", a word for every symbol of the task's vocabulary, in its order.

    Raises:
        ValueError: an unknown kind of names; words that are not one different token each.
    """

    def __init__(
        self, task: Task, problems: np.ndarray, wording: Wording, names: Naming = "own", words: tuple[str, ...] = ()
    ):
        InText(names, words)  # raises if they do not go together
        self.task, self.problems, self.wording, self.names, self.words = task, problems, wording, names, words
        self.piece_VL = torch.tensor(self._pieces())

    def _pieces(self) -> list[list[int]]:
        """The tokens that name each symbol of the task, equally many."""
        symbols = self.task.vocabulary.tokens
        if self.names == "own":
            return [[len(self.wording) + place] for place in range(len(symbols))]
        if self.names == "spelled":
            found, (fill, *_) = self.wording.ids(symbols), self.wording.ids([BREAK])[0]
            most = max(map(len, found[len(SPECIAL_TOKENS) :]))  # special tokens, which come first, are no states
            return [[*ids[:most], *[fill] * (most - len(ids))] for ids in found]
        found = self.wording.ids(self.words)
        wrong = next((word for word, ids in zip(self.words, found, strict=True) if len(ids) != 1), None)
        if wrong is not None:
            raise ValueError(f"the word {wrong!r} is {len(self.wording.ids([wrong])[0])} tokens: expected one each")
        if len({ids[0] for ids in found}) != len(symbols) or len(found) != len(symbols):
            raise ValueError(
                f"{len(found)} words name {len(symbols)} symbols of {self.task.name}, {short(symbols)}: expected as "
                "many, all different"
            )
        return found

    @property
    def vocabulary(self) -> int:
        """Number of tokens, those of states included."""
        return len(self.wording) + (len(self.piece_VL) if self.names == "own" else 0)

    @property
    def added(self) -> list[list[int]]:
        """The pieces of its name for every token that is added to the tokenizer's, whose mean it may begin as."""
        return self.wording.ids(self.task.vocabulary.tokens) if self.names == "own" else []

    def name(self, id: int) -> str:
        """What a token stands for: a piece of text, or the state that it was added for."""
        own = id - len(self.wording)
        return self.wording.name(id) if own < 0 else f"<{self.task.vocabulary.tokens[own]}>"

    def told(self, place: int) -> str:
        """The right answer to one of its problems, in words."""
        return str(self.task.say(self.task.answer_ids(self.task.answer(self.problems[place][None]))[0]))

    @property
    def titles(self) -> np.ndarray:
        """Tokens (I, A) of every title of its task's catalogue and the stop behind it; -1 after shorter ones."""
        task: Any = self.task
        said = [str(task.say(ids)) for ids in task.answer_ids(np.arange(len(task.catalogue)))]
        ids_IA, mask_IA = _padded([[*ids, self.wording.stop_id] for ids in self.wording.ids(said)])
        return ids_IA.masked_fill(~mask_IA, NO_TOKEN).numpy()

    def part(self, index: np.ndarray) -> "Text":
        """The speaker of some of the problems."""
        return Text(self.task, self.problems[index], self.wording, self.names, self.words)

    def examples(self, device: torch.device | str = "cpu", **supervision: Any) -> Examples:
        """Examples of all problems, in order.

        supervision: further arguments of `Task.batch`: budget, rule.

        Raises:
            ValueError: no problems, or a budget or rule that the task does not know.
        """
        symbols = Symbols(self.task, self.problems).examples(**supervision)
        before, L, B = symbols.max_steps, self.piece_VL.shape[1], len(self.problems)
        ids_BTS, shares_BTS = (x[:, :before] for x in symbols.frontier.sparse())
        S = ids_BTS.shape[2]
        pieces_BTLS = self.piece_VL[ids_BTS].transpose(2, 3)  # a share of 0 names the task's first symbol
        count_B = torch.as_tensor(symbols.num_steps).expand(B) * L
        rows = self.task.rows(self.problems)
        said = [str(self.task.say(ids)) for ids in self.task.answer_ids(self.task.answer(rows))]
        return assembled(
            self.wording,
            self.vocabulary,
            self.wording.asked([self.task.question(row) for row in rows.tolist()]),
            self.piece_VL[symbols.chain_BT[:, :before]].flatten(1),
            count_B,
            self.wording.ids(said),
            (pieces_BTLS.reshape(B, before * L, S), shares_BTS.repeat_interleave(L, 1)),
            symbols.steps_BT[:, :before].repeat_interleave(L, 1),
            self,
            device,
        )

    def judge(self, examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Bool[Tensor, " B"]:
        """Whether the task reads the answers as right; what it cannot read is wrong."""
        rows = np.repeat(examples.problems(), len(answer_BA) // len(examples), axis=0)
        verdicts = self.task.judged(rows, self.wording.texts(answer_BA))
        return torch.tensor([bool(verdict) for verdict in verdicts], device=answer_BA.device)

    def proved(self, problems: np.ndarray, chain_BW: Tensor, answer_BA: Tensor) -> np.ndarray:
        """Whether chains prove their answers (B,), read back as the task's own tokens; see `Task.certified`.

        Raises:
            ValueError: names are spelled, so that a chain is not a token a state; or the task knows no proofs.
        """
        if self.names == "spelled":
            raise ValueError("a chain of spelled names cannot be read back: take names 'own' or 'words', or use truth")
        known = {int(piece): symbol for symbol, (piece,) in enumerate(self.piece_VL)}
        chains, said = chain_BW.tolist(), self.wording.texts(answer_BA)
        width = self.task.answer_ids(self.task.answer(problems[:1])).shape[1]
        answer_PA = np.full((len(chains), width), NO_TOKEN)
        whole_P = np.array([all(id == NO_TOKEN or id in known for id in chain) for chain in chains])
        for row, text in enumerate(said):
            with suppress(ValueError):
                answer_PA[row] = self.task.read_answer(text)
        symbols_PT = np.array([[known.get(id, NO_TOKEN) for id in chain] for chain in chains]).reshape(chain_BW.shape)
        return self.task.certified(problems, symbols_PT, answer_PA) & whole_P & (answer_PA != NO_TOKEN).all(1)


# ---------------------------------------------------------------------------------------------------------------------
# Lines of question, steps and answer


class Lines:
    """Lines of question, steps and answer, such as those that `tinylatent_tasks.published.read_lines` reads.

    Args:
        problems: the lines.
        wording: of questions, steps and answers.
    """

    def __init__(self, problems: Sequence[Line], wording: Wording):
        self.problems, self.wording = [*problems], wording

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.wording)

    def name(self, id: int) -> str:
        """What a token stands for."""
        return self.wording.name(id)

    def told(self, place: int) -> str:
        """The stored answer to one of its lines."""
        return self.problems[place].answer

    def part(self, index: np.ndarray) -> "Lines":
        """The speaker of some of the lines."""
        return Lines([self.problems[place] for place in np.asarray(index).tolist()], self.wording)

    def examples(self, device: torch.device | str = "cpu", **supervision: Any) -> Examples:
        """Examples of all lines, in order. There is one chain, so that a budget of traces changes nothing.

        Raises:
            ValueError: no lines.
        """
        if not self.problems:
            raise ValueError("no problems: expected at least one line")
        counts = [len(line.steps) for line in self.problems]
        every = iter(self.wording.ids([step + BREAK for line in self.problems for step in line.steps]))
        steps = [[next(every) for _ in range(count)] for count in counts]
        chains = [[id for ids in each for id in ids] for each in steps]
        places = [[place for place, ids in enumerate(each) for _ in ids] for each in steps]
        (steps_BT, mask_BT), (step_BT, _) = _padded(chains), _padded(places)
        return assembled(
            self.wording,
            self.vocabulary,
            self.wording.asked([line.question for line in self.problems]),
            steps_BT,
            mask_BT.sum(1),
            self.wording.ids([line.answer for line in self.problems]),
            (steps_BT[..., None], mask_BT[..., None]),
            step_BT,
            self,
            device,
        )

    def judge(self, examples: Examples, answer_BA: Int[Tensor, "B A"]) -> Bool[Tensor, " B"]:
        """Whether the answers are the stored ones: the same number, or the same words."""
        each = len(answer_BA) // len(examples)
        wanted = [line.answer for line in examples.problems() for _ in range(each)]
        said = self.wording.texts(answer_BA)
        return torch.tensor([is_right(a, b) for a, b in zip(said, wanted, strict=True)], device=answer_BA.device)
