"""Growth on real digits: it recovers what the lens took, refuses what does harm, and is the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import kasmina_trainer as kt
from kasmina_edge.contracts.arrays import pack_members, unpack_members
from kasmina_edge.errors import BundleError, InputError, StorageError
from kasmina_trainer.acceptance import AcceptanceLimits
from kasmina_trainer.checkpoints import load_checkpoint, save_host, save_network
from kasmina_trainer.datasets.digits import DigitSplits, Samples, require_disjoint
from kasmina_trainer.evolve import GRAFT_SETTINGS, GrownNetwork, evolve
from kasmina_trainer.seeds import SeededNetwork, SiteState, attach_seeds, hash_state
from kasmina_trainer.training import (
    Minutes,
    TrainingSettings,
    accuracy,
    as_tensors,
    predict_labels,
    train,
    train_host,
)

TINY = TrainingSettings(steps=4, learning_rate=1e-2)


def test_growing_recovers_what_the_lens_took(grown: GrownNetwork):
    verdict = grown.acceptance
    assert verdict.target_before <= 0.5 and verdict.target_after >= 0.6
    assert verdict.gain_low > 0.1
    assert verdict.clean_before - verdict.clean_after <= 0.03
    assert verdict.accepted, verdict.reasons
    assert [(g.site, g.blueprint, g.mergeable) for g in grown.grafts] == [
        ("s1", "depthwise", False),
        ("s2", "depthwise", False),
    ]
    assert all(g.capture_batches == ("a" * 64,) for g in grown.grafts)
    assert grown.network.states["s1"] is SiteState.ACTIVE


def test_the_host_below_is_what_it_was(grown: GrownNetwork, trained_host: nn.Module, digit_batch: torch.Tensor):
    assert grown.network.host_hash == hash_state(trained_host.state_dict())
    network = attach_seeds(grown.network.host_copy())
    assert torch.equal(network(digit_batch), trained_host(digit_batch))


def test_removing_the_growth_restores_the_host(
    grown: GrownNetwork, trained_host: nn.Module, digit_batch: torch.Tensor, tmp_path: Path
):
    save_network(tmp_path / "g", grown.network)
    network = load_checkpoint(tmp_path / "g").network
    assert not torch.equal(network(digit_batch), trained_host(digit_batch))
    for site in ("s1", "s2"):
        network.remove(site)
    assert torch.equal(network(digit_batch), trained_host(digit_batch))


def test_the_rival_is_a_new_host(grown: GrownNetwork, seeded: SeededNetwork):
    rival = grown.rival
    assert rival is not None and rival.blueprint == "scale-bn-retune"
    assert rival.network.host_hash != seeded.host_hash
    assert rival.grafts[0].mergeable and rival.grafts[0].site == "host"
    assert rival.grafts[0].parameters == 4 * (16 + 16 + 32 + 32 + 64 + 64 + 128 + 128 + 192)
    assert rival.acceptance.target_after > rival.acceptance.target_before
    changed = {
        name for name, value in rival.network.host_state().items() if not torch.equal(value, seeded.host_state()[name])
    }
    assert changed and all("norm" in name for name in changed)


def test_trained_on_the_target_alone_it_does_harm_and_is_refused(
    seeded: SeededNetwork, parts: DigitSplits, captured: Samples, held_out_captured: Samples
):
    harmful = evolve(
        seeds=seeded,
        train=parts.host.samples,
        target=captured,
        holdout_clean=parts.probes.samples,
        holdout_target=held_out_captured,
        settings=replace(GRAFT_SETTINGS, steps=60),
        target_only=True,
        rival=False,
        seed=0,
    )
    verdict = harmful.acceptance
    assert not verdict.accepted and "clean accuracy lost" in verdict.reasons[0]
    assert verdict.clean_before > 0.9 and verdict.clean_after < 0.9
    assert harmful.network.states["s1"] is SiteState.PROBING
    assert "refused: clean accuracy lost" in harmful.report().sentences()[0]


def grow_a_little(host: nn.Module, parts: DigitSplits, captured: Samples, seed: int = 0) -> GrownNetwork:
    return evolve(attach_seeds(host), train=parts.host.samples, target=captured, settings=TINY, rival=False, seed=seed)


def test_the_same_seed_gives_the_same_bytes(trained_host: nn.Module, parts: DigitSplits, captured: Samples):
    generator = torch.random.get_rng_state()
    first, again = (grow_a_little(trained_host, parts, captured) for _ in range(2))
    assert hash_state(first.network.graft_state()) == hash_state(again.network.graft_state())
    assert first.acceptance == again.acceptance
    other = grow_a_little(trained_host, parts, captured, seed=1)
    assert hash_state(other.network.graft_state()) != hash_state(first.network.graft_state())
    assert torch.equal(generator, torch.random.get_rng_state())


def test_the_same_seed_trains_the_same_host(parts: DigitSplits):
    first, again = (train_host(parts.host, seed=3, settings=TINY) for _ in range(2))
    assert hash_state(first.state_dict()) == hash_state(again.state_dict())
    assert hash_state(train_host(parts.host, seed=4, settings=TINY).state_dict()) != hash_state(first.state_dict())


def test_captures_test_and_training_share_no_scene(parts: DigitSplits):
    with pytest.raises(InputError, match="share"):
        require_disjoint(
            {"captured": parts.camera.sources[:200], "test": (*parts.test.sources, parts.camera.sources[3])}
        )
    require_disjoint({"captured": parts.camera.sources, "test": parts.test.sources, "host": parts.host.sources})


def test_a_held_out_row_that_is_trained_on_is_refused(seeded: SeededNetwork, parts: DigitSplits, captured: Samples):
    x, y = captured
    with pytest.raises(InputError, match="target: 5 held-out inputs are trained on as well"):
        evolve(seeded, train=parts.host.samples, target=captured, holdout_target=(x[:5], y[:5]), settings=TINY)


def test_its_own_split_keeps_repeats_of_a_scene_on_one_side(trained_host: nn.Module, parts: DigitSplits):
    scenes = parts.camera.take(slice(0, 60))
    rng = np.random.default_rng(0)
    x = np.concatenate([np.clip(scenes.x + rng.normal(0, 0.01, scenes.x.shape), 0, 1) for _ in range(3)])
    asked: list[np.ndarray] = []

    def predictor(network: SeededNetwork):
        def predict(rows: np.ndarray) -> np.ndarray:
            asked.append(rows)
            return predict_labels(network, rows)

        return predict

    evolve(
        attach_seeds(trained_host),
        train=parts.host.samples,
        target=(x.astype(np.float32), np.tile(scenes.y, 3)),
        settings=TINY,
        rival=False,
        predictor=predictor,
        limits=AcceptanceLimits(minimum_samples=45),
    )
    judged = asked[-1].reshape(len(asked[-1]), -1)
    nearest = np.abs(judged[:, None] - scenes.x.reshape(60, -1)[None]).mean(2).argmin(1)
    assert set(np.bincount(nearest, minlength=60)) == {0, 3}
    assert len(judged) == 45


def test_a_changed_host_is_refused(seeded: SeededNetwork, parts: DigitSplits, captured: Samples):
    with torch.no_grad():
        next(seeded.body.parameters()).mul_(1.01)
    with pytest.raises(InputError, match="the host changed under its grafts"):
        evolve(seeded, train=parts.host.samples, target=captured, settings=TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blueprint": "transformer"}, "no blueprint is called 'transformer'"),
        ({"sites": ("s7",)}, "no seed site is called 's7'"),
        ({"blueprint": "scale-bn-retune", "sites": ("s1",)}, "takes no sites"),
        ({"profile": "abacus"}, "no profile is called 'abacus'"),
        ({"device": "quantum"}, "device 'quantum' cannot be used here"),
        ({"target": (np.zeros((9, 1, 16, 16), np.float32), np.zeros(9, np.int64))}, "rows to learn from"),
        ({"target": (np.zeros((9, 1, 16, 16), np.float32), np.zeros(8, np.int64))}, "9 inputs and 8 labels"),
        ({"settings": replace(TINY, learning_rate=1e12)}, "training diverged"),
    ],
)
def test_wrong_calls_are_refused(
    seeded: SeededNetwork, parts: DigitSplits, captured: Samples, options: dict[str, object], message: str
):
    with pytest.raises(InputError, match=message):
        evolve(seeded, **{"train": parts.host.samples, "target": captured, "settings": TINY, "rival": False, **options})


def test_a_grown_network_is_not_grown_again(grown: GrownNetwork, parts: DigitSplits, captured: Samples):
    with pytest.raises(InputError, match="holds 2 grafts already"):
        evolve(grown.network, train=parts.host.samples, target=captured)


def test_noop_gains_nothing_and_is_refused(seeded: SeededNetwork, parts: DigitSplits, captured: Samples):
    nothing = evolve(seeded, train=parts.host.samples, target=captured, blueprint="no-op", rival=False)
    assert not nothing.acceptance.accepted
    assert nothing.acceptance.gain_low == nothing.acceptance.gain_high == nothing.acceptance.clean_loss_high == 0
    assert nothing.parameters == 0 and nothing.run.steps == 0


def test_the_budget_ends_training(seeded: SeededNetwork, parts: DigitSplits, captured: Samples):
    now = iter(range(100))
    short = evolve(
        seeded,
        train=parts.host.samples,
        target=captured,
        settings=replace(TINY, steps=50),
        budget=kt.Minutes(6 / 60),
        rival=False,
        clock=lambda: float(next(now)),
    )
    assert 0 < short.run.steps < 10 and short.run.asked_steps == 50
    assert "the budget ended it; 50 were asked for" in short.report().sentences()[2]
    with pytest.raises(InputError, match="expected more than 0"):
        Minutes(0)


def test_progress_counts_every_training(seeded: SeededNetwork, parts: DigitSplits, captured: Samples):
    seen: list[tuple[int, int]] = []
    evolve(
        seeded,
        train=parts.host.samples,
        target=captured,
        blueprint="scale-bn-retune",
        settings=TINY,
        on_step=lambda done, asked: seen.append((done, asked)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_training_refuses_what_cannot_learn(trained_host: nn.Module, parts: DigitSplits):
    source = as_tensors(parts.host.take(slice(0, 8)).samples, "cpu")
    with pytest.raises(InputError, match="nothing can learn"):
        train(trained_host, [], [source], settings=TINY, seed=0)
    with pytest.raises(InputError, match="training sources"):
        train(trained_host, list(trained_host.parameters()), [], settings=TINY, seed=0)


def test_the_report_speaks_to_people_and_machines(grown: GrownNetwork):
    report = grown.report()
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    text = console.export_text()
    assert "+ depthwise@s1,s2" in text and "scale-bn-retune instead" in text and "accepted" in text
    assert "2064" in text
    assert json.loads(json.dumps(report.as_dict()))["rows"][0]["name"] == "host"
    page = report._repr_html_()
    assert page.startswith("<table>") and page.count("<tr>") == 5
    other = grown.with_acceptance(grown.acceptance.model_copy(update={"accepted": False, "reasons": ("too slow",)}))
    assert other.report().sentences()[0] == "refused: too slow"


def test_the_notebook_face(trained_host: nn.Module, parts: DigitSplits, captured: Samples):
    host = kt.freeze(trained_host)
    seeds = kt.attach_seeds(host, sites="auto", example=parts.host.x[:1])
    small = kt.evolve(
        seeds, train=parts.host.samples, target=captured, profile="coral", budget=kt.Minutes(5), seed=0, settings=TINY
    )
    assert isinstance(small, kt.GrownNetwork)
    assert small.sites == seeds.sites and isinstance(small.module_for_export(), nn.Module)
    import kasmina_trainer.evolve as module

    assert module.evolve is evolve and callable(kt.evolve) and callable(kt.export)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kt.nothing


def test_checkpoints_keep_everything(grown: GrownNetwork, tmp_path: Path, digit_batch: torch.Tensor):
    path = tmp_path / "new" / "grown.checkpoint"
    save_network(path, grown.network, grafts=grown.grafts, acceptance=grown.acceptance, metadata={"seed": 0})
    first = path.read_bytes()
    back = load_checkpoint(path)
    assert torch.equal(back.network(digit_batch), grown.network(digit_batch))
    assert back.grafts == grown.grafts and back.acceptance == grown.acceptance and back.metadata == {"seed": 0}
    assert back.network.states["s1"] is SiteState.ACTIVE
    save_network(path, back.network, grafts=back.grafts, acceptance=back.acceptance, metadata=back.metadata)
    assert path.read_bytes() == first
    assert b"pickle" not in first and first[:2] == b"PK"


def test_a_retuned_host_travels_with_its_record(grown: GrownNetwork, tmp_path: Path, digit_batch: torch.Tensor):
    assert grown.rival is not None
    save_network(tmp_path / "r", grown.rival.network, grafts=grown.rival.grafts)
    back = load_checkpoint(tmp_path / "r")
    assert back.network.grafts == grown.rival.network.grafts
    assert torch.equal(back.network(digit_batch), grown.rival.network(digit_batch))


def test_damaged_checkpoints_are_refused(trained_host: nn.Module, tmp_path: Path):
    path = tmp_path / "host.checkpoint"
    save_host(path, trained_host)
    data = path.read_bytes()
    members = unpack_members(data, where="", max_bytes=10**8)
    note = json.loads(members["checkpoint.json"])

    def refused(changed: dict[str, object] | bytes, message: str) -> None:
        if isinstance(changed, dict):
            body = json.dumps({**note, **changed}, sort_keys=True).encode()
            changed = pack_members({**members, "checkpoint.json": body})
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=message):
            load_checkpoint(path)

    refused(data[:-10], "not a whole container")
    refused(pack_members({"a": b""}), "not a checkpoint")
    refused({"host_hash": "0" * 64}, "the note says 000000000000")
    refused({"format": 3}, "format 3, this program reads 1 and 2")
    refused({"more": 1}, "the note is malformed")
    refused({"architecture": "vgg"}, "weights and note disagree")
    refused({"settings": {"classes": 3}}, "weights and note disagree")
    nowhere = {"name": "nowhere", "shape": [1, 2, 3], "layout": "image"}
    refused({"ports": [nowhere]}, "weights and note disagree")
    refused({"format": 1, "sites": {"nowhere": [1, 2, 3]}}, "weights and note disagree")
    refused({"settings": {"x": 1}}, "weights and note disagree")


def test_checkpoints_that_cannot_be_made_or_found(trained_host: nn.Module, tmp_path: Path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(StorageError):
        load_checkpoint(tmp_path)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with pytest.raises(InputError, match="has no architecture name"):
        save_network(tmp_path / "x", attach_seeds(plain, example=torch.zeros(1, 1, 5, 5)))


@pytest.mark.slow
def test_the_brief_is_met_on_a_full_training(parts: DigitSplits, captured: Samples, held_out_captured: Samples):
    """Host, graft and harmful graft at full length; the figures are of digits that nothing was trained on."""
    from kasmina_trainer.datasets.corruptions import blur

    host = train_host(parts.host, seed=0)
    clean, broken = parts.test.samples, (blur(parts.test.x), parts.test.y)
    assert accuracy(host, *clean) >= 0.97 and accuracy(host, *broken) <= 0.4
    options = {
        "train": parts.host.samples,
        "target": captured,
        "holdout_clean": parts.probes.samples,
        "holdout_target": held_out_captured,
        "rival": False,
        "seed": 0,
    }
    good = evolve(attach_seeds(host), **options)
    assert good.acceptance.accepted, good.acceptance.reasons
    assert accuracy(good.network, *broken) >= 0.88
    assert accuracy(good.network, *clean) >= accuracy(host, *clean) - 0.02
    bad = evolve(attach_seeds(host), **options, target_only=True)
    assert not bad.acceptance.accepted and accuracy(bad.network, *clean) < 0.9
