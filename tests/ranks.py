"""Two processes that talk by gloo, with a prompt each: they are to make the loss and gradients of one with both."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tinylatent.objectives.method import TrainState

COUNT = 2
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
RANK = """
import sys

import torch
import torch.distributed as dist

from tinylatent.objectives.method import TrainState

rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)


def gather(x):
    found = [torch.empty_like(x) for _ in range(count)]
    dist.all_gather(found, x.contiguous())
    return torch.cat(found)


method, model, examples, told = torch.load(f"{folder}/given", weights_only=False)
state = TrainState(3, 10, 5, first=rank, rows=count, gather=gather, **told)
batch = method.collect(model, examples.rows(slice(rank, rank + 1)), state)
value = method.loss(model, batch, state).value
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
gradients = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
for each in (value := value.detach(), *gradients):
    dist.all_reduce(each)
found = {"advantage": gather(batch.advantage_B), "value": value, "gradients": [*gradients]}
if rank == 0:
    torch.save(found, f"{folder}/found")
dist.destroy_process_group()
"""


def assert_processes_agree(method, model, examples, folder, trained, **told):
    """Advantages, loss and gradients of two processes with one prompt each are those of one process with both.

    Args:
        method, model, examples: what is trained, and the two prompts.
        folder: an empty one, where the processes meet.
        trained: the part of a model that is trained.
        told: more fields of TrainState, of functions those that another process can import.
    """
    trained_part = {id(parameter) for parameter in trained(model).parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained_part)
    torch.save((method, model, examples, told), folder / "given")
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    words = [sys.executable, "-c", RANK]
    running = [
        subprocess.Popen(
            [*words, str(rank), str(COUNT), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(COUNT)
    ]
    for each in running:
        _, said = each.communicate(timeout=600)
        assert each.returncode == 0, said
    found, state = torch.load(folder / "found"), TrainState(3, 10, 5, rows=COUNT, **told)
    batch = method.collect(model, examples, state)
    torch.testing.assert_close(found["advantage"], batch.advantage_B, **CLOSE)
    value = method.loss(model, batch, state).value
    torch.testing.assert_close(found["value"], value.detach(), **CLOSE)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    assert max(each.abs().max() for each in expected) > 1e-4
    for got, wanted in zip(found["gradients"], expected, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)
