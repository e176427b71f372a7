"""Seeds inside seeds: zero at birth, children that come and go without a trace, budgets that hold on every level."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.safety.audit import AuditLog, tail
from kasmina_trainer.blueprints import Layout, Port, count_cost, find_blueprint
from kasmina_trainer.blueprints.conformance import SAMPLE_PORTS, broken_promises, perturb
from kasmina_trainer.nesting import MAX_DEPTH, Budget, ChildConfig, NestedBranch, NestedSeedConfig, Nursery
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.seeds.lifecycle import SiteState, Step, audit_steps

PORT = Port.of((6, 8, 8), "s1")
KIND = find_blueprint("nested-seed")


def nest(port: Port = PORT, *, seed: int = 0, **plain: Any) -> NestedBranch:
    """A nested seed; without children unless they are given."""
    config = KIND.Config.parse({"children": (), **plain})
    branch = KIND.build(port, seed=seed, config=config)  # type: ignore[attr-defined]
    assert isinstance(branch, NestedBranch)
    return branch


def frames(seed: int = 0, count: int = 4, port: Port = PORT) -> torch.Tensor:
    return torch.randn(count, *port.shape, generator=torch.Generator().manual_seed(seed))


def nested(*children: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A child that is a nested seed."""
    return {"name": "edge", "blueprint": "nested-seed", "settings": {"children": children, **more}}


DEEP = {"children": [{"name": "a", "blueprint": "se"}, nested({"name": "left", "blueprint": "adapter"}, nested(
    {"name": "x", "blueprint": "depthwise"}))]}  # fmt: skip


@pytest.mark.parametrize("place", sorted(SAMPLE_PORTS))
def test_a_tree_of_three_levels_keeps_every_promise_of_a_blueprint(place: str) -> None:
    leaf = {"name": "x", "blueprint": "adapter"}
    config = KIND.Config.parse({"children": [leaf, nested(leaf, nested(leaf))]})
    assert broken_promises(KIND, SAMPLE_PORTS[place], config) == {}  # type: ignore[arg-type]


def test_the_walk_names_places_by_their_path() -> None:
    branch = nest(**DEEP)
    assert [place for place, _ in branch.walk()] == [
        "s1/a",
        "s1/edge",
        "s1/edge/left",
        "s1/edge/edge",
        "s1/edge/edge/x",
    ]
    assert branch.child("edge/edge/x").plan.blueprint == "depthwise"
    assert [seed.depth for _, seed in branch.nests()] == [0, 1, 2]
    with pytest.raises(InputError, match="seed s1: no child is called 'b'; children are a, edge"):
        branch.child("b")
    with pytest.raises(InputError, match="s1/a is a se: it has no children"):
        branch.nest("a")


def test_a_fourth_level_is_refused_in_settings_and_when_it_is_spawned() -> None:
    leaf = {"name": "x", "blueprint": "adapter"}
    four = {"children": [nested(nested(nested(leaf)))]}
    assert KIND.refusal(PORT, KIND.Config.parse(four)) == "it would reach level 4 of children, at most 3"
    branch = nest(**DEEP)
    deepest = branch.nest("edge/edge")
    assert deepest.depth + 1 == MAX_DEPTH
    deepest.spawn("y", "adapter")
    with pytest.raises(InputError, match="child below: it would reach level 4 of children, at most 3"):
        deepest.spawn("below", "nested-seed")


def test_a_child_that_comes_changes_nothing_and_one_that_goes_leaves_no_trace() -> None:
    branch = nest(children=[{"name": "a", "blueprint": "adapter"}, {"name": "b", "blueprint": "se"}])
    perturb(branch)
    x = frames()
    before = branch(x)
    state = torch.random.get_rng_state()
    branch.spawn("c", "depthwise", seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(branch(x), before)
    perturb(branch.child("c"))
    assert not torch.equal(branch(x), before)
    branch.retire("c", "it did not pay")
    assert torch.equal(branch(x), before)


def test_what_others_add_does_not_depend_on_a_child_in_the_middle() -> None:
    branch = nest(children=[{"name": n, "blueprint": "adapter"} for n in ("a", "b", "c")])
    perturb(branch)
    x = frames()
    weights = branch.controller(x)
    without = weights["a"] * branch.child("a")(x) + weights["c"] * branch.child("c")(x)
    branch.retire("b", "idle")
    assert torch.equal(branch(x), without)


def test_the_controller_decides_for_every_frame() -> None:
    """Two kinds of frames, each served by another child: the controller learns which, one child alone cannot."""
    torch.manual_seed(0)
    port = Port.of((4,), "s1")
    kinds = torch.randint(0, 2, (256,))
    x = torch.randn(256, 4) * 0.3
    x[:, 3] = kinds * 4.0 - 2.0
    wanted = torch.where(kinds[:, None] == 1, x * 1.5, -x * 1.5)
    losses = {}
    for names in (("a", "b"), ("a",)):
        plain = [{"name": n, "blueprint": "low-rank-residual", "settings": {"rank": 4}} for n in names]
        branch = nest(port, children=plain, hidden=8)
        optimizer = torch.optim.Adam(branch.parameters(), lr=2e-2)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (branch(x) - wanted).square().mean()
            loss.backward()
            optimizer.step()
        losses[names] = float(loss.detach())
        if len(names) == 2:
            said = branch.controller(x)["a"].flatten().detach()
            gap = float((said[kinds == 1].mean() - said[kinds == 0].mean()).abs())
    assert gap > 0.5
    assert losses["a", "b"] < 0.25 * losses["a",]


def test_equal_seeds_make_equal_trees_and_copies_answer_alike() -> None:
    one, two, other = nest(**DEEP), nest(**DEEP), nest(seed=1, **DEEP)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    perturb(one)
    x = frames()
    for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(twin(x), one(x))


def test_the_price_of_a_tree_is_what_is_counted_and_stays_right_when_it_changes() -> None:
    branch = nest(**DEEP)
    assert branch.cost().with_gate() == count_cost(branch, PORT)
    branch.nest("edge").spawn("y", "se")
    branch.retire("a", "test")
    assert branch.cost().with_gate() == count_cost(branch, PORT)
    assert KIND.cost(PORT, branch.config) == count_cost(branch, PORT)  # type: ignore[attr-defined]


def test_a_child_over_budget_is_refused_with_both_numbers_and_nothing_changes() -> None:
    branch = nest(budget={"parameters": 200})
    left = branch.left()
    steps: list[Step] = []
    with pytest.raises(InputError, match=r"child big: 1,2\d\d parameters asked for, 172 left") as caught:
        branch.spawn("big", "adapter", config={"bottleneck": 96}, record=steps.append)
    assert caught.value.next_step == "Retire a child, or raise the budget."
    assert branch.names == () and branch.left() == left
    assert [(step.site, step.before, step.after) for step in steps] == [("s1/big", "dormant", "dormant")]
    assert steps[0].reason.startswith("refused: ")


def test_settings_over_budget_are_refused_before_anything_is_built() -> None:
    config = KIND.Config.parse({"budget": {"parameters": 20}})
    assert KIND.refusal(PORT, config).endswith("parameters asked for, 20 left")
    with pytest.raises(InputError, match="nested-seed"):
        KIND.build(PORT, seed=0, config=config)  # type: ignore[attr-defined]


def test_a_nested_child_gets_its_budget_out_of_its_parents() -> None:
    branch = nest(budget={"parameters": 1000, "macs": 100_000, "bytes": 2000})
    with pytest.raises(InputError, match="parameters without a limit asked for, 1,000 left"):
        branch.spawn("edge", "nested-seed")
    before = branch.left()
    branch.spawn("edge", "nested-seed", config={"children": ()}, budget=Budget(400, 50_000, 900))
    after = branch.left()
    assert before.parameters is not None and after.parameters is not None
    assert before.parameters - after.parameters == 400 + 5  # its output of the controller: 4 weights and a bias
    edge = branch.nest("edge")
    with pytest.raises(InputError, match=r"parameters asked for, 372 left"):
        edge.spawn("big", "adapter", config={"bottleneck": 40})
    branch.hand_on("edge", Budget(300, 0, 600))
    edge.spawn("big", "adapter", config={"bottleneck": 40})
    with pytest.raises(InputError, match="child edge: 9,999 parameters asked for"):
        branch.hand_on("edge", Budget(9999, 0, 0))


ACTS = st.lists(
    st.tuples(
        st.sampled_from(("spawn", "nest", "retire", "more")),
        st.integers(0, 5),
        st.integers(0, 3),
        st.sampled_from(("adapter", "se", "depthwise")),
        st.integers(1, 40),
    ),
    max_size=14,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=ACTS)
def test_no_order_of_events_overcommits_a_budget(acts: list[tuple[str, int, int, str, int]]) -> None:
    """On every level, after every event: what stands costs at most what is held, and that at most the budget."""
    branch = nest(budget={"parameters": 600, "macs": 40_000, "bytes": 900})
    for act, place, name, blueprint, size in acts:
        seeds = [seed for _, seed in branch.nests()]
        seed = seeds[place % len(seeds)]
        child = f"c{name}"
        with suppress(InputError):
            if act == "spawn":
                config = {"adapter": {"bottleneck": size}, "se": {"hidden": size}}.get(blueprint)
                seed.spawn(child, blueprint, config=config)
            elif act == "nest":
                limits = Budget(size * 12, size * 900, size * 16)
                seed.spawn(child, "nested-seed", config={"children": ()}, budget=limits)
            elif act == "retire":
                seed.retire(child, "test")
            else:
                seed.hand_on(child, Budget(size, size, size))
        for _, each in branch.nests():
            each.left()  # raises when more is held than there is
            assert each.budget.allows(each.cost()) == ""
    assert branch.cost().with_gate() == count_cost(branch, PORT)
    assert sum(p.numel() for p in branch.parameters()) <= 600


def test_the_watch_on_budgets_sees_an_overcommitment() -> None:
    """The negative control: a child that is put in past the check is found by the same watch."""
    branch = nest(budget={"parameters": 100})
    generous = nest()
    generous.spawn("a", "adapter", config={"bottleneck": 30})
    branch.nested["a"] = generous.child("a")
    branch.controller.add("a", seed=0)
    with pytest.raises(InputError, match="over budget"):
        branch.left()
    assert branch.budget.allows(branch.cost())


def test_children_compete_and_every_answer_is_logged() -> None:
    branch = nest(budget={"parameters": 260})
    steps: list[Step] = []
    nursery = Nursery(branch, record=steps.append, clock=lambda: 7.0)
    for name in ("b", "a", "c"):
        nursery.ask(name, "adapter", config={"bottleneck": 6}, reason="wanted")
    grants = nursery.settle()
    assert [(g.child, g.granted) for g in grants] == [("a", True), ("b", True), ("c", False)]
    assert branch.names == ("a", "b") and [r.child for r in nursery.waiting] == ["c"]
    assert nursery.waiting[0].waited == 1
    told = [(step.site, step.after, step.at_s) for step in steps]
    assert told == [("s1/a", "probing", 7.0), ("s1/b", "probing", 7.0), ("s1/c", "dormant", 7.0)]
    assert steps[-1].reason.startswith("waits: ") and "left" in steps[-1].reason
    assert steps[0].reason == "wanted; granted by policy fair, round 1"
    branch.retire("a", "made room")
    assert [g.granted for g in nursery.settle()] == [True]
    assert branch.names == ("b", "c") and not nursery.waiting


def test_priority_decides_who_comes_when_the_settings_say_so() -> None:
    branch = nest(budget={"parameters": 150}, policy="priority")
    nursery = Nursery(branch)
    nursery.ask("a", "adapter", config={"bottleneck": 6})
    nursery.ask("z", "adapter", config={"bottleneck": 6}, priority=1)
    nursery.settle()
    assert branch.names == ("z",)


def test_a_nested_child_asks_for_more_and_waits_for_it() -> None:
    branch = nest(budget={"parameters": 400})
    branch.spawn("edge", "nested-seed", config={"children": ()}, budget=Budget(parameters=100))
    branch.spawn("a", "adapter", config={"bottleneck": 12})
    nursery = Nursery(branch)
    nursery.ask_more("edge", Budget(parameters=150, macs=0, bytes=0))
    assert not nursery.settle()[0].granted
    branch.retire("a", "made room")
    assert nursery.settle()[0].granted
    assert branch.nest("edge").budget.parameters == 250


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    nursery = Nursery(nest(budget={"parameters": 100}))
    with pytest.raises(InputError, match=r"more than the whole budget: .* 72 left"):
        nursery.ask("a", "adapter", config={"bottleneck": 60})
    nursery.ask("a", "adapter", config={"bottleneck": 2})
    with pytest.raises(InputError, match="a waits already"):
        nursery.ask("a", "adapter")
    nursery.withdraw("a")
    with pytest.raises(InputError, match="'a' does not wait; nobody does"):
        nursery.withdraw("a")


def test_requests_that_have_lost_their_point_wait_no_longer() -> None:
    branch = nest(budget={"parameters": 400})
    branch.spawn("edge", "nested-seed", config={"children": ()}, budget=Budget(parameters=100))
    nursery = Nursery(branch)
    nursery.ask("a", "adapter", config={"bottleneck": 2})
    nursery.ask_more("edge", Budget(parameters=10))
    branch.spawn("a", "adapter", config={"bottleneck": 3})
    branch.retire("edge", "test")
    assert [(g.granted, g.hopeless, g.reason) for g in nursery.settle()] == [
        (False, True, "it is there already"),
        (False, True, "it has gone"),
    ]
    assert not nursery.waiting


def test_the_ninth_child_waits_for_a_place() -> None:
    branch = nest(children=[{"name": f"c{i}", "blueprint": "se"} for i in range(7)])
    nursery = Nursery(branch)
    for name in ("x", "y"):
        nursery.ask(name, "se")
    assert [(g.child, g.granted) for g in nursery.settle()] == [("x", True), ("y", False)]
    branch.retire("c0", "made a place")
    assert nursery.settle()[0].granted and "y" in branch.names


def test_idle_children_are_retired_on_evidence_and_the_others_are_not() -> None:
    branch = nest(children=[{"name": n, "blueprint": "adapter"} for n in ("a", "b")])
    nursery = Nursery(branch)
    x = frames(count=16)
    assert nursery.review(x) == {}  # nothing is added yet: nobody is idle
    perturb(branch)
    assert nursery.review(x) == {}
    with torch.no_grad():
        branch.controller.heads["b"].bias.fill_(-12.0)  # type: ignore[union-attr, operator]
    assert branch.weights(x)["b"] < 1e-4
    assert set(nursery.review(x)) == {"b"}
    assert branch.names == ("a",)
    assert "least" in branch.history[-1].reason and branch.history[-1].after is SiteState.REMOVED


def test_a_step_that_cannot_be_recorded_does_not_happen() -> None:
    branch = nest()
    keys = set(branch.state_dict())

    def full(step: Step) -> None:
        raise StorageError("disk full")

    with pytest.raises(StorageError):
        branch.spawn("a", "adapter", record=full)
    assert set(branch.state_dict()) == keys and branch.history == []
    branch.spawn("a", "adapter")
    with pytest.raises(StorageError):
        branch.retire("a", "test", record=full)
    assert branch.names == ("a",)


def test_steps_go_into_the_audit_log(tmp_path: Any) -> None:
    log = AuditLog(tmp_path / "audit.log", clock=lambda: 1.0)
    branch = nest()
    branch.spawn("a", "adapter", record=audit_steps(log))
    branch.accept("a", record=audit_steps(log))
    branch.retire("a", "test", record=audit_steps(log))
    entries = tail(tmp_path / "audit.log", 9)
    assert [entry.event for entry in entries] == ["seed.probing", "seed.active", "seed.removed"]
    assert {entry.fields["site"] for entry in entries} == {"s1/a"}


def test_structure_and_weights_bring_the_tree_back() -> None:
    branch = nest(budget={"parameters": 3000}, children=[{"name": "a", "blueprint": "se"}])
    branch.spawn("edge", "nested-seed", config={"children": ()}, budget=Budget(parameters=900))
    branch.nest("edge").spawn("left", "glu", priority=2)
    branch.accept("edge")
    branch.child("a").set_intensity(0.25)
    perturb(branch)
    twin = nest()
    state = torch.random.get_rng_state()
    twin.rebuild(branch.structure())
    assert torch.equal(torch.random.get_rng_state(), state)
    twin.load_state_dict(branch.state_dict())
    assert torch.equal(twin(frames()), branch(frames()))
    assert twin.structure() == branch.structure()
    assert twin.child("edge").state is SiteState.ACTIVE and twin.nest("edge").depth == 1
    assert twin.left() == branch.left() and twin.history == branch.history


def nested_settings(levels: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for _ in range(levels):
        settings = {"children": [{"name": "a", "blueprint": "nested-seed", "settings": settings}]}
    return settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, this program reads 1"),
        ({"config": {"children": [{"name": "a", "blueprint": "nothing"}]}}, "no blueprint is called 'nothing'"),
        ({"config": {"budget": {"parameters": 1}}}, "parameters asked for, 1 left"),
        ({"states": {}}, "states of 0 children and steps of 1 seeds; its settings have 1 and 1"),
        ({"states": {"s1/a": "happy"}}, "malformed"),
        ({"steps": None}, "malformed"),
        ({"states": {"s1/a": "removed"}}, "s1/a is removed; a child that stands is probing or active"),
        ({"steps": {"s1": [{"site": 5, "before": "dormant", "after": "probing", "reason": ""}]}}, "malformed.*text"),
        (
            {
                "steps": {
                    "s1": [{"site": "s1/a", "before": "dormant", "after": "probing", "reason": "", "at_s": math.nan}]
                }
            },
            "malformed.*expected a number",
        ),
        ({"config": nested_settings(levels=2000)}, "malformed.*recursion"),
    ],
)
def test_a_wrong_structure_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    branch = nest(children=[{"name": "a", "blueprint": "se"}])
    wrong = {**branch.structure(), **change}
    before = branch.structure()
    with pytest.raises(InputError, match=message):
        branch.rebuild(wrong)
    assert branch.structure() == before


@pytest.mark.parametrize(
    ("child", "message"),
    [
        ({"name": "train", "blueprint": "se"}, "train is a word of torch's modules"),
        ({"name": "A", "blueprint": "se"}, "should match pattern"),
        ({"name": "a", "blueprint": "no-op"}, "no-op has no branch that could stand inside a seed"),
        ({"name": "a", "blueprint": "scale-bn-retune"}, "has no branch that could stand inside a seed"),
        ({"name": "a", "blueprint": "conv-lora"}, "conv-lora reads the input"),
        ({"name": "a", "blueprint": "cross-attention"}, "cross-attention reads the context"),
        ({"name": "a", "blueprint": "se", "settings": {"wide": 3}}, "settings of se.wide: unknown field"),
        ({"name": "a", "blueprint": "adaptor"}, "no blueprint is called 'adaptor'"),
    ],
)
def test_a_child_that_cannot_stand_in_a_seed_is_refused(child: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nest(children=[child])
    with pytest.raises(InputError, match=message):
        nest().spawn(child["name"], child["blueprint"], config=child.get("settings"))


def test_names_are_unique_and_places_are_limited() -> None:
    with pytest.raises(InputError, match="2 children have 1 names"):
        nest(children=[{"name": "a", "blueprint": "se"}] * 2)
    branch = nest(children=[{"name": f"c{i}", "blueprint": "se"} for i in range(8)])
    with pytest.raises(InputError, match="c0 is a se already"):
        branch.spawn("c0", "se")
    with pytest.raises(InputError, match="8 children stand here, at most 8"):
        branch.spawn("d", "se")
    with pytest.raises(InputError, match="expected settings of type SqueezeConfig, got AdapterConfig"):
        nest().spawn("d", "se", config=find_blueprint("adapter").Config())


def test_width_reaches_the_children_and_settings_are_values() -> None:
    config = NestedSeedConfig(children=(ChildConfig(name="a", blueprint="adapter"),))
    wide = config.scaled(2.0)
    assert wide.hidden == 8 and wide.children[0].settings["bottleneck"] == 16
    assert config.scaled(1.0) == config and hash(config) == hash(NestedSeedConfig.from_bytes(config.to_bytes()))
    assert config.digest() != wide.digest()


def test_a_nested_seed_grows_on_a_host_learns_and_is_removed_exactly(
    trained_host: nn.Module, seeded: SeededNetwork, digit_batch: torch.Tensor
) -> None:
    seeded.graft("s1", "nested-seed", config=KIND.Config.parse(DEEP), seed=1)
    assert torch.equal(seeded(digit_batch), trained_host(digit_batch))
    branch = seeded.site("s1").branch
    assert isinstance(branch, NestedBranch) and branch.port.name == "s1"
    branch.spawn("late", "residual-mlp", seed=2)
    optimizer = torch.optim.Adam(seeded.graft_parameters(), lr=1e-2)
    wanted = trained_host(digit_batch).detach().roll(1, 0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (seeded(digit_batch) - wanted).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(tensor.grad is None for _, tensor in seeded.host_tensors())
    seeded.check_host()
    seeded.remove("s1")
    assert torch.equal(seeded(digit_batch), trained_host(digit_batch))


def test_tokens_and_vectors_hold_seeds_too() -> None:
    for port in (Port("t", (5, 8), Layout.TOKENS), Port.of((8,), "v"), Port.of((4, 20), "r")):
        branch = nest(port, children=[{"name": "a", "blueprint": "adapter"}])
        perturb(branch)
        x = frames(port=port)
        assert branch(x).shape == x.shape
        assert branch.controller(x)["a"].shape == (4, *[1] * port.rank)
