"""Switched adapters: shut on what the host knows, free on the rest; and how they meet both before they learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from worlds import small_growth

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints import GraftBlueprint, find_blueprint
from kasmina_trainer.blueprints.conformance import SAMPLE_PORTS, perturb
from kasmina_trainer.blueprints.normed import Normed, Weights, changed
from kasmina_trainer.blueprints.switched import SHUT_FOR, SwitchedBranch
from kasmina_trainer.evolve import GRAFT_SETTINGS, default_settings, evolve, meeting, sites_for
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.evolve.meeting import begin, meet
from kasmina_trainer.evolve.opening import opened
from kasmina_trainer.evolve.recipes import RECIPE_SETTINGS, named_recipe, norm_names, within
from kasmina_trainer.hosts import build_host
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.telemetry.looking import SiteTap
from kasmina_trainer.training import Thinned, TrainingSettings
from kasmina_trainer.training import train as fit_parameters

EXAMPLE = torch.zeros(1, 1, small_growth.SIDE, small_growth.SIDE)
TASK: dict[str, Any] = {"blueprint": "switched", "rival": False, "settings": replace(small_growth.QUICK, steps=40)}


def seeded(recipe: str = "switched") -> SeededNetwork:
    host = small_growth.trained_host()
    return attach_seeds(host, sites_for(recipe, host, EXAMPLE), example=EXAMPLE)


def met(place: str, far: float, **settings: int) -> tuple[SwitchedBranch, torch.Tensor, torch.Tensor]:
    """A branch with weights, that met frames and others that are ``far`` deviations away; more frames of both kinds."""
    kind, port = find_blueprint("switched-adapter"), SAMPLE_PORTS[place]
    assert isinstance(kind, GraftBlueprint)
    branch = kind.build(port, seed=0, config=kind.Config.parse(settings))
    assert isinstance(branch, SwitchedBranch)
    generator = torch.Generator().manual_seed(0)
    clean, other = (torch.randn(400, *port.shape, generator=generator) for _ in range(2))
    other = other + far
    branch.meet(branch.sight(torch.cat([clean[:200], other[:200]])), 200)
    perturb(branch)
    return branch.eval(), clean[200:], other[200:]


@pytest.mark.parametrize("place", ["image", "flat", "series", "tokens", "vector"])
def test_it_is_shut_on_frames_like_the_clean_ones_and_open_on_the_others(place: str) -> None:
    branch, clean, other = met(place, 4.0)
    assert branch.opening(clean).shape[0] == len(clean) and branch.opening(clean)[0].numel() == 1
    assert float((branch.opening(clean) > 0).float().mean()) < 0.1
    assert float((branch.opening(other) > 0.5).float().mean()) > 0.9
    shut = branch.opening(clean).flatten() == 0
    assert not bool(branch(clean)[shut].any()), "what is shut adds nothing at all"
    assert bool(branch(other).any())


def test_where_nothing_tells_frames_apart_it_stays_shut_on_most_of_both() -> None:
    branch, clean, other = met("image", 0.0)
    for frames in (clean, other):
        assert float((branch.opening(frames) > 0).float().mean()) < 5 * (1 - SHUT_FOR)
    same = torch.ones(20, *SAMPLE_PORTS["image"].shape)
    branch.meet(branch.sight(same), 10)
    assert not bool(branch.opening(same).any())


@pytest.mark.parametrize("taps", [1, 3])
def test_it_begins_with_the_spread_of_the_clean_frames(taps: int) -> None:
    kind = find_blueprint("switched-adapter")
    assert isinstance(kind, GraftBlueprint)
    branch = kind.build(SAMPLE_PORTS["image"], seed=0, config=kind.Config.parse({"taps": taps}))
    assert isinstance(branch, SwitchedBranch)
    generator = torch.Generator().manual_seed(1)
    clean = 1 + 2 * torch.randn(300, *SAMPLE_PORTS["image"].shape, generator=generator)
    other = 7 + 0.5 * torch.randn(300, *SAMPLE_PORTS["image"].shape, generator=generator)
    branch.meet(branch.sight(torch.cat([clean, other])), 300)
    with torch.no_grad():
        branch.toward.zero_()
        branch.start.zero_()  # open for all, so that what it begins with is seen alone
        moved = other + branch(other)
    torch.testing.assert_close(moved.mean((0, 2, 3)), clean.mean((0, 2, 3)), atol=0.1, rtol=0)
    torch.testing.assert_close(moved.std((0, 2, 3)), clean.std((0, 2, 3)), atol=0.1, rtol=0)
    assert abs(float(other.mean() - clean.mean())) > 1, "the control: they were far apart"


def test_what_it_measured_does_not_learn_and_travels_with_the_weights() -> None:
    branch, clean, other = met("image", 4.0)
    assert not {"toward", "start"} & {name for name, _ in branch.named_parameters()}
    kind = find_blueprint("switched-adapter")
    assert isinstance(kind, GraftBlueprint)
    twin = kind.build(SAMPLE_PORTS["image"], seed=5)
    assert twin is not None
    twin.load_state_dict(branch.state_dict())
    assert torch.equal(twin(other), branch(other)) and torch.equal(twin(clean), branch(clean))


def test_rows_that_pass_at_once_meet_as_those_that_pass_branch_by_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    host, example = build_host(seed=0).eval(), torch.zeros(1, 1, 16, 16)
    clean = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for most in (meeting.AT_ONCE, 0):
        monkeypatch.setattr(meeting, "AT_ONCE", most)
        network = attach_seeds(host, sites_for("switched", host, example), example=example)
        for name in network.sites:
            network.graft(name, "switched-adapter")
        meet(network, clean, 0.2 * clean, seed=0, batch=16)
        found.append(network.graft_state())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-3, rtol=1e-3)


def test_branches_behind_see_what_those_in_front_make_of_the_rows() -> None:
    host = build_host(seed=0).eval()
    example = torch.zeros(1, 1, 16, 16)
    sites = sites_for("switched", host, example)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(64, 1, 16, 16, generator=generator)

    def grown(names: tuple[str, ...]) -> SeededNetwork:
        network = attach_seeds(host, names, example=example)
        for name in names:
            network.graft(name, "switched-adapter")
        assert meet(network, clean, 0.2 * clean, seed=0) == len(names)
        return network

    both, again, second = grown(sites[:2]), grown(sites[:2]), grown(sites[1:2])
    states = [network.graft_state() for network in (both, again, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0][f"{sites[1]}.branch.toward"], states[2][f"{sites[1]}.branch.toward"])
    both.check_host()


def test_clean_rows_keep_the_host_s_answers_bit_for_bit_where_all_is_shut() -> None:
    seeds, task = seeded(), small_growth.task()
    found = evolve(seeds, **{**task, **TASK})
    clean, target = (torch.from_numpy(task[name][0]) for name in ("train", "target"))
    host = small_growth.trained_host()
    with torch.no_grad():
        alike = (found.network(clean) == host(clean)).all(1).float().mean()
        changed = (found.network(target) != host(target)).any(1).float().mean()
    assert alike > 0.9 and changed > 0.9
    assert found.acceptance.target_after - found.acceptance.target_before > 0.2
    for site in tuple(found.network.growths):
        found.network.remove(site)
    with torch.no_grad():
        assert torch.equal(found.network(target), host(target))


def grown_and_met(far: float) -> tuple[SeededNetwork, torch.Tensor]:
    """Two branches that met clean rows and others, with weights; and the clean rows."""
    host = build_host(seed=0).eval()
    example = torch.zeros(1, 1, 16, 16)
    sites = sites_for("switched", host, example)[:2]
    network = attach_seeds(host, sites, example=example)
    for name in sites:
        network.graft(name, "switched-adapter")
    clean = torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    meet(network, clean, far * clean, seed=0)
    for name in sites:
        branch = network.site(name).branch
        assert branch is not None
        perturb(branch)
    return network, clean


def test_rows_that_open_nothing_give_no_gradient_and_the_others_do() -> None:
    network, clean = grown_and_met(0.2)
    labels = torch.arange(400)
    left = opened(network, (clean, labels), seed=0, most=400)
    assert 0 < left.share < 0.5 and len(left.x) == round(400 * left.share)
    assert torch.equal(left.x, clean[left.y]), "rows keep their labels"
    shut = sorted(set(range(400)) - set(left.y.tolist()))

    def pull(rows: torch.Tensor) -> float:
        parameters = network.graft_parameters()
        found = torch.autograd.grad(network(rows).square().sum(), parameters)
        return sum(float(each.abs().sum()) for each in found)

    assert pull(clean[shut]) == 0.0
    assert pull(left.x) > 0


@pytest.mark.parametrize("keep", [0.0, 2.0])
def test_a_thinned_source_moves_the_weights_as_the_whole_one_does(keep: float) -> None:
    """The whole: 32 clean rows, 8 of which teach, and 32 others, all in one step. Thinned: those 8 and the 32."""
    network, clean = grown_and_met(0.2)
    left = opened(network, (clean, torch.arange(400)), seed=0, most=400)
    shut = clean[sorted(set(range(400)) - set(left.y.tolist()))][:24]
    teach = left.x[:8]
    assert len(teach) == 8, "the world has enough rows that open a branch"
    others, labels = 0.2 * clean[:32], torch.arange(32) % 10
    parameters, begun = network.graft_parameters(), network.graft_state()
    begun = {name: value.clone() for name, value in begun.items()}

    def stepped(first: torch.Tensor, thinned: Thinned | None) -> torch.Tensor:
        network.load_graft_state(begun)
        fit_parameters(
            network,
            parameters,
            [(first, torch.zeros(len(first), dtype=torch.int64)), (others, labels)],
            teacher=build_host(seed=0).eval(),
            settings=TrainingSettings(steps=1, batch=64, learning_rate=1e-2, shift=0, keep=keep),
            seed=0,
            thinned=thinned,
        )
        return torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])

    whole = stepped(torch.cat([teach, shut]), None)
    torch.testing.assert_close(stepped(teach, Thinned(8 / 32)), whole, atol=1e-5, rtol=1e-3)
    assert not torch.allclose(stepped(teach, Thinned(1.0)), whole, atol=1e-5, rtol=1e-3), "the control: another weight"


@pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="thinned"):
        Thinned(share)


def test_without_clean_rows_nothing_is_met_and_it_stays_open() -> None:
    found = evolve(seeded(), **{**small_growth.task(), **TASK, "target_only": True})
    state = found.network.graft_state()
    assert not bool(state["norm.branch.toward"].any()) and float(state["norm.branch.start"]) == 0.0


def test_a_journal_keeps_what_was_measured(tmp_path: Path) -> None:
    task = {**small_growth.task(), **TASK, "folder": tmp_path}
    first = evolve(seeded(), **task)
    again = evolve(seeded(), **task, resume=True)
    for name, value in first.network.graft_state().items():
        assert torch.equal(value, again.network.graft_state()[name]), name
    assert bool(first.network.graft_state()["norm.branch.toward"].any())


@pytest.mark.parametrize(("name", "share"), [("switched", 0.02), ("switched-wide", 0.1), ("switched", 0.012)])
def test_switched_recipes_are_made_to_fit_a_share_of_the_host(name: str, share: float) -> None:
    host, example = build_host(seed=0).eval(), torch.zeros(1, 1, 16, 16)
    most = int(share * sum(p.numel() for p in host.parameters()))
    ports = attach_seeds(host, sites_for(name, host, example), example=example).ports
    fitted = within(named_recipe(name, ports, norm_names(host)), ports, Allowance(parameters=most))
    sizes = [getattr(arm.config, "taps", 1) for arm in fitted]
    assert sizes == sorted(sizes, reverse=True) and len(fitted[0].sites) == (4 if name == "switched-wide" else 2)
    whole = within(named_recipe(name, ports, norm_names(host)), ports, Allowance())
    everywhere = {"switched": len(norm_names(host)), "switched-wide": 5}[name]
    assert sum(len(arm.sites) for arm in whole) == everywhere >= sum(len(arm.sites) for arm in fitted)


def test_a_recipe_trains_as_its_own_settings_say_unless_others_are_given() -> None:
    assert default_settings("switched") == RECIPE_SETTINGS["switched"] != GRAFT_SETTINGS
    assert default_settings("filters") == GRAFT_SETTINGS
    quick = {key: value for key, value in small_growth.task().items() if key != "settings"}
    found = evolve(seeded(), **{**quick, "blueprint": "switched", "rival": False})
    assert found.run.asked_steps == RECIPE_SETTINGS["switched"].steps
    assert np.isfinite(found.run.loss)


@pytest.mark.parametrize(
    ("place", "taps", "bottleneck"),
    [("image", 3, 4), ("image", 5, 0), ("image", 1, 0), ("image", 1, 4), ("series", 3, 4), ("vector", 1, 4)],
)
def test_what_it_learns_with_folds_into_what_is_shipped(place: str, taps: int, bottleneck: int) -> None:
    kind, port = find_blueprint("switched-adapter"), SAMPLE_PORTS[place]
    assert isinstance(kind, GraftBlueprint)
    branch = kind.build(port, seed=0, config=kind.Config.parse({"taps": taps, "bottleneck": bottleneck}))
    assert isinstance(branch, SwitchedBranch)
    generator = torch.Generator().manual_seed(0)
    clean, other = (torch.randn(64, *port.shape, generator=generator) for _ in range(2))
    other = 2 * other + 1
    shipped = set(branch.state_dict())
    assert not branch.begin(), "it has met nothing"
    branch.meet(branch.sight(torch.cat([clean, other])), len(clean))
    branch.eval()
    born = branch(other)
    assert branch.begin()
    torch.testing.assert_close(branch(other), born, atol=1e-4, rtol=1e-4)
    learning = [p for p in branch.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2)
    branch.train()
    for _ in range(5):
        optimizer.zero_grad()
        branch(torch.cat([clean, other])).square().mean().backward()
        optimizer.step()
    branch.eval()
    learned = branch(other)
    assert not torch.allclose(learned, born, atol=1e-3), "the control: it learned"
    branch.settle()
    torch.testing.assert_close(branch(other), learned, atol=1e-4, rtol=1e-4)
    assert set(branch.state_dict()) == shipped and all(p.requires_grad for p in branch.parameters())
    branch.settle()
    torch.testing.assert_close(branch(other), learned, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("onto", [False, True])
@pytest.mark.parametrize(("taps", "bottleneck"), [(3, 4), (5, 0), (1, 0), (1, 4)])
@pytest.mark.parametrize("shape", [(6, 5, 6), (6, 1, 9)])
def test_its_one_step_of_autograd_gives_the_gradients_of_many(
    taps: int, bottleneck: int, shape: tuple[int, int, int], onto: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    width = shape[0]
    norm = Normed((drawn(width), drawn(width).abs()), (drawn(width), drawn(width).abs())).double()
    x, opening = drawn(7, *shape), torch.rand(7, 1, 1, 1, generator=generator, dtype=torch.float64)
    high = min(taps, shape[1])
    filters = drawn(width, 1, high, taps) if taps > 1 else None
    down = (drawn(bottleneck, width, 1, 1), drawn(bottleneck)) if bottleneck else None
    up = drawn(width, bottleneck, 1, 1) if bottleneck else None
    learning = [p for p in (x, norm.spread, norm.centre, filters, *(down or ()), up) if p is not None]
    weight = torch.randn(7, *shape, generator=generator, dtype=torch.float64)

    def gradients(found: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad((found * weight).sum(), learning))

    first = changed(x, opening, norm, Weights(filters, down, up), onto=onto)
    running = norm.mean.clone()
    y = x
    if filters is not None:
        y = y + functional.conv2d(x, filters, padding=(high // 2, taps // 2), groups=width)
    if down is not None and up is not None:
        y = y + functional.conv2d(torch.relu(functional.conv2d(x, *down)), up)
    plain = opening * (norm(y) - x) + (x if onto else 0.0)
    torch.testing.assert_close(first, plain)
    for one, many in zip(gradients(first), gradients(plain), strict=True):
        torch.testing.assert_close(one, many)
    assert not torch.equal(running, norm.mean), "both keep running statistics"


def test_a_site_that_nobody_looks_at_learns_as_one_that_is_watched() -> None:
    """The quicker way to the sum gives the values and gradients of the slow one."""
    network, clean = grown_and_met(0.2)
    begin(network)
    for name in network.sites:
        network.set_intensity(name, 0.7)
    rows = torch.cat([clean[:32], 0.2 * clean[:32]])
    branches = [network.site(name).branch for name in network.sites]
    assert all(isinstance(branch, SwitchedBranch) and branch.normed is not None for branch in branches)
    calls: list[int] = []
    hooks = [b.register_forward_hook(lambda *_: calls.append(1)) for b in branches if b is not None]

    def see(site: str, entry: torch.Tensor, added: torch.Tensor | None, grown: torch.Tensor) -> torch.Tensor:
        return grown

    def learned(tap: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        for name in network.sites:
            network.site(name).tap = tap
        network.train()
        answers = network(rows)
        pulled = torch.autograd.grad(
            answers.square().mean(), [p for p in network.graft_parameters() if p.requires_grad]
        )
        return answers, list(pulled)

    quick, pulls = learned(None)
    passed, _ = learned(SiteTap(see, "first", lambda: False))
    assert not calls and torch.equal(passed, quick), "the control: the quicker way was taken"
    slow, others = learned(SiteTap(see, "first", lambda: True))
    assert len(calls) == len(branches)
    torch.testing.assert_close(quick, slow, atol=1e-5, rtol=1e-5)
    for one, other in zip(pulls, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for hook in hooks:
        hook.remove()
