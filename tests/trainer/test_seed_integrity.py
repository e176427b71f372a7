"""The host under its grafts: no gradient leaks, changes are noticed at the step they happen, merges can be undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from worlds.hosts import make_batch, make_host

from kasmina_edge.errors import InputError
from kasmina_trainer.seeds import (
    GradientGuard,
    MergedHost,
    SeededNetwork,
    attach_seeds,
    freeze,
    hash_state,
    merge_graft,
)
from kasmina_trainer.seeds.integrity import outputs_equal, same_values

STEPS = 4


def grown() -> SeededNetwork:
    """A residual net with one graft that learns."""
    network = attach_seeds(make_host("residual"), ["layer1.0.add", "act1"], example=make_batch("residual"))
    network.graft("act1", "adapter")
    return network


def teach(network: SeededNetwork, *, meddle: Callable[[int], None] = lambda step: None, extra: object = None) -> None:
    """A few steps on random rows; ``meddle`` runs before each."""
    parameters = [*network.graft_parameters(), *([extra] if isinstance(extra, nn.Parameter) else [])]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    network.train()
    for step in range(1, STEPS + 1):
        meddle(step)
        optimizer.zero_grad()
        network(make_batch("residual", seed=step)).square().sum().backward()
        optimizer.step()
    network.eval()


def test_honest_training_passes_at_every_step():
    network = grown()
    with GradientGuard(network) as guard:
        teach(network)
    assert guard.steps == STEPS


def test_the_guard_goes_away_with_its_block():
    network = grown()
    with GradientGuard(network) as guard:
        pass
    teach(network)
    assert guard.steps == 0
    with pytest.raises(ZeroDivisionError), GradientGuard(network) as guard:
        raise ZeroDivisionError
    teach(network)
    assert guard.steps == 0


def test_a_host_parameter_in_the_optimiser_is_named_with_its_step():
    network = grown()
    weight = network.body.fc.weight

    def thaw(step: int) -> None:
        if step == 2:
            weight.requires_grad_(True)

    with pytest.raises(InputError, match=r"fc\.weight was written to by step 2"), GradientGuard(network):
        teach(network, meddle=thaw, extra=weight)


def test_a_gradient_alone_is_a_leak():
    network = grown()

    def thaw(step: int) -> None:
        if step == 3:
            network.body.layer1[0].conv1.weight.requires_grad_(True)

    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight has a gradient by step 3"), GradientGuard(network):
        teach(network, meddle=thaw)


def test_moving_statistics_are_seen_at_once():
    network = grown()

    def wake(step: int) -> None:
        if step == 2:
            network.body.bn1.train()

    with (
        pytest.raises(
            InputError, match=r"bn1\.(running_mean|running_var|num_batches_tracked) was written to by step 2"
        ),
        GradientGuard(network),
    ):
        teach(network, meddle=wake)


def test_what_hides_from_the_counters_is_found_by_the_digest():
    network = grown()

    def forge(step: int) -> None:
        if step == 2:
            network.body.fc.bias.data.add_(1.0)

    with (
        pytest.raises(InputError, match=r"the host changed under its grafts: state .* at birth"),
        GradientGuard(network),
    ):
        teach(network, meddle=forge)


def test_another_tensor_in_the_same_place_is_only_right_with_the_same_values():
    network = grown()
    with GradientGuard(network) as guard:
        network.body.bn1.running_mean = network.body.bn1.running_mean.clone()
        guard.look()
        network.body.bn1.running_mean = network.body.bn1.running_mean + 1
        with pytest.raises(InputError, match=r"bn1\.running_mean was replaced"):
            guard.look()
        network.body.bn1.running_mean = network.body.bn1.running_mean - 1
        network.body.bn1.running_mean.copy_(freeze(make_host("residual")).bn1.running_mean)  # type: ignore[union-attr, operator]
        network.body.bn1.running_mean = network.body.bn1.running_mean.clone()
        guard.look()


def test_every_tells_how_often_it_looks():
    network = grown()
    looks: list[int] = []

    class Counting(GradientGuard):
        def look(self) -> None:
            looks.append(self.steps)
            super().look()

    with Counting(network, every=2):
        teach(network)
    assert looks == [2, 4, 4]
    with Counting(network) as guard:
        guard("anything", step=1)
    assert guard.steps == 1
    with pytest.raises(InputError, match="every 1 or more steps, got 0"):
        GradientGuard(network, every=0)


def test_growth_on_the_way_is_none_of_the_guards_business():
    network = grown()
    with GradientGuard(network) as guard:
        network.graft("layer1.0.add", "adapter")
        teach(network)
        network.remove("act1")
    assert guard.steps == STEPS


def test_a_changed_host_is_not_even_started_on():
    network = grown()
    with torch.no_grad():
        network.body.fc.bias.add_(1.0)
    with pytest.raises(InputError, match="at birth"), GradientGuard(network):
        raise AssertionError("never entered")


def test_a_merge_is_undone_to_the_bit():
    parent, x = make_host("residual"), make_batch("residual")
    merged = freeze(parent)
    with torch.no_grad():
        merged.bn1.weight.mul_(1.5)  # type: ignore[union-attr, operator]
    host = MergedHost(parent, merged, x)
    assert not outputs_equal(host.merged, parent, x)
    assert host.merged_hash != host.parent_hash == hash_state(parent.state_dict())
    back = host.undo()
    assert outputs_equal(back, parent, x) and hash_state(back.state_dict()) == host.parent_hash
    with torch.no_grad():
        back.bn1.weight.mul_(2.0)  # type: ignore[union-attr, operator]
        parent.bn1.weight.mul_(2.0)  # type: ignore[union-attr, operator]
    assert hash_state(host.undo().state_dict()) == host.parent_hash, "neither the caller's parent nor copies reach it"
    with torch.no_grad():
        host._parent.bn1.weight.mul_(2.0)  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="the kept parent changed"):
        host.undo()


def test_a_parent_whose_answers_moved_without_its_state_is_noticed():
    class Biased(nn.Module):
        shift = 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.shift

    host = MergedHost(Biased(), Biased(), torch.ones(1, 2))
    host._parent.shift = 1.0  # type: ignore[assignment]
    with pytest.raises(InputError, match="answers the probe otherwise"):
        host.undo()


def test_values_are_compared_to_the_bit():
    one, nan = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    assert same_values(one, one.clone()) and same_values(nan, nan.clone())
    assert not same_values(one, torch.nextafter(one, one + 1)) and not same_values(one, nan)
    assert not same_values(one, one.double()) and not same_values(one, one[:1])
    assert same_values({"a": (one, [nan])}, {"a": (one, [nan])})
    assert not same_values({"a": one}, {"b": one}) and not same_values((one,), (one, one))


def test_comparing_leaves_modes_as_they_were():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[0].eval()
    assert outputs_equal(model, freeze(model), torch.ones(3, 2))
    assert model.training and model[1].training and not model[0].training


@pytest.mark.parametrize("site", ["conv1", "layer2.0.conv1", "layer2.0.downsample.0", "fc"])
def test_a_linear_branch_goes_into_its_layer_and_comes_out_again(site: str):
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, [site, "act1"], example=x)
    network.graft(site, "conv-lora", intensity=0.5)
    with torch.no_grad():
        for parameter in network.graft_parameters():
            parameter.add_(0.2)
        grown = network(x)
    merge = merge_graft(network, site, x)
    assert type(merge.host.merged) is type(host) and set(merge.host.merged.state_dict()) == set(host.state_dict())
    assert merge.host.merged_hash != merge.host.parent_hash == network.host_hash
    assert merge.graft.mergeable and merge.graft.site == site
    with torch.no_grad():
        torch.testing.assert_close(merge.host.merged(x), grown, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(grown, freeze(host)(x), atol=1e-3)
        assert torch.equal(network(x), grown), "the network that was merged from is as it was"
    assert outputs_equal(merge.host.undo(), freeze(host), x)
    bare = network.fresh(merge.host.merged, merged=(merge.graft,))
    assert bare.grafts == (merge.graft,) and bare.host_hash == merge.host.merged_hash


def test_what_cannot_be_merged_is_refused():
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, ["conv1", "layer1.0.add"], example=x)
    with pytest.raises(InputError, match="dormant: nothing to merge"):
        merge_graft(network, "conv1", x)
    network.graft("conv1", "adapter")
    with pytest.raises(InputError, match="adapter cannot be computed inside Conv2d"):
        merge_graft(network, "conv1", x)
    network.graft("layer1.0.add", "channel-affine")
    with pytest.raises(InputError, match="cannot be computed inside"):
        merge_graft(network, "layer1.0.add", x)


def test_a_merge_that_lies_is_caught(monkeypatch: pytest.MonkeyPatch):
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, ["conv1"], example=x)
    network.graft("conv1", "conv-lora")
    wrong = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    monkeypatch.setattr(type(network.growths["conv1"].blueprint), "merged", lambda *_: wrong)
    with pytest.raises(InputError, match=r"the merged host differs by .* on answers up to"):
        merge_graft(network, "conv1", x)
