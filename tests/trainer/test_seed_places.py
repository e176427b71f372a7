"""Seed sites in networks that are not ours: what is offered, how it is placed, and that it all comes out again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from worlds.hosts import STOCK, Branching, ResidualNet, make_batch, make_host

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Layout
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, choose_ports, find_ports, freeze, hash_state
from kasmina_trainer.seeds.site import SeedSite


def stir(network: SeededNetwork, site: str | None = None) -> None:
    """Give grafts weights that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.graft_parameters(site):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def answers(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """In evaluation mode, as `attach_seeds` compares them."""
    with torch.no_grad():
        value: torch.Tensor = network(x)
    return value


@pytest.mark.parametrize("name", STOCK)
def test_auto_finds_places_and_changes_nothing(name: str):
    host, x = make_host(name), make_batch(name)
    before = hash_state(host.state_dict())
    network = attach_seeds(host, example=x)
    assert network.sites == STOCK[name].sites
    assert torch.equal(answers(network, x), answers(freeze(host), x))
    assert torch.equal(answers(network, x[:1]), answers(freeze(host), x[:1]))
    assert network.host_hash == before == hash_state(host.state_dict())
    assert type(network.host_copy()) is type(host)
    assert "forward" not in vars(network.host_copy()) and "forward" not in vars(host)


@pytest.mark.parametrize("name", STOCK)
def test_everything_that_is_offered_can_be_grown_and_removed(name: str):
    host, x = make_host(name), make_batch(name)
    ports = find_ports(host, x)
    network = attach_seeds(host, [port.name for port in ports], example=x)
    assert network.sites == tuple(port.name for port in ports)
    expected = answers(network, x)
    for port in ports:
        network.graft(port.name, "adapter", seed=1)
        assert torch.equal(answers(network, x), expected), port.name
        stir(network, port.name)
        assert not torch.equal(answers(network, x), expected), port.name
        network.remove(port.name)
        assert torch.equal(answers(network, x), expected), port.name
    network.check_host()
    assert network.graft_state() == {}


@pytest.mark.parametrize("name", STOCK)
def test_sites_survive_copies_and_pickles(name: str):
    host, x = make_host(name), make_batch(name)
    network = attach_seeds(host, example=x)
    bare = answers(network, x)
    network.graft(network.sites[0], "adapter")
    stir(network)
    grown = answers(network, x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(answers(twin, x), grown)
        twin.remove(twin.sites[0])
        assert torch.equal(answers(twin, x), bare)
        assert torch.equal(answers(network, x), grown), "a copy shares nothing"
    fresh = network.fresh()
    assert fresh.ports == network.ports and fresh.grafts == () and torch.equal(answers(fresh, x), bare)


@pytest.mark.parametrize("name", [name for name in STOCK if name != "encoder"])
def test_what_is_exported_holds_the_graft(name: str):
    host, x = make_host(name), make_batch(name)
    network = attach_seeds(host, example=x)
    first = network.sites[0]
    assert network.module_for_export().kasmina_gates == ()
    network.graft(first, "adapter", intensity=0.5)
    stir(network)
    module = network.module_for_export()
    assert module.kasmina_gates == (f"{first}.gate",)
    assert float(dict(module.named_buffers())[f"{first}.gate"].flatten()[0]) == 0.5
    assert all(isinstance(module.get_submodule(site), nn.Module) for site in network.sites)
    assert isinstance(module.get_submodule(first), SeedSite)
    assert not any(isinstance(module.get_submodule(site), SeedSite) for site in network.sites[1:])
    assert torch.equal(answers(module, x), answers(network, x))
    assert not torch.equal(answers(module, x), answers(host, x))
    if STOCK[name].traceable:
        program = torch.export.export(module, (x,))
        torch.testing.assert_close(answers(program.module(), x), answers(network, x))
        torch.testing.assert_close(answers(fold_norms(module), x), answers(network, x), rtol=1e-4, atol=1e-5)


def test_a_bare_rewritten_host_exports_with_its_sites_named():
    host, x = make_host("plain-cnn"), make_batch("plain-cnn")
    module = attach_seeds(host, example=x).module_for_export()
    assert [type(module.get_submodule(site)) for site in STOCK["plain-cnn"].sites] == [nn.Identity] * 3
    assert torch.equal(answers(module, x), answers(host, x))


def test_ports_say_what_a_blueprint_needs_to_know():
    ports = {port.name: port for port in find_ports(make_host("residual"), make_batch("residual"))}
    stem, down = ports["conv1"], ports["layer2.0.downsample.0"]
    assert stem.layer is not None and (stem.layer.kind, stem.layer.kernel, stem.layer.padding) == (
        "conv2d",
        (3, 3),
        (1, 1),
    )
    assert stem.input_shape == (3, 12, 12) and stem.shape == (8, 12, 12)
    assert down.layer is not None and down.layer.stride == (2, 2) and down.input_shape == (8, 12, 12)
    assert ports["bn1"].layer is None and ports["bn1"].input_shape is None
    assert [p.what for p in ports.values() if p.name.startswith("layer1.0.")] == [
        "layer", "norm", "activation", "layer", "norm", "addition", "activation",
    ]  # fmt: skip


def test_layouts_follow_the_layers():
    tokens = {p.name: p.layout for p in find_ports(make_host("small-vit"), make_batch("small-vit"))}
    assert tokens["input"] is Layout.IMAGE and tokens["patches"] is Layout.IMAGE and tokens["head"] is Layout.VECTOR
    assert tokens["blocks.0.add"] is Layout.TOKENS and tokens["blocks.1.gelu"] is Layout.TOKENS
    series = {p.name: p.layout for p in find_ports(make_host("ecg"), make_batch("ecg"))}
    assert {series["input"], series["stem.2"]} == {Layout.SERIES}


def test_choosing_takes_one_of_each_shape_and_no_more_than_asked():
    ports = find_ports(make_host("plain-cnn"), make_batch("plain-cnn"))
    assert [p.name for p in choose_ports(ports, most=2)] == ["relu", "relu_2"]


class _Squeezed(nn.Module):
    def __init__(self, *, wide: bool) -> None:
        super().__init__()
        self.wide = wide
        self.conv = nn.Conv2d(3, 8, 3)
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head((torch.relu(x) if self.wide else x).mean((2, 3)))


def test_choosing_leaves_the_inside_of_a_squeeze_alone_where_it_can():
    x = torch.randn(2, 3, 8, 8)
    assert attach_seeds(_Squeezed(wide=True), example=x).sites == ("relu_2",)
    assert attach_seeds(_Squeezed(wide=False), example=x).sites == ("relu", "sigmoid")


def test_choosing_falls_back_to_additions_and_then_to_layers():
    linear = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    assert attach_seeds(linear, example=torch.randn(2, 3, 8, 8)).sites == ("0",)
    tokens = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    assert attach_seeds(tokens, example=torch.randn(2, 7, 5)).sites == ("1",)
    with pytest.raises(InputError, match="no seed site found in Flatten"):
        attach_seeds(nn.Flatten(), example=torch.randn(2, 7, 5))


class _ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 4)
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1))))
        return (self.conv(x) * 0 if False else y.permute(0, 3, 1, 2)).mean((2, 3))


def test_maps_with_the_channels_last_are_no_places():
    names = [port.name for port in find_ports(_ChannelsLast(), torch.randn(2, 3, 6, 6))]
    assert names == ["input", "conv"]
    with pytest.raises(InputError, match="with the channels last"):
        attach_seeds(_ChannelsLast(), ["mix"], example=torch.randn(2, 3, 6, 6))


def test_groups_of_modules_can_be_sites_beside_values_inside_others():
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, ["layer2", "layer1.0.add", "layer1.0.conv2"], example=x)
    assert network.sites == ("layer1.0.conv2", "layer1.0.add", "layer2")
    expected = answers(network, x)
    for site in network.sites:
        network.graft(site, "adapter")
    stir(network)
    assert not torch.equal(answers(network, x), expected)
    assert torch.equal(answers(network.host_copy(), x), expected)
    assert network.host_hash == hash_state(host.state_dict()) == hash_state(network.host_copy().state_dict())


def test_one_site_may_stand_inside_another():
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, ["layer1", "layer1.0.conv1"], example=x)
    expected = answers(network, x)
    for site in network.sites:
        network.graft(site, "adapter")
    stir(network)
    assert network.current_host_hash() == hash_state(host.state_dict())
    network.remove("layer1")
    assert not torch.equal(answers(network, x), expected)
    assert torch.equal(answers(network.host_copy(), x), expected)


def test_a_parallel_branch_reads_what_enters_the_layer():
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, ["layer2.0.conv1"], example=x)
    network.graft("layer2.0.conv1", "conv-lora")
    stir(network)
    site = network.site("layer2.0.conv1")
    entered: list[torch.Tensor] = []
    site.inner.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    left: list[torch.Tensor] = []
    site.register_forward_hook(lambda *parts: left.append(parts[2]))
    answers(network, x)
    assert site.branch is not None
    torch.testing.assert_close(left[0], site.inner(entered[0]) + site.branch(entered[0]))


def test_a_second_value_reaches_the_site_that_reads_it():
    host, x = make_host("small-vit"), make_batch("small-vit")
    network = attach_seeds(host, ["blocks.1.add"], example=x, contexts={"blocks.1.add": "blocks.0.add"})
    expected = answers(network, x)
    assert torch.equal(expected, answers(freeze(host), x))
    assert network.ports["blocks.1.add"].context == (9, 16)
    network.graft("blocks.1.add", "cross-attention")
    assert torch.equal(answers(network, x), expected)
    stir(network)
    assert not torch.equal(answers(network, x), expected)
    twin = pickle.loads(pickle.dumps(network))
    assert torch.equal(answers(twin, x), answers(network, x))
    assert torch.equal(answers(network.module_for_export(), x), answers(network, x))
    with pytest.raises(InputError, match="later than the site"):
        attach_seeds(host, ["blocks.0.add"], example=x, contexts={"blocks.0.add": "blocks.1.add"})


class _Looks(nn.Module):
    """Reads its layer's weight, and calls the layer by a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.__dict__["hidden"] = self.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 1e9:  # no tracer gets past this
            return x.mean((2, 3))
        y = self.conv(x) * self.conv.weight.mean()
        return self.hidden(y).mean((2, 3))  # type: ignore[no-any-return, operator]


def test_a_module_that_is_not_called_by_its_path_gets_a_hook_and_is_not_exported():
    host, x = _Looks().eval(), torch.randn(2, 3, 5, 5)
    network = attach_seeds(host, ["conv", "act"], example=x)
    assert {network.site(name).kind for name in network.sites} == {"hooked"}
    expected = answers(network, x)
    assert torch.equal(expected, answers(host, x))
    network.graft("act", "adapter")
    stir(network)
    grown = answers(network, x)
    assert not torch.equal(grown, expected)
    assert torch.equal(answers(copy.deepcopy(network), x), grown)
    with pytest.raises(InputError, match="held by a hook"):
        network.module_for_export()
    network.remove("act")
    assert torch.equal(answers(network, x), expected)
    assert torch.equal(answers(network.module_for_export(), x), expected)
    assert not network.host_copy()._modules["act"]._forward_hooks


def test_a_site_shows_the_attributes_of_what_it_holds():
    network = attach_seeds(make_host("residual"), ["conv1"], example=make_batch("residual"))
    network.graft("conv1", "adapter")
    assert isinstance(network.body.conv1, SeedSite) and network.body.conv1.weight.shape == (8, 3, 3, 3)
    with pytest.raises(AttributeError):
        _ = network.body.conv1.nothing


@pytest.mark.parametrize(
    ("sites", "message", "hint"),
    [
        (["layer1.0.ad"], "is not a module of ResidualNet, nor a value", "layer1.0.add"),
        (["conv2"], "is not a module of ResidualNet, nor a value", "conv1"),
        (["layer2.0.drop"], "is not a module", "layer2.0"),
    ],
)
def test_unknown_names_get_the_nearest_ones(sites: list[str], message: str, hint: str):
    with pytest.raises(InputError, match=message) as caught:
        attach_seeds(make_host("residual"), sites, example=make_batch("residual"))
    assert hint in caught.value.next_step


class _Pair(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.odd = _Odd(kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.odd(self.conv(x))
        return self.conv(x).mean((2, 3))


class _Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> object:
        return {"pair": (x, x), "int": x.argmax(1), "deep": x[..., None], "complex": torch.complex(x, x)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pair", "got a tuple"),
        ("int", "got int64"),
        ("deep", r"got the shape \(2, 4, 4, 4, 1\)"),
        ("complex", "got complex64"),
    ],
)
def test_values_that_no_branch_could_be_added_to_are_refused(kind: str, message: str):
    with pytest.raises(InputError, match=message):
        attach_seeds(_Pair(kind), ["odd"], example=torch.randn(2, 3, 6, 6))
    with pytest.raises(InputError, match="got 2"):
        attach_seeds(_Pair(kind), ["conv"], example=torch.randn(2, 3, 6, 6))


class _Counting(nn.Module):
    """Answers otherwise every time: nothing can be proven of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x)).mean((2, 3)) + torch.rand(1)


def test_a_host_that_does_not_repeat_itself_is_refused():
    with pytest.raises(InputError, match="answers otherwise with sites"):
        attach_seeds(_Counting(), ["act"], example=torch.randn(2, 3, 6, 6))


def test_training_leaves_foreign_hosts_alone():
    host, x = ResidualNet(), make_batch("residual")
    network = attach_seeds(host, ["layer1.0.add", "act1"], example=x)
    for site in network.sites:
        network.graft(site, "depthwise")
    network.train()
    optimizer = torch.optim.SGD(network.graft_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.graft_parameters())
    network.check_host()
    assert all(p.grad is None for _, p in network.host_tensors())


def test_a_network_that_no_tracer_follows_offers_its_modules_alone():
    with pytest.raises(InputError, match="nor a value in its flow"):
        attach_seeds(Branching(), ["relu"], example=make_batch("branching"))


@pytest.mark.parametrize("name", STOCK)
def test_a_bare_site_is_out_of_the_flow_until_it_is_watched(name: str):
    host, x = make_host(name), make_batch(name)
    network = attach_seeds(host, example=x)
    seen: list[str] = []
    for site in network.sites:
        network.site(site).register_forward_hook(lambda *_, site=site: seen.append(site))

    def plain() -> bool:
        return "forward" not in vars(network.body) and sum(isinstance(m, SeedSite) for m in called(network.body)) == 0

    def called(body: nn.Module) -> list[nn.Module]:
        ran: list[nn.Module] = []
        hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in body.modules()]
        answers(network, x)
        for hook in hooks:
            hook.remove()
        return ran

    assert plain() and seen == []
    with network.watched(), network.watched(network.sites[:1]):
        answers(network, x)
        assert seen == list(network.sites)
    assert plain() and seen == list(network.sites)
    network.graft(network.sites[0], "adapter")
    seen.clear()
    answers(network, x)
    assert network.sites[0] in seen
    network.remove(network.sites[0])
    assert plain()


def test_a_blueprint_that_does_not_fit_a_place_is_refused_with_those_that_do():
    network = attach_seeds(make_host("mlp"), example=make_batch("mlp"))
    with pytest.raises(InputError, match=r"depthwise: site act: expected a site of shape .*, got \(24,\)") as caught:
        network.graft("act", "depthwise")
    assert "adapter" in caught.value.next_step and network.grafts == () and network.lifecycle.history == ()


class Encoded(nn.Module):
    """Torch's own encoder, whose fused path reads weights and calls no module."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.enc(x).mean(1) if x.sum() != 0 else x.mean(1))  # no trace can follow it
        return y


@pytest.mark.filterwarnings("ignore:.*nested tensor.*:UserWarning")
def test_nothing_inside_a_layer_that_runs_fused_is_a_place():
    host, x = Encoded().eval(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    names = [port.name for port in find_ports(host, x)]
    assert "enc.layers.0" in names and not [name for name in names if name.startswith("enc.layers.0.")]
    for inside, owner in (("linear1", "enc.layers.0"), ("norm2", "enc.layers.0"), ("self_attn", "enc.layers.0")):
        with pytest.raises(InputError, match=rf"site {owner}.{inside} is inside {owner}, a TransformerEncoderLayer"):
            attach_seeds(host, [f"{owner}.{inside}"], example=x)
    network = attach_seeds(host, ["enc.layers.0"], example=x)
    expected = answers(network, x)
    network.graft("enc.layers.0", "adapter")
    stir(network)
    assert not torch.equal(answers(network, x), expected), "the layer as a whole has an effect"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_hosts_of_another_precision_are_refused_by_name(dtype: str):
    with pytest.raises(InputError, match=f"is {dtype}: expected float32"):
        attach_seeds(make_host("residual").to(getattr(torch, dtype)), example=make_batch("residual"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_is_no_example_host_intensity_or_seed_is_refused_in_one_error():
    host, x = make_host("residual"), make_batch("residual")
    for example, got in (({"x": x}, "a dict"), ([x], "a list"), ((), "an empty tuple"), ((x, 1), "a int")):
        with pytest.raises(InputError, match=f"expected a tensor or a tuple of tensors, got {got}"):
            attach_seeds(host, example=example)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is TorchScript"):
        attach_seeds(torch.jit.trace(host.eval(), x), example=x)
    network = attach_seeds(host, example=x)
    site = network.sites[0]
    for settings, words in (
        ({"intensity": "0.5"}, "intensity '0.5': expected 0 to 1"),
        ({"intensity": None}, "intensity None: expected 0 to 1"),
        ({"intensity": float("nan")}, "intensity nan: expected 0 to 1"),
        ({"seed": 2**64}, f"seed {2**64}: expected a whole number of at most 64 bits"),
        ({"seed": 0.5}, "seed 0.5: expected a whole number"),
    ):
        with pytest.raises(InputError, match=words):
            network.graft(site, "adapter", **settings)  # type: ignore[arg-type]
        assert network.states[site] == "dormant" and not network.growths
    network.graft(site, "adapter", seed=2**64 - 1, intensity=1)


@pytest.mark.parametrize("name", ["input", "relu"])
def test_a_host_that_torch_fx_made_keeps_what_grew_behind_a_value_when_it_is_copied(name: str):
    """A copy of a GraphModule is made from its graph, which knows no such site."""

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, 1, 1), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
            return y

    traced = torch.fx.symbolic_trace(Flow().eval())
    x = torch.randn(2, 1, 8, 8)
    network = attach_seeds(traced, [name], example=x)
    network.graft(name, "depthwise")
    with torch.no_grad():
        for parameter in network.graft_parameters():
            parameter += 0.1
    grown = network(x)
    assert not torch.equal(grown, traced(x)), "the control: the graft does something"
    assert torch.equal(network.module_for_export()(x), grown)
    assert torch.equal(copy.deepcopy(network)(x), grown)
    assert torch.equal(network.host_copy()(x), traced(x)), "and comes off"
    assert hash_state(network.host_copy().state_dict()) == hash_state(traced.state_dict())
    with pytest.raises(TypeError, match="save it with save_network"):
        pickle.dumps(network)
    network.remove(name)
    assert torch.equal(network(x), traced(x))
