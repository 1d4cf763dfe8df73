"""Claims about search in superposition (Zhu et al. 2025, arXiv 2505.12514) and what it shares with CoT2's frontier.

Letters: C nodes, c thoughts, D a target's distance from the root.
"""

import numpy as np
import torch
from tinylatent_tasks import Reachability

from tinylatent.engine.plan import Segment
from tinylatent.engine.rollout import rollout
from tinylatent.engine.thoughts import GREEDY, Hidden
from tinylatent.lab.findings import FAILS, HOLDS, Finding
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged
from tinylatent_theory.constructions.bfs import CyclicToo, bfs_searcher, bfs_width, every_question, search, within
from tinylatent_theory.constructions.checks import search_deviation

FLOAT32 = 1e-6
TRIANGLE = ((0, 1), (0, 2), (2, 1))


def small_graphs(nodes: int) -> Reachability:
    """A task that has room for every acyclic graph of so many nodes, at every distance."""
    return Reachability(nodes=2 * nodes, depth=nodes - 1, edges=max(nodes * (nodes - 1) // 2, 2 * nodes - 2), least=1)


@claim(
    source="Zhu et al. 2025, theorem 1 (text not at hand)",
    origin="paper",
    statement="Two layers solve graph reachability in D continuous thoughts, each the normalised superposition of all "
    "nodes within so many edges.",
    conditions="hand-made weights, float32, width 5 C + 8; every question on every acyclic graph of up to 4 nodes "
    "(quick), 5 nodes (full), and on every directed graph, cycles included, of 3 nodes (quick), 4 nodes (full), edges "
    "in one order; random acyclic graphs of 30 nodes; D: the target's distance, or more",
    how="exhaustive",
    recorded=HOLDS,
)
def two_layers_search_every_dag(trial: Trial) -> Finding:
    """Answers after as many thoughts as the target is away, and every coordinate of every thought."""
    sound, said = True, []
    for nodes in range(3, trial.size(5, 6)):
        task = small_graphs(nodes)
        questions, machine = every_question(task, nodes), bfs_searcher(task).float()
        found = search_deviation(task, machine, questions, thoughts=nodes < 5)
        wrong, off = found.wrong, found.thoughts
        if nodes == 5:  # thoughts do not depend on the candidates: one question for each graph and root
            roots = np.delete(questions, [1, 2], axis=1)
            off = search_deviation(task, machine, questions[np.unique(roots, axis=0, return_index=True)[1]]).thoughts
        sound &= not wrong and off < FLOAT32 and machine.width == bfs_width(task)
        said.append(f"{nodes} nodes: {wrong} of {found.problems} wrong, thoughts off by {off:.0e}")
    for nodes in range(3, trial.size(4, 5)):
        every = CyclicToo(nodes=2 * nodes, depth=nodes - 1, edges=nodes * (nodes - 1), least=1)
        found = search_deviation(every, bfs_searcher(every).float(), every_question(every, nodes, cycles=True))
        sound &= not found.wrong and found.thoughts < FLOAT32
        said.append(
            f"{nodes} nodes, cycles too: {found.wrong} of {found.problems} wrong, thoughts off by {found.thoughts:.0e}"
        )
    task = Reachability(nodes=30, edges=60, depth=6, least=1)
    problems = task.problems(trial.size(200, 2000), trial.seed)
    found = search_deviation(task, bfs_searcher(task).float(), problems)
    sound &= not found.wrong and found.thoughts < FLOAT32
    said.append(f"30 nodes, random: {found.wrong} of {found.problems} wrong, off by {found.thoughts:.0e}")
    return judged(sound, "; ".join(said))


@claim(
    source="Zhu et al. 2025, theorem 1 (number of thoughts; text not at hand); that no fewer do is [R]",
    origin="here",
    statement="A target D edges away is found after D thoughts, and not before.",
    conditions="the hand-made machine, which is no lower bound for others; every question on every acyclic graph of 4 "
    "nodes",
    how="exhaustive",
    recorded=HOLDS,
)
def search_takes_as_many_thoughts_as_the_distance(trial: Trial) -> Finding:
    """Right answers after c thoughts, for targets within c edges and for those beyond."""
    task = small_graphs(4)
    problems, machine = every_question(task, 4), bfs_searcher(task).float()
    distance, answer = task.steps(problems), task.answer_ids(task.answer(problems))[:, 0]
    early, late = 0, 0
    for thoughts in range(1, task.depth + 1):
        said = search(task, machine, problems, thoughts).logits_BTV[:, -1].argmax(-1).numpy()
        early += int(((said == answer) & (distance > thoughts)).sum())
        late += int(((said != answer) & (distance <= thoughts)).sum())
    return judged(early == late == 0, f"right too early: {early}, wrong in time: {late}, of {len(problems)} questions")


def attended(task: Reachability, problem: list[int], thoughts: int) -> torch.Tensor:
    """What attention adds to the last of so many thoughts: a weight for every node, before the MLP makes them equal."""
    seen: list[torch.Tensor] = []

    def read(layer: int, site: str, tensor: torch.Tensor, slots: range) -> torch.Tensor:
        if (layer, site) == (1, "attn_add"):
            seen.append(tensor[0, -1, 3 * task.nodes : 4 * task.nodes])  # the range "reached"
        return tensor

    prompt, mask = map(torch.from_numpy, task.prompt([problem]))
    with torch.no_grad():
        rollout(bfs_searcher(task), (Segment(Hidden(), thoughts),), prompt, mask, edit=read)
    return seen[-1]


def triangle() -> str:
    """0 -> 1, 0 -> 2, 2 -> 1: in the second thought two edges lead to node 1."""
    task = Reachability(nodes=8, depth=2, edges=6, least=1)
    problem = [0, 1, 3, *(node for edge in TRIANGLE for node in edge), *[-1] * 6]
    weight_C = attended(task, problem, 2)
    return (
        f"0 > 1, 0 > 2, 2 > 1: attention gives nodes 1, 2 the weights {weight_C[1]:.3f}, {weight_C[2]:.3f} in thought 2"
    )


@claim(
    source="[R]; Zhu et al. 2025, section 4 (role of the MLP; text not at hand), who have one",
    origin="here",
    statement="Attention alone carries the uniform superposition on; no MLP has to make its weights equal.",
    conditions="the attention of the hand-made machine, which weighs all edges from held nodes alike: a node that "
    "several edges lead to weighs as many times as much; that no other attention does is not shown",
    how="property test",
    recorded=FAILS,
    counterexample=triangle,
)
def attention_alone_keeps_weights_equal(trial: Trial) -> Finding:
    """The largest over the smallest positive weight that attention adds, over random graphs."""
    task = Reachability(nodes=12, edges=24, depth=3, least=3)
    ratios = []
    for problem in task.problems(trial.size(20, 100), trial.seed).tolist():
        weight_C = attended(task, problem, 3)
        held_C = weight_C[weight_C > FLOAT32]
        ratios.append(float(held_C.max() / held_C.min()))
    return judged(
        max(ratios) < 1 + EXACT,
        f"largest over smallest weight: {min(ratios):.1f} to {max(ratios):.1f} over {len(ratios)} graphs",
    )


def one_edge() -> str:
    """Root 0 and one edge 0 -> 1."""
    task = Reachability(nodes=4, depth=1, edges=2)
    problem = [0, 1, 2, 0, 1, -1, -1]
    frontier_V, held_C = task.frontier([problem])[0, 0], within(task, [problem], 1)[0, 0]
    reached = [name for name, share in zip(task.vocabulary.tokens, frontier_V, strict=True) if share > 0]
    held = [f"n{node}" for node in held_C.nonzero()[:, 0].tolist()]
    return f"root n0, one edge n0 > n1: CoT2's frontier holds {', '.join(reached)}, the superposition {', '.join(held)}"


@claim(
    source="CoT2, section 3 (ProsQA) against Zhu et al. 2025 (texts not at hand) [R]",
    origin="here",
    statement="CoT2's frontier on graphs and the superposition of search hold the same nodes.",
    conditions="the frontier holds where walks of t edges end, weighted by walks; the superposition all within t edges",
    how="exhaustive",
    recorded=FAILS,
    counterexample=one_edge,
)
def frontier_and_superposition_hold_the_same_nodes(trial: Trial) -> Finding:
    """Compares the two sets over every question on every acyclic graph of four nodes, and their sizes."""
    task = small_graphs(4)
    problems = every_question(task, 4)
    problems = problems[task.steps(problems) > 1]  # the last step is the answer's, not a frontier
    first = task.vocabulary.index("n0")
    frontier_PC = task.frontier(problems)[:, 0, first : first + task.nodes] > 0
    held_PC = within(task, problems, 1)[:, 0].numpy()
    inside = bool((held_PC >= frontier_PC).all())
    differ = int((held_PC != frontier_PC).any(1).sum())
    return judged(
        not differ,
        f"after one step they differ on {differ} of {len(problems)} questions; the frontier lies inside: {inside}",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Coconut


@claim(
    source="Coconut (Hao et al. 2024), section 3 (text not at hand); the size of its latents [R]",
    origin="here",
    statement="A latent step feeds back the hidden state after the final norm unchanged, which at initialisation is "
    "far longer than any token's embedding.",
    conditions="GPT-2's initialisation (normal, 0.02) and a final norm of gain 1: sqrt(d) against 0.02 sqrt(d)",
    how="property test",
    recorded=HOLDS,
)
def coconut_latents_outgrow_embeddings(trial: Trial) -> Finding:
    """Inputs of latent steps through the engine against the states before them, and their norms against embeddings'."""
    off, ratios = 0.0, []
    for number, width in enumerate((16, 32, 64)):
        model = Decoder.fresh(20, 8, ModelConfig(width, 2, 2), trial.torch("model", number))
        prompt = torch.randint(20, (trial.size(20, 200), 3), generator=trial.torch("prompt", number))
        with torch.no_grad():
            run = rollout(model, (Segment(Hidden(), 3), Segment(GREEDY, 1)), prompt)
        off = max(off, float((run.inputs_BTD[:, :3] - run.hidden_BTD[:, :3]).abs().max()))
        longest = float(model.table.weight.detach().norm(dim=-1).max())
        ratios.append(float(run.inputs_BTD[:, :3].norm(dim=-1).min()) / longest)
    return judged(
        off == 0 and min(ratios) > 10,
        f"inputs are the states to {off:.0e}; the shortest latent is {min(ratios):.0f} to {max(ratios):.0f} times as "
        "long as the longest embedding, at widths 16, 32, 64",
    )
