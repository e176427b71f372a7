"""Channels in groups, and surgery: what is left computes what the whole would if nobody listened to the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from worlds.hosts import STOCK, make_batch, make_host

from kasmina_edge.errors import InputError
from kasmina_trainer.hosts import DigitsHost
from kasmina_trainer.pruning import Structure, channel_groups, following, read_structure, silenced, without


class Wired(nn.Module):
    """Whatever a function makes of some layers."""

    def __init__(self, flow: Callable[[nn.ModuleDict, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.flow = flow

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 8, 8) to whatever."""
        return self.flow(self.layers, x)


class Scaled(nn.Module):
    """A learned scale a channel, of two ranks, and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))
        self.offset = nn.Parameter(torch.rand(6, 1, 1))
        self.act = nn.PReLU(6)
        self.head = nn.Linear(6 * 36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 8, 8) to (N, 4)."""
        return self.head(self.act(self.conv(x) * self.scale + self.offset).view(x.size(0), -1))  # type: ignore[no-any-return]


def conv(a: int, b: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **options)


def squeeze(m: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    y = torch.relu(m["a"](x))
    weight = torch.sigmoid(m["up"](torch.relu(m["down"](y.mean((2, 3), keepdim=True)))))
    return m["head"]((y * weight).flatten(1))  # type: ignore[no-any-return]


def wired() -> dict[str, nn.Module]:
    """Every kind of coupling, with weights from the global generator."""
    linear, flat = nn.Linear(8 * 64, 4), nn.Linear(16, 4)
    return {
        "concat": Wired(
            lambda m, x: m["head"](torch.cat([m["a"](x), torch.relu(m["b"](x))], 1).mean((2, 3))),
            a=conv(3, 7), b=conv(3, 9), head=nn.Linear(16, 4),
        ),
        "squeeze": Wired(squeeze, a=conv(3, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), head=linear),
        "grouped": Wired(
            lambda m, x: m["head"](torch.relu(m["b"](torch.relu(m["a"](x)))).mean((2, 3))),
            a=conv(3, 12), b=conv(12, 16, groups=4), head=flat,
        ),
        "multiplied depthwise": Wired(
            lambda m, x: m["head"](m["b"](torch.relu(m["a"](x))).mean((2, 3))),
            a=conv(3, 8), b=conv(8, 16, groups=8), head=flat,
        ),
        "one layer twice": Wired(
            lambda m, x: m["head"](m["a"](torch.relu(m["a"](m["stem"](x)))).mean((2, 3))),
            stem=conv(3, 16), a=conv(16, 16), head=flat,
        ),
        "transposed": Wired(
            lambda m, x: m["head"](torch.relu(m["b"](torch.relu(m["a"](x)))).mean((2, 3))),
            a=conv(3, 10), b=nn.ConvTranspose2d(10, 16, 2, 2), head=flat,
        ),
        "padded and pooled": Wired(
            lambda m, x: m["head"](functional.max_pool2d(functional.pad(m["a"](x), (1, 1, 1, 1)), 2).amax((2, 3))),
            a=conv(3, 16), head=flat,
        ),
        "permuted": Wired(
            lambda m, x: m["head"](torch.relu(m["b"](m["a"](x).permute(0, 2, 3, 1)))).mean((1, 2)),
            a=conv(3, 10), b=nn.Linear(10, 16), head=flat,
        ),
        "scaled": Scaled(),
    }  # fmt: skip


TRACEABLE = [name for name, stock in STOCK.items() if stock.traceable]
CASES = [*wired(), *TRACEABLE, "digits"]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    if name in STOCK:
        return make_host(name), make_batch(name)
    x = torch.randn(4, *((1, 16, 16) if name == "digits" else (3, 8, 8)))
    module = DigitsHost() if name == "digits" else wired()[name]
    module.train()(x)  # statistics of its own
    return module.eval(), x


def some(structure: Structure, share: float, seed: int = 0) -> dict[str, list[int]]:
    """A random part of every group."""
    rng = np.random.default_rng(seed)
    return {
        g.name: sorted(rng.choice(len(g), min(len(g) - 1, max(1, int(share * len(g)))), replace=False).tolist())
        for g in structure.groups
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_what_is_left_computes_as_if_nobody_listened_to_the_rest(name: str, share: float) -> None:
    module, x = network(name)
    before = copy.deepcopy(module.state_dict())
    structure = read_structure(module, x)
    drop = some(structure, share)
    smaller, deaf = without(module, structure.groups, drop), silenced(module, structure.groups, drop)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), deaf(x), rtol=1e-4, atol=1e-5)
        if drop:
            assert not torch.allclose(smaller(x), module(x), atol=1e-6), "nothing of any worth was taken"
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    after = read_structure(smaller, x)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (smaller, module)]
    assert (sizes[0] < sizes[1]) == bool(drop)
    assert (after.macs < structure.macs) == bool(drop)
    for layer in smaller.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            assert tuple(layer.weight.shape[:2]) == (layer.out_channels, layer.in_channels)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.num_features == len(layer.running_mean)


def test_every_kind_of_coupling_was_tried() -> None:
    found = {name: len(read_structure(*network(name)).groups) for name in CASES}
    assert {name for name, groups in found.items() if not groups} == {"encoder"}, "PyTorch's own layers are opaque"
    assert found["residual"] == 4, "stem with first sum, one inside each block, second sum"
    assert found["digits"] == 5
    assert found["concat"] == 2


def test_a_wrong_tie_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without ties at products the surgery is wrong by a place, and the comparison sees it."""
    module, x = network("squeeze")
    monkeypatch.setattr(following, "_BINARY", frozenset())
    monkeypatch.setattr(following, "_POINTWISE", following._POINTWISE | {"mul"})
    follower = following._Follower._of_function

    def careless(self: object, node: torch.fx.Node, name: str, value: torch.Tensor) -> object:
        return self._flow_of(node.args[0]) if name == "mul" else follower(self, node, name, value)  # type: ignore[arg-type, attr-defined]

    monkeypatch.setattr(following._Follower, "_of_function", careless)
    structure = read_structure(module, x)
    drop = some(structure, 0.5)
    with torch.no_grad():
        smaller = without(module, structure.groups, drop)(x)
        assert not torch.allclose(smaller, silenced(module, structure.groups, drop)(x), atol=1e-4)


@pytest.mark.parametrize(
    "flow",
    [
        lambda m, x: m["head"](torch.softmax(m["a"](x), 1).mean((2, 3))),
        lambda m, x: m["head"](m["a"](x).view(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8).mean((2, 3))),
        lambda m, x: m["head"](functional.layer_norm(m["a"](x), (16, 8, 8)).mean((2, 3))),
        lambda m, x: m["head"](m["a"](x).flip(1).mean((2, 3))),
        lambda m, x: m["head"](torch.cat(m["a"](x).chunk(2, 1)[::-1], 1).mean((2, 3))),
        lambda m, x: m["head"](m["a"](x).reshape(-1, 16, 64).mean(2)),
        lambda m, x: m["head"](m["a"](x).mean((2, 3)) + m["a"](x).mean((1, 2, 3), keepdim=True).flatten(1)),
    ],
)
def test_an_operation_that_mixes_channels_or_counts_them_protects_them(
    flow: Callable[[nn.ModuleDict, torch.Tensor], torch.Tensor],
) -> None:
    torch.manual_seed(0)
    module = Wired(flow, a=conv(3, 16), head=nn.Linear(16, 4)).eval()
    assert channel_groups(module, torch.randn(4, 3, 8, 8)) == ()


def test_inputs_and_answers_are_in_no_group() -> None:
    module, x = network("plain-cnn")
    slots = {(tensor, axis) for group in channel_groups(module, x) for tensor, axis in group.places}
    assert ("conv1.weight", 1) not in slots and ("fc2.weight", 0) not in slots
    assert ("conv1.weight", 0) in slots and ("fc2.weight", 1) in slots
    flat = next(group for group in channel_groups(module, x) if ("fc1.weight", 1) in group.places)
    assert flat.places["fc1.weight", 1] == 9, "a flattened channel is one number a pixel"


def test_a_network_that_cannot_be_traced_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"Branching cannot be traced.*") as caught:
        channel_groups(make_host("branching"), make_batch("branching"))
    assert "Magnitude" in caught.value.next_step


def test_bad_choices_are_refused() -> None:
    module, x = network("digits")
    groups = channel_groups(module, x)
    with pytest.raises(InputError, match="no group of channels is called 'nowhere'; there are stem"):
        without(module, groups, {"nowhere": [0]})
    with pytest.raises(InputError, match="group stem: channel 16 of 16"):
        without(module, groups, {"stem": [16]})
    with pytest.raises(InputError, match="all 16 channels would go"):
        without(module, groups, {"stem": range(16)})


def test_the_work_counted_here_is_that_of_the_exported_file() -> None:
    from kasmina_edge.hardware_simulator import read_workload
    from kasmina_trainer.export.tflite import export_float_tflite

    module, x = network("digits")
    structure = read_structure(module, x)
    smaller = without(module, structure.groups, some(structure, 0.4))
    data = export_float_tflite(smaller, (1, 16, 16, 1))
    counted = read_workload(data).macs
    assert counted == read_structure(smaller, x).macs < structure.macs
    assert len(data) < 0.7 * 4 * sum(p.numel() for p in module.parameters())


def test_a_network_whose_trace_computes_something_else_is_refused() -> None:
    """torch.fx takes the class's forward; one that was put on the instance would be lost."""
    module, x = network("plain-cnn")
    plain = module.forward
    module.forward = lambda x: plain(x) + 1  # type: ignore[method-assign]
    with pytest.raises(InputError, match="PlainCnn computes something else than its traced graph"):
        channel_groups(module, x)
