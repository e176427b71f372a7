"""Recipes on a whole net: norms that learn in training mode are shipped as branches that come off again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from worlds import small_growth

from kasmina_edge.errors import InputError
from kasmina_trainer.evolve import RECIPES, Parameters, evolve, sites_for
from kasmina_trainer.evolve.arms import Arm, price_of
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.evolve.recipes import named_recipe, norm_names, within
from kasmina_trainer.hosts import build_host
from kasmina_trainer.intensity_scaler import Intensity
from kasmina_trainer.seeds import SeededNetwork, attach_seeds

LONGER = replace(small_growth.QUICK, steps=40)
EXAMPLE = torch.zeros(1, 1, small_growth.SIDE, small_growth.SIDE)


def attached(recipe: str) -> SeededNetwork:
    host = small_growth.trained_host()
    return attach_seeds(host, sites_for(recipe, host, EXAMPLE), example=EXAMPLE)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_finds_its_places_and_grows(name: str):
    seeds = attached(name)
    grown = evolve(seeds, **{**small_growth.task(), "blueprint": name, "rival": False})
    assert {graft.blueprint for graft in grown.grafts} == {
        "channel-affine" if part.blueprint == "scale-bn-retune" else part.blueprint for part in RECIPES[name]
    }
    assert not any(graft.mergeable for graft in grown.grafts)
    assert grown.network.host_hash == seeds.host_hash


def test_learned_norms_are_shipped_exactly_and_come_off_exactly():
    """What was trained in place (the retune of a new host) and what is shipped as branches answer alike."""
    seeds = attached("light")
    task = {**small_growth.task(), "settings": LONGER}
    in_place = evolve(seeds, **{**task, "blueprint": "scale-bn-retune", "rival": False})
    shipped = evolve(seeds, **{**task, "blueprint": [Arm("scale-bn-retune", ("norm",))], "rival": False})
    x = torch.from_numpy(task["target"][0])
    host = small_growth.trained_host()
    with torch.no_grad():
        merged, removable, before = in_place.network(x), shipped.network(x), host(x)
        assert (merged - before).abs().max() > 0.05, "the control: something was learned"
        assert torch.allclose(merged, removable, atol=1e-4)
        assert [(g.site, g.blueprint, g.parameters) for g in shipped.grafts] == [("norm", "channel-affine", 12)]
        shipped.network.remove("norm")
        assert torch.equal(shipped.network(x), before)


def test_a_recipe_gains_on_the_target():
    grown = evolve(
        attached("light"), **{**small_growth.task(), "settings": LONGER, "blueprint": "light", "rival": False}
    )
    assert grown.acceptance.target_after - grown.acceptance.target_before > 0.3
    assert grown.report().rows[1].name == "+ input-filter+scale-bn-retune@input,norm"


def test_norms_have_an_intensity_of_their_own():
    grown = evolve(
        attached("light"),
        **{**small_growth.task(), "blueprint": "light", "rival": False},
        intensity={"scale-bn-retune": Intensity(gain=0.5)},
    )
    assert {graft.blueprint: graft.intensity for graft in grown.grafts} == {"input-filter": 1.0, "channel-affine": 0.5}


def test_a_journal_keeps_learned_norms(tmp_path):  # type: ignore[no-untyped-def]
    task = {**small_growth.task(), "blueprint": "light", "rival": False, "folder": tmp_path}
    first = evolve(attached("light"), **task)
    again = evolve(attached("light"), **task, resume=True)
    for name, value in first.network.graft_state().items():
        assert torch.equal(value, again.network.graft_state()[name]), name


@pytest.mark.parametrize(
    ("blueprint", "message", "step"),
    [
        ([Arm("scale-bn-retune", ("s1",))], "site s1 is not behind a batch norm", "Norms are norm"),
        ([Arm("scale-bn-retune", ())], "no site was named", ""),
        ("light", "recipe light: the sites s1, s2 have no place for one of input-filter", "sites_for"),
    ],
)
def test_places_that_are_not_there_are_told(blueprint: object, message: str, step: str):
    with pytest.raises(InputError, match=message) as caught:
        evolve(small_growth.seeded(), **{**small_growth.task(), "blueprint": blueprint})
    assert step in caught.value.next_step


def test_what_has_no_norms_has_no_recipe_for_them():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match="no place for one of"):
        sites_for("light", plain, EXAMPLE)
    with pytest.raises(InputError, match="no recipe is called 'heavy'"):
        sites_for("heavy", plain, EXAMPLE)
    assert sites_for("filters", plain, EXAMPLE)[0] == "input"


def test_recipes_are_as_small_as_they_say():
    """Two hundredths and a tenth of the digits host's 40,906 parameters, but for its nine norms (3.3 %)."""
    host = build_host(seed=0).eval()
    example = torch.zeros(1, 1, 16, 16)
    size = sum(p.numel() for p in host.parameters())
    for name, most in {"light": 0.045, "strong": 0.2}.items():
        seeds = attach_seeds(host, sites_for(name, host, example), example=example)
        price = price_of(named_recipe(name, seeds.ports, norm_names(host)), seeds.ports)
        assert 0 < price.parameters <= most * size, (name, price.parameters / size)


@pytest.mark.parametrize(("name", "share"), [("light", 0.02), ("strong", 0.10), ("strong", 0.05), ("light", 0.015)])
def test_a_recipe_is_made_to_fit_a_share_of_the_host(name: str, share: float):
    """The largest one: one more norm, or one more rank, would be over the budget."""
    host = build_host(seed=0).eval()
    example = torch.zeros(1, 1, 16, 16)
    most = int(share * sum(p.numel() for p in host.parameters()))
    seeds = attach_seeds(host, sites_for(name, host, example), example=example)
    ports, whole = seeds.ports, named_recipe(name, seeds.ports, norm_names(host))
    fitted = within(whole, ports, Allowance(parameters=most))
    assert price_of(fitted, ports).parameters <= most
    assert len(fitted) == len(whole), "no part of it is left out"
    norms = next(len(arm.sites) for arm in fitted if arm.blueprint == "scale-bn-retune")
    if name == "light":
        more = whole[1].sites[: norms + 1]
        assert price_of((fitted[0], Arm("scale-bn-retune", more)), ports).parameters > most
    else:
        config = fitted[1].config
        assert config is not None
        wider = replace(fitted[1], config=type(config)(rank=config.rank + 1))
        assert price_of((fitted[0], wider, fitted[2]), ports).parameters > most
    assert within(whole, ports, Allowance()) == whole


def test_a_race_tries_recipes_within_the_budget():
    seeds = attached("filters-and-norms")
    grown = evolve(
        seeds,
        **{**small_growth.task(), "blueprint": "auto", "rival": False, "settings": replace(LONGER, steps=4)},
        budget=Parameters(700),
    )
    last = max(trial.rung for trial in grown.trials)
    names = {trial.name for trial in grown.trials if trial.rung == last}
    assert any("scale-bn-retune@norm" in name for name in names), names
    assert all(trial.parameters <= 700 for trial in grown.trials)
