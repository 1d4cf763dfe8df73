"""Claims about depth: how a pre-norm residual stream grows, and when a depth score says nothing of a model.

A pre-norm layer adds c = f(norm(h)) to the residual stream h. At initialisation its weights are drawn independently of
everything before, so additions are uncorrelated with the stream and squared norms add up.

Letters: I initialisations, R rows, T slots, L layers, S additions (two a layer), D width.
"""

import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinylatent.lab.findings import HOLDS, STRICTER, Finding
from tinylatent.lenses.depth import depth_score, skip
from tinylatent.lenses.reducing import per_prompt
from tinylatent.lenses.residuals import record_tokens
from tinylatent.models.backbone import Site
from tinylatent.models.blocks import Norm
from tinylatent.models.decoder import Decoder, ModelConfig
from tinylatent_theory.claims.ledger import EXACT, Trial, claim, judged, judged_twice, z_test

# ---------------------------------------------------------------------------------------------------------------------
# The residual stream

Kind = Literal["independent", "shared", "scaled"]
"""Layers drawn independently; one layer's weights in all places; independent with layer-norm scaling, whose l-th layer
multiplies what its norms return by 1/sqrt(l)."""
DRAWN, EMBEDDING, ADDITION = 0.02, 1.0, 8.0
"""Standard deviations: of GPT-2's weights; of embeddings and of projections into the stream as they are scaled here,
so that the norm's epsilon does not count and the embedding is small beside one layer's addition."""
NEAR = 0.1
"""How far a fitted exponent may be from the one it should be."""
PROMPTS = 8


def stack(kind: Kind, config: ModelConfig, generator: torch.Generator) -> Decoder:
    """The laboratory's decoder as it is initialised, but for the scales above."""
    model = Decoder.fresh(PROMPTS, 4, config, generator).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("embedding", "pos_emb"):
                parameter.mul_(EMBEDDING / DRAWN)
            elif name.endswith(("out_proj", "down_proj")):
                parameter.mul_(ADDITION / DRAWN * math.sqrt(2 * config.layers))
        first = model.blocks[0].state_dict()
        for number, block in enumerate(model.blocks, 1):
            if kind == "shared":
                block.load_state_dict(first)
            if kind == "scaled":
                for norm in block.modules():
                    if isinstance(norm, Norm):
                        norm.weight.fill_(1 / math.sqrt(number))
    return model


@torch.no_grad()
def stream(
    model: Decoder, ids_RT: Int[Tensor, "R T"], signs_RS: Float[Tensor, "R S"] | None = None
) -> tuple[Float[Tensor, "S1 R T D"], Float[Tensor, "S R T D"]]:
    """The residual before every addition and after the last, and what is added, read at the model's edit sites.

    Each addition of a row is multiplied by its sign: so would projections of the opposite sign, which are as likely.
    """

    def signed(layer: int, site: Site, x_RTD: Tensor, slots: range) -> Tensor:
        if signs_RS is None or not site.endswith("_add"):
            return x_RTD
        return x_RTD * signs_RS[:, 2 * layer + (site == "mlp_add"), None, None]

    found = record_tokens(model, ids_RT, change=signed)
    halfway_LRTD = found.stream[:-1] + found.attention
    before_SRTD = torch.stack([found.stream[:-1], halfway_LRTD], 1).flatten(0, 1)
    return torch.cat([before_SRTD, found.stream[-1:]]), found.contributions


def energy_gap(model: Decoder, ids_T: Int[Tensor, " T"]) -> float:
    """Relative error of E|h|^2 = |h_0|^2 + sum E|c|^2 after every addition, E over all signs of all additions."""
    signs_RS = torch.tensor(list(itertools.product((1.0, -1.0), repeat=2 * len(model.blocks))), dtype=torch.float64)
    residual_SRTD, added_SRTD = stream(model, ids_T.expand(len(signs_RS), -1), signs_RS)
    energy_S, more_S = ((x_SRTD**2).sum(-1).mean((1, 2)) for x_SRTD in (residual_SRTD, added_SRTD))
    return float((energy_S[1:] / (energy_S[0] + more_S.cumsum(0)) - 1).abs().max())


def expected_additions(width: int, layers: int, kind: Kind = "independent") -> Float[Tensor, " L"]:
    """E|c_l|^2 of every layer of `stack`, for prompts of one slot, where attention returns out_proj times value [R].

    |norm(h)|^2 is g^2 D with gain g. Attention adds D^3 (g qkv out)^2, the MLP 4 D^2 down^2 E gelu(z)^2, where qkv,
    out, down and up are standard deviations of the projections and z is normal with variance D (g up)^2.
    """
    gain_L = torch.arange(1, layers + 1, dtype=torch.float64) ** (-0.5 if kind == "scaled" else 0.0)
    point, weight = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(60))
    z_Lp = gain_L[:, None] * DRAWN * math.sqrt(width) * point
    gelu_L = F.gelu(z_Lp) ** 2 @ (weight / weight.sum())
    return ADDITION**2 * (width**3 * (gain_L * DRAWN) ** 2 + 4 * width**2 * gelu_L)


def expected_energy(width: int, layers: int, kind: Kind = "independent") -> Float[Tensor, " L"]:
    """E|h_l|^2 after every layer, if squared norms add up."""
    return 2 * width * EMBEDDING**2 + expected_additions(width, layers, kind).cumsum(0)


def growth(
    trial: Trial, kind: Kind, initialisations: int, slots: int = 1
) -> tuple[Float[Tensor, "I L"], Float[Tensor, "I L"]]:
    """Mean |h_l|^2 after every layer, and mean |c_l| / |h_l| with h_l before it, of every initialisation."""
    width = trial.size(32, 64)
    energies, ratios = [], []
    for number in range(initialisations):
        generator = trial.torch(kind, slots, number)
        model = stack(kind, ModelConfig(width, trial.size(32, 64), 2), generator)
        ids_RT = torch.stack([torch.randperm(PROMPTS, generator=generator) for _ in range(slots)], 1)
        residual_LRTD = stream(model, ids_RT)[0][::2]
        turn_LRT = residual_LRTD.diff(dim=0).norm(dim=-1) / residual_LRTD[:-1].norm(dim=-1)
        energies.append((residual_LRTD[1:] ** 2).sum(-1).mean((1, 2)))
        ratios.append(turn_LRT.mean((1, 2)))
    return torch.stack(energies), torch.stack(ratios)


def exponent(values_L: Float[Tensor, " L"]) -> float:
    """The power of l that values at l = 1, 2, ... grow with: the slope of their logarithms."""
    log_l = torch.arange(1, len(values_L) + 1, dtype=torch.float64).log()
    return float(torch.cov(torch.stack([log_l, values_L.log()]))[0, 1] / log_l.var())


def one_layer_repeated() -> str:
    """The layer that adds norm(h), four times: all additions point where h does."""
    h_D, lengths = torch.tensor([1.0, -1.0], dtype=torch.float64), []
    for _ in range(5):
        lengths.append(float(h_D.norm()))
        h_D = h_D + F.layer_norm(h_D, h_D.shape)
    return (
        f"four times the same layer, which adds norm(h), in width {len(h_D)}: |h| grows from {lengths[0]:.3f} to "
        f"{lengths[4]:.3f}, {lengths[4] / lengths[0]:.3f} times; uncorrelated additions of the same size would make it "
        f"{math.sqrt(5):.3f} times"
    )


@claim(
    source="folklore; Csordás et al. 2025, arXiv 2505.13898, section 3.1, say it grows by accumulation; at which"
    " rate is folklore",
    origin="folklore",
    statement="The norm of a pre-norm residual stream grows like the square root of depth at initialisation.",
    conditions="additions uncorrelated with the stream, as those of independently drawn layers are (shared ones are "
    "not), and of one size (prompts of one slot); embeddings small beside them",
    how="statistical",
    recorded=STRICTER,
    counterexample=one_layer_repeated,
)
def prenorm_residual_grows_like_sqrt(trial: Trial) -> Finding:
    """All signs of all additions of small models, exactly; exponents of |h_l|^2 in deep ones, and a closed form."""
    generator, gap = trial.torch("small"), 0.0
    for _ in range(trial.size(3, 20)):
        small = stack("independent", ModelConfig(4, 3, 2), generator)
        gap = max(gap, energy_gap(small, torch.randint(PROMPTS, (3,), generator=generator)))
    alone_IL, shared_IL = growth(trial, "independent", trial.size(200, 300))[0], growth(trial, "shared", 20)[0]
    wide_IL = growth(trial, "independent", 20, slots=4)[0]
    width, layers = trial.size(32, 64), alone_IL.shape[1]
    test = z_test(alone_IL[:, -1].numpy(), float(expected_energy(width, layers)[-1]))
    alone, shared, wide = (exponent(energy_IL.mean(0)) for energy_IL in (alone_IL, shared_IL, wide_IL))
    strictly = gap < EXACT and not test.rejected and abs(alone - 1) < NEAR
    return judged_twice(
        as_stated=strictly and abs(shared - 1) < NEAR,
        strictly=strictly,
        evidence=f"over all signs of the additions E|h|^2 = |h_0|^2 + sum E|c|^2 to {gap:.0e}; in {layers} layers "
        f"|h_l|^2 grows with the power {alone:.3f} of l ({wide:.3f} with 4 slots), {shared:.3f} if one layer is "
        f"repeated; at the end it is {test}",
        independent=alone_IL.mean(0).tolist(),
        shared=shared_IL.mean(0).tolist(),
    )


@claim(
    source="Csordás et al. 2025, arXiv 2505.13898, section 3.1; layer-norm scaling: Sun et al. 2025, arXiv 2502.05795; "
    "the rates are [R]",
    origin="here",
    statement="With independent layers late ones turn a pre-norm residual stream less, |c_l| / |h_l| falling like "
    "1/sqrt(l), and scaling norms by 1/sqrt(l) makes |h_l|^2 grow like log l.",
    conditions="independently drawn layers, prompts of one slot, embeddings small beside a layer's addition",
    how="statistical",
    recorded=HOLDS,
)
def late_layers_turn_the_residual_less(trial: Trial) -> Finding:
    """The exponent of the ratio; |h|^2 at half and full depth against closed forms, and what those tend to."""
    width, layers = trial.size(32, 64), trial.size(32, 64)
    tests, ratios, energies = [], {}, {}
    kinds: tuple[Kind, ...] = ("independent", "scaled")
    for kind in kinds:
        energy_IL, ratio_IL = growth(trial, kind, trial.size(200, 300))
        expected_L = expected_energy(width, layers, kind)
        for deep in (layers // 2, layers):
            tests.append(z_test(energy_IL[:, deep - 1].numpy(), float(expected_L[deep - 1])))
        energies[kind], ratios[kind] = energy_IL.mean(0), exponent(ratio_IL.mean(0)[1:])
    doublings = {kind: expected_energy(width, 2**14, kind)[[2**12 - 1, 2**13 - 1, 2**14 - 1]].diff() for kind in kinds}
    plain, scaled = (float(doublings[kind][1] / doublings[kind][0]) for kind in kinds)
    logarithmic = abs(scaled - 1) < 1e-3 and abs(plain - 2) < 1e-3
    return judged(
        abs(ratios["independent"] + 0.5) < NEAR and logarithmic and not any(test.rejected for test in tests),
        f"|c_l| / |h_l| goes with the power {ratios['independent']:.3f} of l; in layer {layers} |h|^2 is {tests[1]}. "
        f"With scaled norms the ratio falls faster, with the power {ratios['scaled']:.3f}, and |h|^2 is {tests[3]}; a "
        f"doubling of the depth adds {scaled:.4f} times what the one before did, {plain:.4f} times without",
        independent=energies["independent"].tolist(),
        scaled=energies["scaled"].tolist(),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The depth score

SURE = 300.0
"""What logits are multiplied by so that every prediction is certain."""


def leaning(trial: Trial, early: bool) -> Decoder:
    """A random decoder whose first half of layers, or last half, adds three times as much; its predictions certain."""
    config = ModelConfig(16, trial.size(4, 6), 2)
    model = Decoder.fresh(PROMPTS, trial.size(6, 10), config, trial.torch("leaning")).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1 if name.endswith("weight") else EMBEDDING / DRAWN / 4)
            place = name.split(".")
            if name.endswith(("out_proj", "down_proj")) and (2 * int(place[1]) < config.layers) == early:
                parameter.mul_(3)
            if name == "norm.weight":
                parameter.fill_(SURE)
    return model


def scores(trial: Trial, model: Decoder) -> tuple[float, float]:
    """Depth scores of what skipping a layer does to predictions: of its maximum over tokens, and of its mean."""
    ids_RT = torch.randint(PROMPTS, (trial.size(200, 500), trial.size(6, 10)), generator=trial.torch("prompts"))
    effects = skip(record_tokens(model, ids_RT))
    output_LRS = effects.output.reshape(len(effects.output), 1, -1)
    counted_RS = effects.counted_RS.reshape(1, -1)
    largest, mean = (depth_score(per_prompt(output_LRS, counted_RS, how)[:, 0]) for how in ("max", "mean"))
    return float(largest), float(mean)


@claim(
    source="[R], of the depth score of Csordás et al. 2025, arXiv 2505.13898, section 3.5, and of its maximum over"
    " prompts",
    origin="here",
    statement="A depth score of maximal output changes is (L - 1) / 2, whatever the model computes, once every layer"
    " changes some certain prediction; one of their mean still tells models apart.",
    conditions="layers counted from 0; probabilities compared by their distance, which is at most sqrt(2)",
    how="property test",
    recorded=HOLDS,
)
def saturated_depth_scores_say_nothing(trial: Trial) -> Finding:
    """Two models that lean on early and on late layers, by the maximum and by the mean."""
    found = [scores(trial, leaning(trial, early)) for early in (True, False)]
    (most_early, mean_early), (most_late, mean_late) = found
    middle = (trial.size(4, 6) - 1) / 2
    saturated = max(abs(most_early - middle), abs(most_late - middle))
    return judged(
        saturated < EXACT and mean_late - mean_early > 0.2,
        f"of two models with {trial.size(4, 6)} layers, one leaning on early and one on late layers, the maximum gives "
        f"{most_early:.4f} and {most_late:.4f}, (L - 1) / 2 being {middle:g}; the mean gives {mean_early:.2f} and "
        f"{mean_late:.2f}",
    )
