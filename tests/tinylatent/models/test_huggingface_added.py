"""Rows of added tokens: a model with rows beside its tables is the model whose tables were made longer."""

import pytest
import torch
from families import MASK, PROMPT, same, small
from naive import score
from tinylatent_tasks import MNNS

from tinylatent.core.seeds import Streams
from tinylatent.engine.force import replay
from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import Mixture, MultiToken, Token
from tinylatent.methods import METHODS
from tinylatent.models.backbone import set_last_rows
from tinylatent.models.huggingface import HFBackbone
from tinylatent.models.huggingface_added import AddedRows, begun_rows
from tinylatent.models.huggingface_lora import LoRA, adapted, add_lora, reference_of
from tinylatent.objectives.method import TrainState
from tinylatent.objectives.speakers import Symbols

KNOWN, MORE = 20, 3  # of 23 rows of the small models; the last three are made to be those that are added
PLAN = (Segment(Mixture(), 2), Segment(MultiToken(3), 2), Segment(Token(1.0), 2, name="answer"))


def beside(model):
    """The model with its last rows cut off and put beside it."""
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    rows = [AddedRows(table[KNOWN:].detach().clone()) for table in dict.fromkeys(tables)]
    for table in dict.fromkeys(tables):
        table.data[KNOWN:] = 99.0  # never to be read
    return HFBackbone(model, KNOWN, *rows)


@pytest.mark.parametrize("family", ["Llama", "Gemma", "Gemma3", "Granite"])
def test_a_model_with_rows_beside_it_is_one_with_longer_tables(family):
    """Values, what is sampled, and gradients of the rows; ids of both kinds in the prompt."""
    whole, apart = HFBackbone(small(family)), beside(small(family))
    assert len(apart.table) == len(whole.table) == KNOWN + MORE
    prompt = PROMPT.clone()
    prompt[:, 3] = torch.tensor([20, 21, 22])
    found, wanted = (
        rollout(backbone, PLAN, prompt, MASK, streams=Streams(0, torch.arange(3)), grad=True)
        for backbone in (apart, whole)
    )
    same(found.logits_BTV, wanted.logits_BTV)
    for trace in (found, wanted):
        score(trace.logits_BTV).backward()
    tables = {id(x): x for x in (whole.model.get_input_embeddings().weight, whole.model.get_output_embeddings().weight)}
    assert len(apart.every_added) == len(tables)
    for rows, table in zip(apart.every_added, tables.values(), strict=True):
        same(rows.learned_AD.grad, table.grad[KNOWN:])
    same(apart.table.unit(), whole.table.unit())
    same(
        apart.table.mix_rows(torch.tensor([[1, 21], [22, 22]])), whole.table.mix_rows(torch.tensor([[1, 21], [22, 22]]))
    )
    for count in (KNOWN - 2, KNOWN, KNOWN + 1, KNOWN + MORE):
        shares = torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
        same(apart.table.mix(shares), whole.table.mix(shares))
    with pytest.raises(ValueError, match="token ids from 2 to 23: expected 0 to 22"):
        apart.table.rows(torch.tensor([2, 23]))


def test_rows_begin_as_means_or_are_drawn_and_what_they_learn_is_apart():
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    rows = begun_rows(table, 6, [[0, 1], [5], []], torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows.now()[:2], torch.stack([table[:2].mean(0), table[5]]))
    again = begun_rows(table, 6, [[]], torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows.now()[2], again.now()[0])
    first = rows.now().detach().clone()
    with torch.no_grad():
        rows.learned_AD += 1.0
    torch.testing.assert_close(rows.now(), first + 1)
    rows.is_off = True
    assert torch.equal(rows.now(), first)
    rows.fold()
    torch.testing.assert_close(rows.now(), first + 1)
    rows.is_off = False
    torch.testing.assert_close(rows.now(), first + 1)


def test_the_last_rows_are_replaced_wherever_they_are():
    apart, whole = beside(small("Llama")), HFBackbone(small("Llama"))
    with torch.no_grad():
        apart.added.learned_AD += 1.0
    for backbone in (apart, whole):
        set_last_rows(backbone, torch.ones(2, 16))
        same(backbone.table.rows(torch.tensor([21, 22])), torch.ones(2, 16).double())
    same(apart.table.rows(torch.tensor([20])), whole.table.rows(torch.tensor([20])) + 1)


def test_a_reference_knows_neither_adapters_nor_what_rows_learned():
    model = small("Llama")
    add_lora(model, LoRA(rank=2))
    backbone, plain = beside(model), beside(small("Llama"))
    with torch.no_grad():
        for layer in adapted(model):
            layer.lora_B["default"].weight += 0.3
        for rows in backbone.every_added:
            rows.learned_AD += 0.5
    view = reference_of(backbone)
    trace = rollout(backbone, PLAN, PROMPT, MASK, streams=Streams(0, torch.arange(3)))
    same(replay(view, trace).log_prob_BT, replay(plain, trace).log_prob_BT)
    assert (replay(view, trace).log_prob_BT - trace.log_prob_BT).abs().max() > 0.1
    again = rollout(backbone, PLAN, PROMPT, MASK, streams=Streams(0, torch.arange(3)))
    assert torch.equal(again.logits_BTV, trace.logits_BTV), "switched on again"
    view.start_here()
    same(replay(view, trace).log_prob_BT, trace.log_prob_BT)
    same(replay(backbone, trace).log_prob_BT, trace.log_prob_BT)


def test_the_divergence_is_that_from_a_copy_where_rows_train_beside_adapters():
    task, values = MNNS(digits=3, high=2), []
    method = METHODS["grpo"](samples=2, group=2, kl=0.5)
    examples = Symbols(task, task.problems(4, 0)).examples()
    for everything in (False, True):
        model = small("Llama", vocab_size=len(task.vocabulary))
        add_lora(model, LoRA(rank=2))
        table = model.get_input_embeddings().weight
        rows = [AddedRows(x[-2:].detach().clone()) for x in (table, model.get_output_embeddings().weight)]
        if everything:
            model.requires_grad_()
        made = method.model(HFBackbone(model, len(table) - 2, *rows), torch.Generator().manual_seed(0))
        state = TrainState(0, 10, seed=3)
        with torch.no_grad():
            rows[0].learned_AD += 0.2  # learned before
        method.enter(made, 0, examples, state)
        with torch.no_grad():
            for layer in adapted(model):
                layer.lora_B["default"].weight += 0.05
            rows[1].learned_AD += 0.3  # and in this stage
        loss = method.loss(made, method.collect(made, examples, state), state)
        values.append(loss.metrics["reference_kl"].item())
    assert values[0] > 1e-3
    assert values[0] == pytest.approx(values[1], rel=1e-6)
