"""Gradual pruning with recovery: the share goes, the answers stay near, and the same call gives the same bytes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn
from worlds.hosts import make_batch, make_host

from kasmina_edge.errors import InputError
from kasmina_trainer.cli import main
from kasmina_trainer.datasets.digits import DigitSplits
from kasmina_trainer.pruning import Amount, Recovery, read_structure, recover, shrink, shrinking, take_channels
from kasmina_trainer.pruning.recovery import moved
from kasmina_trainer.quantization.qat import divergence

QUICK = Recovery(steps=30, batch=32, shift=1)


@pytest.fixture(scope="module")
def frames(parts: DigitSplits) -> torch.Tensor:
    return torch.from_numpy(parts.host.x[:256].copy())


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def apart(network: nn.Module, whole: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(divergence(network(x), whole(x)))


def test_the_share_goes_and_what_is_left_recovers(trained_host: nn.Module, parts: DigitSplits) -> None:
    frames, fresh = torch.from_numpy(parts.host.x[:256].copy()), torch.from_numpy(parts.camera.x.copy())
    before, generator = state(trained_host), torch.random.get_rng_state()
    raw = shrink(trained_host, Amount(0.5, step=4), frames, recovery=Recovery(steps=0))
    made = shrink(trained_host, Amount(0.5, step=4), frames, recovery=QUICK)
    assert made.macs[0] == read_structure(trained_host, frames).macs
    assert made.macs[1] == read_structure(made.network, frames).macs <= 0.5 * made.macs[0]
    assert apart(made.network, trained_host, fresh) < 0.5 * apart(raw.network, trained_host, fresh)
    assert all(len(group) % 4 == 0 for group in read_structure(made.network, frames).groups)
    assert not made.network.training
    assert all(torch.equal(before[name], value) for name, value in trained_host.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_equal_calls_give_equal_bytes(trained_host: nn.Module, frames: torch.Tensor) -> None:
    few = replace(QUICK, steps=6)
    one, two, other = (
        shrink(trained_host, Amount(0.3), frames, recovery=few, rounds=2, seed=seed).network for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.state_dict()["head.bias"], other.state_dict()["head.bias"])


def test_take_channels_is_what_optimize_prunes_with(
    trained_host: nn.Module, parts: DigitSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "Recovery", lambda: QUICK)
    frozen = copy.deepcopy(trained_host).requires_grad_(False)
    smaller = take_channels(frozen, 0.25, parts.host.nhwc()[:128])
    whole, left = (read_structure(net, torch.zeros(1, 1, 16, 16)) for net in (frozen, smaller))
    assert left.channels <= 0.75 * whole.channels
    assert not any(p.requires_grad for p in smaller.parameters())
    with torch.no_grad():
        assert smaller(torch.zeros(3, 1, 16, 16)).shape == (3, 10)


def test_a_network_from_a_file_can_be_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kasmina_trainer.export.source import load_source

    monkeypatch.setattr(shrinking, "Recovery", lambda: replace(QUICK, steps=4, shift=0))
    x = make_batch("residual", rows=16)
    batch = torch.export.Dim("batch")
    program = torch.export.export(make_host("residual"), (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    try:
        module = load_source(tmp_path / "net.pt2").module
    except InputError:  # open batches are not read
        torch.export.save(torch.export.export(make_host("residual"), (x[:1],)), tmp_path / "net.pt2")
        module = load_source(tmp_path / "net.pt2").module
    assert isinstance(module, fx.GraphModule) and not getattr(module, "fixed_batch", False)
    smaller = take_channels(module, 0.3, np.moveaxis(x.numpy(), 1, -1))
    assert read_structure(smaller, x).channels <= 0.7 * read_structure(module, x).channels


def test_the_verb_offers_pruned_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = make_batch("residual", rows=300)
    torch.export.save(torch.export.export(make_host("residual"), (x[:1],)), tmp_path / "net.pt2")
    np.savez(tmp_path / "x.npz", x=np.moveaxis(x.numpy(), 1, -1), y=np.arange(300) % 4)
    call = ["optimize", str(tmp_path / "net.pt2"), "--profile", "x86-cpu", "--data", str(tmp_path / "x.npz")]
    assert main([*call, "--max-loss", "1", "--dry-run", "--json"]) == 0
    plan = {each["recipe"]["name"]: each for each in json.loads(capsys.readouterr().out)["plan"]}
    assert plan["pruned 25%"]["recipe"]["prune"] == 0.25 and plan["pruned 50%"]["only_if"]


@pytest.mark.slow
def test_a_pruned_recipe_makes_a_smaller_file_and_the_same_one_again(
    trained_host: nn.Module, parts: DigitSplits
) -> None:
    from kasmina_edge.hardware_simulator import read_workload
    from kasmina_trainer.optimize.building import Builder, Task
    from kasmina_trainer.optimize.recipes import Recipe
    from kasmina_trainer.quantization import QuantizeConfig

    module = copy.deepcopy(trained_host).requires_grad_(False)
    sets = [(part.nhwc(), part.y) for part in (parts.host, parts.check, parts.probes)]
    builder = Builder(Task(module, *sets[0], *sets[1], *sets[2]), prune=take_channels)
    whole, less, again = (
        builder.build(Recipe(name="x", quantize=QuantizeConfig(headroom=0), prune=share)) for share in (None, 0.5, 0.5)
    )
    assert read_workload(less.data).macs < 0.5 * read_workload(whole.data).macs
    assert len(less.data) < 0.6 * len(whole.data) and less.data == again.data
    assert sum(less.right) > 0.9 * sum(whole.right)


def test_refusals(trained_host: nn.Module, frames: torch.Tensor) -> None:
    with pytest.raises(InputError, match="0 rounds"):
        shrink(trained_host, Amount(0.3), frames, rounds=0)
    with pytest.raises(InputError, match="every group keeps 60%"):
        shrink(trained_host, Amount(0.9, least=0.6), frames, recovery=Recovery(steps=0))
    with pytest.raises(InputError, match="256 frames and 3 labels"):
        recover(trained_host, trained_host, frames, torch.zeros(3, dtype=torch.int64), settings=QUICK)
    with pytest.raises(InputError, match="0 frames and no labels"):
        recover(trained_host, trained_host, frames[:0], settings=QUICK)
    single = make_host("plain-cnn")
    vars(single)["fixed_batch"] = True
    with pytest.raises(InputError, match="a batch of one"):
        take_channels(single, 0.3, np.zeros((4, 12, 12, 3), np.float32))


def test_recovery_holds_what_it_is_told_to_and_leaves_modes_alone(frames: torch.Tensor) -> None:
    net, teacher = make_host("residual"), make_host("residual", seed=1)
    x = make_batch("residual", rows=12)
    net.get_parameter("fc.bias").requires_grad_(False)
    frozen = net.get_parameter("conv1.weight").clone()
    modes = [m.training for m in net.modules()]
    steps: list[int] = []

    def hold() -> None:
        steps.append(1)
        with torch.no_grad():
            net.get_parameter("conv1.weight").copy_(frozen)

    run = recover(net, teacher, x, settings=Recovery(steps=20, batch=6), hold=hold)
    assert run.steps == len(steps) == 20 and run.last_loss < run.first_loss
    assert torch.equal(net.get_parameter("conv1.weight"), frozen)
    assert [m.training for m in net.modules()] == modes
    assert not net.get_parameter("fc.bias").requires_grad and all(p.grad is None for p in net.parameters())


def test_labels_pull_where_the_teacher_is_wrong() -> None:
    x = make_batch("mlp", rows=64)
    y = (x[:, 0] > 0).long()
    found: dict[float, float] = {}
    for share in (0.0, 0.9):
        net, teacher = make_host("mlp"), make_host("mlp")
        recover(net, teacher, x, y, settings=Recovery(steps=60, labels=share, mix=0.0, learning_rate=1e-2))
        with torch.no_grad():
            found[share] = float((net(x).argmax(1) == y).float().mean())
    assert found[0.9] > found[0.0] + 0.1, found


@pytest.mark.parametrize("shape", [(5, 2, 6, 7), (5, 2, 9), (5, 2, 1, 9), (5, 4)])
def test_moves_are_whole_places_with_zeros_behind(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) + 1
    assert torch.equal(moved(x, 0, torch.Generator()), x)
    out = moved(x, 2, torch.Generator().manual_seed(1))
    assert out.shape == x.shape
    if len(shape) == 2:
        assert torch.equal(out, x)
        return
    for before, after in zip(x, out, strict=True):
        places: list[Any] = [range(-2, 3) if n > 1 else (0,) for n in shape[2:]]
        matches = 0
        for index in np.ndindex(*[len(p) for p in places]):
            step = [p[i] for p, i in zip(places, index, strict=True)]
            rolled = torch.roll(before, step, dims=tuple(range(1, before.ndim)))
            inside = after != 0
            matches += bool(torch.equal(after[inside], rolled[inside]) and inside.any())
        assert matches >= 1
