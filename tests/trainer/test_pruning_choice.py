"""Which channels go: pure choice, and what a channel is worth."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import DigitSplits
from kasmina_trainer.pruning import Amount, GroupNorm, Structure, Taylor, choose_channels, read_structure, silenced
from kasmina_trainer.pruning.groups import Group
from kasmina_trainer.pruning.strategy import Scores


def chain(widths: tuple[int, ...], work: int = 10) -> Structure:
    """Linear layers in a row; every width but the first and the last may shrink."""
    sizes = {f"l{i}.weight": (b, a) for i, (a, b) in enumerate(pairwise(widths))}
    groups = tuple(
        Group(
            f"l{i}",
            tuple(((f"l{i}.weight", 0, (c,)), (f"l{i + 1}.weight", 1, (c,))) for c in range(width)),
            frozenset({(f"l{i + 1}.weight", 1)}),
        )
        for i, width in enumerate(widths[1:-1])
    )
    return Structure(groups, dict.fromkeys(sizes, work), sizes)


def left_of(structure: Structure, drop: dict[str, tuple[int, ...]]) -> int:
    """Multiplications counted anew from the widths that are left."""
    widths = [structure.sizes["l0.weight"][1]]
    widths += [len(g) - len(drop.get(g.name, ())) for g in structure.groups]
    widths.append(structure.sizes[f"l{len(structure.groups)}.weight"][0])
    return sum(10 * a * b for a, b in pairwise(widths))


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(4, 40), min_size=3, max_size=6), share=st.floats(0.05, 0.7),
    step=st.sampled_from([1, 2, 8]), of=st.sampled_from(["macs", "channels"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_share_goes_and_no_group_runs_dry(widths: list[int], share: float, step: int, of: str, seed: int) -> None:
    structure = chain(tuple(widths))
    rng = np.random.default_rng(seed)
    scores = {g.name: rng.uniform(size=len(g)).tolist() for g in structure.groups}
    amount = Amount(share, of=of, step=step, least=0.25)  # type: ignore[arg-type]
    try:
        choice = choose_channels(structure, scores, amount)
    except InputError as exc:
        assert "cannot go" in exc.message and exc.next_step
        return
    drop = dict(choice.drop)
    assert choice.macs == (structure.macs, left_of(structure, drop))
    if of == "macs":
        assert choice.macs[1] <= (1 - share) * structure.macs + 1e-6
    else:
        assert choice.channels[0] >= share * structure.channels - 1e-9
    for group in structure.groups:
        gone = drop.get(group.name, ())
        stays = len(group) - len(gone)
        assert stays >= max(1, 0.25 * len(group))
        assert not gone or stays % step == 0
        worst = sorted(range(len(group)), key=lambda c, g=group: (scores[g.name][c], c))  # type: ignore[misc]
        assert set(gone) == set(worst[: len(gone)]), "the least worth first"
    assert choice == choose_channels(structure, scores, amount)


def test_what_is_worth_nothing_goes_first() -> None:
    structure = chain((4, 10, 10, 4))
    scores = {"l0": [1.0] * 10, "l1": [0.0] * 5 + [1.0] * 5}
    assert dict(choose_channels(structure, scores, Amount(0.2, of="channels")).drop) == {"l1": (0, 1, 2, 3)}


def test_refusals_carry_the_numbers() -> None:
    with pytest.raises(InputError, match=r"90% of the macs cannot go, \d+% can: every group keeps 50%"):
        choose_channels(chain((4, 8, 4)), {"l0": [1.0] * 8}, Amount(0.9, least=0.5))
    with pytest.raises(InputError, match="no channels that may go"):
        choose_channels(chain((4, 4)), {}, Amount(0.5))
    for bad in ({"share": 0.0}, {"share": 1.0}, {"share": 0.5, "step": 0}, {"share": 0.5, "least": 1.0}):
        with pytest.raises(InputError, match="expected"):
            Amount(**bad)  # type: ignore[arg-type]


def cost_of(host: nn.Module, structure: Structure, name: str, channel: int, x: torch.Tensor) -> float:
    """How far the answers really move when one channel goes."""
    with torch.no_grad():
        wanted = functional.log_softmax(host(x), 1)
        found = functional.log_softmax(silenced(host, structure.groups, {name: [channel]})(x), 1)
    return float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True))


def test_taylor_ranks_channels_as_taking_them_does(trained_host: nn.Module, parts: DigitSplits) -> None:
    x = torch.from_numpy(parts.host.x[:128].copy())
    structure = read_structure(trained_host, x)
    flags = [(p.requires_grad, p.grad) for p in trained_host.parameters()]
    generator = torch.random.get_rng_state()
    scores = Taylor().scores(trained_host, x)
    assert [(p.requires_grad, p.grad) for p in trained_host.parameters()] == flags
    assert torch.equal(torch.random.get_rng_state(), generator)
    rng = np.random.default_rng(0)
    picked = [(g.name, int(c)) for g in structure.groups for c in rng.choice(len(g), 8, replace=False)]
    real = [cost_of(trained_host, structure, name, c, x) for name, c in picked]
    told = [float(scores[name][c]) for name, c in picked]
    ranks = np.corrcoef(np.argsort(np.argsort(real)), np.argsort(np.argsort(told)))[0, 1]
    assert ranks > 0.6, ranks
    shuffled = rng.permutation(told)
    assert abs(np.corrcoef(np.argsort(np.argsort(real)), np.argsort(np.argsort(shuffled)))[0, 1]) < 0.5


def test_a_channel_that_nobody_reads_is_worth_nothing(trained_host: nn.Module, parts: DigitSplits) -> None:
    host = copy.deepcopy(trained_host)
    with torch.no_grad():
        host.get_parameter("block2.pointwise.weight")[:, 5] = 0
    x = torch.from_numpy(parts.host.x[:64].copy())
    scores = Taylor().scores(host, x)["block1.pointwise"]
    assert float(scores[5]) == 0.0 < float(scores.sort().values[1])


def test_scores_that_are_no_numbers_are_refused_by_name(trained_host: nn.Module) -> None:
    x = torch.full((8, 1, 16, 16), torch.nan)
    with pytest.raises(InputError, match="answers to frames 0 to 7 are not finite"):
        Taylor().scores(trained_host, x)


def test_group_norm_needs_no_data_and_counts_who_listens(trained_host: nn.Module) -> None:
    scores = GroupNorm().scores(trained_host, torch.zeros(1, 1, 16, 16))
    for value in scores.values():
        assert float(value.mean()) == pytest.approx(1.0, rel=1e-5)
    listening = trained_host.get_parameter("block1.pointwise.weight").detach()
    norms = [float(listening[:, c].norm()) for c in range(16)]
    assert scores["stem"].numpy() == pytest.approx(np.array(norms) / np.mean(norms), rel=1e-4)


class Chance(GroupNorm):
    """Any channel is worth any other."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def scores(self, network: nn.Module, frames: torch.Tensor, labels: torch.Tensor | None = None) -> Scores:
        groups = read_structure(network, frames).groups
        return {g.name: torch.from_numpy(self._rng.uniform(size=len(g))) for g in groups}


def test_both_strategies_lose_less_than_chance(trained_host: nn.Module, parts: DigitSplits) -> None:
    """Before any recovery, at equal multiplications, on frames that nothing was scored by."""
    x, fresh = torch.from_numpy(parts.host.x[:256].copy()), torch.from_numpy(parts.camera.x.copy())
    lost = []
    for strategy in (Taylor(), GroupNorm(), Chance(0), Chance(1), Chance(2)):
        smaller = copy.deepcopy(trained_host)
        strategy.take(smaller, strategy.scores(smaller, x), Amount(0.2), x)
        with torch.no_grad():
            wanted, found = (functional.log_softmax(net(fresh), 1) for net in (trained_host, smaller))
        lost.append(float(functional.kl_div(found, wanted, reduction="batchmean", log_target=True)))
    taylor, norm, *chance = lost
    assert taylor < 0.5 * min(chance) and norm < np.mean(chance), lost
