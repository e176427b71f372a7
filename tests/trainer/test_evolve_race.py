"""A whole growth on a tiny net: races, budgets, rivals, and what is said while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from worlds import small_growth

from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_edge.errors import InputError
from kasmina_trainer.evolve import Event, GrownNetwork, Macs, Measured, Parameters, evolve, torch_predictor
from kasmina_trainer.evolve.arms import Arm
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.intensity_scaler import Intensity
from kasmina_trainer.seeds import SiteState, attach_seeds, hash_state
from kasmina_trainer.training import Minutes, TrainingSettings, as_tensors, train

ARMS = [Arm("depthwise", ("s1",)), Arm("depthwise", ("s2",)), Arm("no-op", ("s1",))]


def grow(blueprint: Any = "depthwise", **options: Any) -> GrownNetwork:
    return evolve(small_growth.seeded(), **{**small_growth.task(), "blueprint": blueprint, "rival": False, **options})


def test_a_named_blueprint_is_what_the_loop_alone_makes():
    """The same bytes as grafts that are grown and trained by hand."""
    task = small_growth.task()
    by_hand = small_growth.seeded()
    for site in ("s1", "s2"):
        by_hand.graft(site, "depthwise", seed=4)
    train(
        by_hand,
        by_hand.graft_parameters(),
        [as_tensors(task["train"], "cpu"), as_tensors(task["target"], "cpu")],
        training_modules=[by_hand],
        teacher=small_growth.trained_host(),
        settings=small_growth.QUICK,
        seed=4,
    )
    assert hash_state(grow(seed=4).network.graft_state()) == hash_state(by_hand.graft_state())
    assert hash_state(grow(seed=5).network.graft_state()) != hash_state(by_hand.graft_state())


def test_a_race_grows_its_winner_and_says_why():
    grown = grow(ARMS, settings=replace(small_growth.QUICK, steps=40))
    best = max(grown.trials, key=lambda trial: trial.score)
    assert {trial.name for trial in grown.trials} == {"depthwise@s1", "depthwise@s2", "no-op@s1"}
    assert next(t for t in grown.trials if t.name == "no-op@s1").score == 0.0
    assert best.name == f"depthwise@{grown.grafts[0].site}" and best.score > 0 and best.kept
    assert "chosen in a race of 3 candidates over 1 rounds" in grown.report().sentences()
    again = grow(ARMS, settings=replace(small_growth.QUICK, steps=40))
    assert again.trials == grown.trials
    assert hash_state(again.network.graft_state()) == hash_state(grown.network.graft_state())


def test_the_gate_sees_rows_that_no_race_saw():
    looked: list[np.ndarray] = []

    def predictor(network: Any) -> Any:
        def predict(x: np.ndarray) -> np.ndarray:
            looked.append(x)
            return torch_predictor(network)(x)

        return predict

    task = small_growth.task()
    grow(ARMS, predictor=predictor)
    assert {len(x) for x in looked} == {60}
    assert any(np.array_equal(x, task["holdout_target"][0]) for x in looked)


def test_auto_races_what_fits_and_combines_the_best():
    grown = grow("auto", settings=replace(small_growth.QUICK, steps=6), budget=Parameters(400))
    assert len({trial.name for trial in grown.trials if trial.rung == 0}) >= 2
    assert max(t.rung for t in grown.trials) >= 1 and len(grown.grafts) >= 1
    assert all(trial.parameters <= 400 for trial in grown.trials) and grown.parameters <= 400


def test_a_race_that_runs_out_of_time_still_grows_something():
    clock = small_growth.Steady()
    grown = grow(ARMS, budget=Minutes(12 / 60), clock=clock, settings=replace(small_growth.QUICK, steps=30))
    assert len(grown.trials) < 3 and grown.grafts
    assert 0 < grown.run.steps < 30 and "the budget ended it" in grown.report().sentences()[2]


def test_a_policy_sees_telemetry_and_chooses():
    seen: list[tuple[list[str], Mapping[str, SeedTelemetry], Allowance]] = []

    def choose(arms: Sequence[Arm], telemetry: Mapping[str, SeedTelemetry], left: Allowance) -> Sequence[Arm]:
        seen.append(([arm.name for arm in arms], telemetry, left))
        return [arm for arm in arms if arm.sites == ("s2",)]

    grown = grow(ARMS, choose=choose, budget=Macs(10**6))
    ((names, telemetry, left),) = seen
    assert names == ["depthwise@s1", "depthwise@s2", "no-op@s1"] and left == Allowance(None, 10**6, None)
    assert set(telemetry) == {"s1", "s2"} and telemetry["s1"].activation_variance is not None
    assert telemetry["s1"].activation_variance != telemetry["s2"].activation_variance
    assert [graft.site for graft in grown.grafts] == ["s2"]
    with pytest.raises(InputError, match="the policy chose none of 3 arms"):
        grow(ARMS, choose=lambda *_: [])


def test_full_tuning_and_the_retune_stand_beside_it():
    grown = grow(rival=True)
    assert [rival.blueprint for rival in grown.rivals] == ["scale-bn-retune", "full-fine-tune"]
    assert grown.rival is grown.rivals[0]
    full = grown.rivals[1]
    assert full.parameters == sum(p.numel() for p in small_growth.trained_host().parameters())
    assert full.network.host_hash != grown.network.host_hash == small_growth.seeded().host_hash
    names = [row.name for row in grown.report().rows]
    assert names == ["host", "+ depthwise@s1,s2", "scale-bn-retune instead", "full-fine-tune instead"]
    assert all(row.seconds > 0 and row.peak_bytes > 0 for row in grown.report().rows[1:])


def test_a_host_without_norms_says_what_it_cannot_be_compared_with():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    seeds = attach_seeds(plain, ["1"], example=torch.zeros(1, 1, 8, 8))
    grown = evolve(seeds, **{**small_growth.task(), "rival": True})
    assert [rival.blueprint for rival in grown.rivals] == ["full-fine-tune"] and grown.rival is None
    assert any("no batch norm" in sentence for sentence in grown.report().sentences())
    with pytest.raises(InputError, match="no rival is called 'prompt-tuning'"):
        grow(rival=("prompt-tuning",))


def test_intensities_reach_rate_and_gain():
    plain = grow(sites=("s1",))
    slow = grow(sites=("s1",), intensity={"depthwise": Intensity(learning_rate=0.01, gain=0.5)})
    assert slow.grafts[0].intensity == 0.5 and plain.grafts[0].intensity == 1.0
    key = "s1.branch.pointwise.weight"
    assert slow.network.graft_state()[key].abs().sum() < 0.2 * plain.network.graft_state()[key].abs().sum()


def test_each_graft_gains_what_silencing_it_loses():
    grown = grow(settings=replace(small_growth.QUICK, steps=60))
    assert set(grown.gains) == {"s1", "s2"} and max(grown.gains.values()) > 0
    assert [graft.intensity for graft in grown.grafts] == [1.0, 1.0]
    assert float(grown.network.site("s1").gate.flatten()[0]) == 1.0


def test_events_tell_the_whole_story():
    heard: list[Event] = []
    grown = grow(ARMS, on_event=heard.append)
    kinds = [event.kind for event in heard]
    assert kinds[0] == "phase" and kinds[-1] == "verdict" and kinds.count("arm") == 3 and kinds.count("rung") == 1
    verdict = heard[-1]
    assert verdict.values["target"] == grown.acceptance.target_after and verdict.step == grown.run.steps
    losses = [event.values["loss"] for event in heard if event.kind == "step" and event.name == verdict.name]
    assert len(losses) >= grown.run.steps and all(np.isfinite(losses))


def test_files_are_priced_on_the_target_and_judged():
    from pathlib import Path

    file = (Path(__file__).parents[1] / "golden" / "digits.tflite").read_bytes()
    limits = replace(small_growth.LIMITS, maximum_peak_bytes=10)
    grown = grow(
        measure=lambda network: Measured(torch_predictor(network), file), profile="raspberry-pi-4", limits=limits
    )
    assert grown.costs is not None and grown.costs.latency_ms[0] == grown.costs.latency_ms[1] > 0
    assert any(reason.startswith("peak memory:") for reason in grown.acceptance.reasons)
    assert any(s.startswith("latency on raspberry-pi-4") and "band" in s for s in grown.report().sentences())
    with pytest.raises(InputError, match="maximum_peak_bytes asked for, and no profile"):
        grow(limits=limits)


def test_groups_reach_the_gate():
    groups = np.arange(60) // 6
    free, grouped = grow(), grow(clusters=(groups, groups))
    assert free.acceptance.target_after == grouped.acceptance.target_after
    assert free.acceptance.gain_low != grouped.acceptance.gain_low
    with pytest.raises(InputError, match="groups of the target rows were named, and no held-out target rows"):
        grow(clusters=(None, groups), holdout_target=None)


def test_a_lost_race_leaves_the_host_as_it_was():
    seeds = small_growth.seeded()
    x = torch.from_numpy(small_growth.bars(6, 0)[0])
    before = seeds(x)
    evolve(seeds, **{**small_growth.task(), "blueprint": ARMS, "rival": False})
    assert torch.equal(seeds(x), before) and set(seeds.states.values()) == {SiteState.DORMANT}
    assert not seeds.grafts and all(p.grad is None for p in seeds.parameters())


def test_dropout_draws_from_the_seed_alone():
    settings = TrainingSettings(steps=5, batch=8, learning_rate=1e-2, shift=0)
    made = []
    for noise in (0, 1):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        rows = [as_tensors(small_growth.bars(30, 0), "cpu")]
        train(net, list(net.parameters()), rows, training_modules=[net], settings=settings, seed=7)
        assert torch.equal(before, torch.random.get_rng_state())
        made.append(net[2].weight.detach().clone())
    assert torch.equal(*made)
