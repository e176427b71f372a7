"""A trial of pruning gives the network back, bit for bit, whatever goes wrong and whenever it does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from worlds.hosts import make_batch, make_host

from kasmina_edge.errors import InputError, StorageError
from kasmina_trainer.pruning import (
    Amount,
    GroupNorm,
    Idleness,
    Judgement,
    Magnitude,
    Recovery,
    Strategy,
    Taylor,
    UtilizationSeeds,
    pruned,
    recover,
    snapshot,
)
from kasmina_trainer.seeds import SeededNetwork, SiteState, attach_seeds

YES, NO = Judgement(True), Judgement(False, ("0.9 points lost, 0.6 allowed",))
X = make_batch("residual", rows=16)


class BrokenError(Exception):
    """Something broke."""


class FaultAt(TorchDispatchMode):
    """Every PyTorch operation from the n-th on fails, or the n-th alone: as when memory runs out."""

    def __init__(self, at: int, error: Callable[[], BaseException], *, lasting: bool = True) -> None:
        super().__init__()
        self.at, self.error, self.lasting, self.count = at, error, lasting, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.at or (self.lasting and self.count > self.at):
            raise self.error()
        return func(*args, **(kwargs or {}))


class Picture:
    """Everything of a network that must be as it was."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors = [*network.named_parameters(), *network.named_buffers()]
        self.values = [(t.detach().clone(), t.requires_grad, t.grad) for _, t in self.tensors]
        self.modules = [(name, id(m), m.training, repr(m)) for name, m in network.named_modules()]
        with torch.no_grad():
            self.answers = network(X)

    def check(self, network: nn.Module) -> None:
        now = [*network.named_parameters(), *network.named_buffers()]
        assert [(n, id(t)) for n, t in now] == [(n, id(t)) for n, t in self.tensors]
        for (name, t), (value, learns, gradient) in zip(now, self.values, strict=True):
            assert torch.equal(t, value), name
            assert t.requires_grad == learns and t.grad is gradient, name
        assert [(name, id(m), m.training, repr(m)) for name, m in network.named_modules()] == self.modules
        with torch.no_grad():
            assert torch.equal(network(X), self.answers)


@pytest.fixture
def network() -> nn.Module:
    """With a gradient, a frozen tensor and mixed modes, so that all of them have to come back."""
    net = make_host("residual")
    net.get_parameter("fc.weight").grad = torch.ones_like(net.get_parameter("fc.weight"))
    net.get_parameter("fc.bias").requires_grad_(False)
    return net


def fine_tuned(net: nn.Module) -> None:
    teacher = make_host("residual")
    recover(net, teacher, X, settings=Recovery(steps=2, batch=8, mix=0.0))


STRATEGIES: list[tuple[Strategy, Any]] = [
    (Taylor(), Amount(0.3)),
    (GroupNorm(), Amount(0.3, of="channels", step=2)),
    (Magnitude(), 0.5),
]


@pytest.mark.parametrize(("strategy", "amount"), STRATEGIES, ids=lambda v: getattr(v, "name", ""))
def test_a_trial_that_nobody_accepts_leaves_no_trace(network: nn.Module, strategy: Strategy, amount: Any) -> None:
    before = Picture(network)
    with pruned(network, strategy, amount, X, accept=lambda n: YES, finetune=fine_tuned) as trial:
        assert not torch.equal(network(X), before.answers)
        assert trial.network is network and trial.cut.count > 0
        assert not trial.accepted
    before.check(network)


@pytest.mark.parametrize("verdict", [None, True])
def test_what_is_no_verdict_is_refused_and_everything_comes_back(network: nn.Module, verdict: Any) -> None:
    before = Picture(network)
    with (
        pytest.raises(InputError, match=f"gave {verdict}, which is no verdict"),
        pruned(network, Taylor(), Amount(0.3), X, accept=lambda n: verdict) as trial,
    ):
        trial.accept()
    before.check(network)


@pytest.mark.parametrize(("strategy", "amount"), STRATEGIES, ids=lambda v: getattr(v, "name", ""))
def test_an_accepted_trial_stays(network: nn.Module, strategy: Strategy, amount: Any) -> None:
    whole = sum(p.numel() for p in network.parameters())
    judged = []
    with pruned(network, strategy, amount, X, accept=lambda n: judged.append(n) or YES, finetune=fine_tuned) as trial:
        assert trial.accept()
        answers = network(X).detach()
    assert judged == [network]
    assert torch.equal(network(X), answers)
    assert (sum(p.numel() for p in network.parameters()) < whole) == strategy.shrinks == trial.cut.shrinks
    assert trial.log[0].startswith(f"{strategy.name}: {trial.cut.count} of {trial.cut.of} taken")
    assert trial.log[-1] == "accepted"


def test_a_refusal_puts_it_back_with_the_reason(network: nn.Module) -> None:
    before = Picture(network)
    with pruned(network, Taylor(), 0.3, X, accept=lambda n: NO) as trial:
        assert not trial.accept()
    before.check(network)
    assert trial.log[-1] == "refused: 0.9 points lost, 0.6 allowed"


def test_the_last_verdict_counts(network: nn.Module) -> None:
    before = Picture(network)
    verdicts = iter([YES, NO])
    with pruned(network, Taylor(), 0.3, X, accept=lambda n: next(verdicts)) as trial:
        assert trial.accept() and not trial.accept()
    before.check(network)


ERRORS: list[Callable[[], BaseException]] = [
    lambda: BrokenError("in the middle"),
    lambda: MemoryError("no more"),
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    KeyboardInterrupt,
    lambda: SystemExit(1),
]


@pytest.mark.parametrize("error", ERRORS, ids=["fault", "memory", "accelerator memory", "interrupt", "exit"])
@pytest.mark.parametrize("where", ["finetune", "block", "judge", "after acceptance"])
def test_an_exception_anywhere_puts_it_back(network: nn.Module, error: Callable[[], BaseException], where: str) -> None:
    before = Picture(network)

    def broken(net: nn.Module) -> Any:
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(3)
        raise error()

    with (
        pytest.raises(type(error())),
        pruned(
            network, Taylor(), 0.3, X, accept=broken if where == "judge" else lambda n: YES,
            finetune=broken if where == "finetune" else None,
        ) as trial,
    ):  # fmt: skip
        if where == "block":
            broken(network)
        assert trial.accept()
        broken(network)
    before.check(network)


def faults(run: Callable[[], None], most: int = 15) -> Iterator[int]:
    """Places to break a run at: all operations, or some spread over them."""
    counting = FaultAt(0, BrokenError, lasting=False)
    with counting:
        run()
    step = max(1, counting.count // most)
    yield from range(1, counting.count + 1, step)


@pytest.mark.parametrize(("strategy", "amount"), STRATEGIES, ids=lambda v: getattr(v, "name", ""))
@pytest.mark.parametrize("lasting", [True, False], ids=["from there on", "once"])
def test_memory_that_runs_out_at_any_operation_puts_it_back(
    network: nn.Module, strategy: Strategy, amount: Any, lasting: bool
) -> None:
    """Putting back asks for no memory: it works while every operation still fails."""
    before = Picture(network)

    def run() -> None:
        with pruned(network, strategy, amount, X[:4], accept=lambda n: YES, finetune=None):
            pass

    places = list(faults(run))
    assert len(places) > 10
    for at in places:
        with pytest.raises(MemoryError), FaultAt(at, MemoryError, lasting=lasting):
            run()
        before.check(network)


def test_a_number_that_is_none_puts_it_back(network: nn.Module) -> None:
    before = Picture(network)

    def spoil(net: nn.Module) -> None:
        with torch.no_grad():
            net.get_parameter("fc.weight")[0, 0] = torch.nan

    judge = lambda n: YES  # noqa: E731
    with (
        pytest.raises(InputError, match=r"1 of \d+ numbers of fc.weight are not finite after it was pruned"),
        pruned(network, Taylor(), 0.3, X, accept=judge, finetune=spoil),
    ):
        pytest.fail("the block must not run")
    before.check(network)
    with (
        pytest.raises(InputError, match="before it was judged"),
        pruned(network, Taylor(), 0.3, X, accept=judge) as trial,
    ):
        spoil(network)
        trial.accept()
    before.check(network)
    with (
        pytest.raises(InputError, match="when it was to be kept"),
        pruned(network, Taylor(), 0.3, X, accept=judge) as trial,
    ):
        trial.accept()
        spoil(network)
    before.check(network)
    spoil(network)
    with (
        pytest.raises(InputError, match="before it was pruned"),
        pruned(network, Taylor(), 0.3, X, accept=judge),
    ):
        pytest.fail("the block must not run")


def test_a_recovery_that_diverges_says_where(network: nn.Module) -> None:
    before = Picture(network)
    wild = Recovery(steps=30, batch=8, learning_rate=1e30)
    with (
        pytest.raises(InputError, match=r"recovery: loss (nan|inf) after \d+ of 30 steps"),
        pruned(
            network, Taylor(), 0.3, X, accept=lambda n: YES,
            finetune=lambda n: recover(n, make_host("residual"), X, settings=wild),
        ),
    ):  # fmt: skip
        pytest.fail("the block must not run")
    before.check(network)


def test_these_tests_would_notice(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a snapshot that puts nothing back, or only the tensors, is found out."""
    before = Picture(network)
    original = snapshot.Snapshot.put_back
    monkeypatch.setattr(snapshot.Snapshot, "put_back", lambda self: None)
    with pruned(network, Taylor(), 0.3, X, accept=lambda n: YES):
        pass
    with pytest.raises(AssertionError):
        before.check(network)
    assert original is not snapshot.Snapshot.put_back


def test_a_trial_costs_one_copy(network: nn.Module) -> None:
    import gc

    def held() -> int:
        gc.collect()
        found = {}
        for thing in gc.get_objects():
            if type(thing) in (torch.Tensor, nn.Parameter):
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())

    before, size = held(), sum(t.numel() * t.element_size() for t in network.state_dict().values())
    with pruned(network, GroupNorm(), Amount(0.5), X[:2], accept=lambda n: YES) as trial:
        during = held()
        trial.accept()
    assert during - before <= size
    assert held() < before


def test_magnitude_keeps_its_zeros_through_fine_tuning_and_saves_no_work(network: nn.Module) -> None:
    with pruned(network, Magnitude(), 0.5, X, accept=lambda n: YES, finetune=fine_tuned) as trial:
        trial.accept()
    weights = torch.cat([network.get_parameter(name).flatten() for name in trial.cut.taken])
    assert int((weights == 0).sum()) >= trial.cut.count == len(weights) // 2
    assert not trial.cut.shrinks and "keeps its size" in trial.log[0]
    with (
        pytest.raises(InputError, match="zeros save no multiplication"),
        pruned(network, Magnitude(), Amount(0.5), X, accept=lambda n: YES),
    ):
        pytest.fail("the block must not run")


@pytest.fixture
def seeded() -> SeededNetwork:
    """A network with one graft that matters and one that hardly does."""
    torch.manual_seed(0)
    net = attach_seeds(make_host("residual"), ["act1", "layer2.0.act2"], example=X)
    for site, size in (("act1", 0.5), ("layer2.0.act2", 1e-6)):
        net.graft(site, "depthwise", seed=1)
        with torch.no_grad():
            for p in net.graft_parameters(site):
                p.copy_(size * torch.randn(p.shape))
    return net


def test_an_idle_graft_leaves_after_patience_and_only_when_the_rest_was_accepted(seeded: SeededNetwork) -> None:
    before, strategy = Picture(seeded), UtilizationSeeds(Idleness(low=0.35, high=0.45, patience=3))
    scores = strategy.scores(seeded, X)
    before.check(seeded)
    assert float(scores["layer2.0.act2"]) < 0.35 and float(scores["act1"]) > 0.45
    for _ in range(2):
        with pruned(seeded, strategy, 0.5, X, accept=lambda n: YES) as trial:
            assert trial.cut.count == 0 and trial.cut.note == "silenced: none is idle"
    with pruned(seeded, strategy, 0.5, X, accept=lambda n: NO) as trial:
        assert set(trial.cut.taken) == {"layer2.0.act2"}
        assert seeded.states["layer2.0.act2"] is SiteState.PROBING, "nothing has happened yet"
        assert not trial.accept()
    before.check(seeded)
    with pruned(seeded, strategy, 0.5, X, accept=lambda n: YES) as trial:
        assert trial.accept()
    assert seeded.states == {"act1": SiteState.PROBING, "layer2.0.act2": SiteState.REMOVED}
    assert [graft.site for graft in seeded.grafts] == ["act1"]


def test_the_host_answers_again_when_all_grafts_have_left(seeded: SeededNetwork) -> None:
    with torch.no_grad():
        bare = make_host("residual")(X)
    strategy = UtilizationSeeds(Idleness(low=0.9, high=1.0, patience=1))
    with pruned(seeded, strategy, 1.0, X, accept=lambda n: YES) as trial:
        assert trial.accept() and trial.cut.count == 2
    with torch.no_grad():
        assert torch.equal(seeded(X), bare)
    seeded.check_host()


def test_hysteresis() -> None:
    strategy = UtilizationSeeds(Idleness(low=0.1, high=0.2, patience=2))
    assert strategy.observe({"a": 0.05, "b": 0.05}) == ()
    assert strategy.observe({"a": 0.15, "b": 0.25}) == (), "between the two nothing changes; above, all is forgotten"
    assert strategy.observe({"a": None, "b": 0.05}) == (), "not measured counts neither way"
    assert strategy.observe({"a": 0.1, "b": 0.15}) == ("a",)
    assert strategy.observe({"a": 0.2}) == ()
    for bad in ({"low": 0.3, "high": 0.2}, {"patience": 0}, {"low": -0.1}):
        with pytest.raises(InputError, match="expected 0 <= low < high <= 1"):
            Idleness(**bad)  # type: ignore[arg-type]
    for reading in (float("nan"), -1.0, 2.0):
        with pytest.raises(InputError, match=f"utilization {reading:g} of site b: expected 0 to 1"):
            strategy.observe({"a": 0.05, "b": reading})
    assert strategy.observe({"a": 0.05}) == (), "refused readings do not count"
    assert strategy.observe({"a": 0.05}) == ("a",)


def test_strategies_refuse_networks_they_are_not_for(network: nn.Module, seeded: SeededNetwork) -> None:
    before, grown = Picture(network), Picture(seeded)
    for strategy, net, amount, words in (
        (UtilizationSeeds(), network, 0.5, "ResidualNet has no seed sites"),
        (Taylor(), seeded, 0.3, "a frozen host"),
        (UtilizationSeeds(), seeded, Amount(0.5), "a share of the grafts"),
    ):
        with pytest.raises(InputError, match=words), pruned(net, strategy, amount, X, accept=lambda n: YES):
            pytest.fail("the block must not run")
    before.check(network)
    grown.check(seeded)


def test_a_copy_of_a_network_on_trial_is_free(network: nn.Module) -> None:
    """What was copied inside the block stays pruned when the network itself goes back."""
    before = Picture(network)
    with pruned(network, Taylor(), 0.3, X, accept=lambda n: YES):
        kept, answers = copy.deepcopy(network), network(X)
    before.check(network)
    assert torch.equal(kept(X), answers)


def test_a_removal_that_cannot_be_recorded_leaves_the_graft_as_it_was(seeded: SeededNetwork) -> None:
    before, strategy = Picture(seeded), UtilizationSeeds(Idleness(low=0.9, high=1.0, patience=1))

    def full(step: object) -> None:
        raise StorageError("the disk is full")

    seeded.record_to(full)
    with (
        pytest.raises(StorageError, match="the disk is full"),
        pruned(seeded, strategy, 1.0, X, accept=lambda n: YES) as trial,
    ):
        assert trial.accept() and trial.cut.count == 2
    before.check(seeded)
    assert set(seeded.states.values()) == {SiteState.PROBING}


@pytest.mark.parametrize("strategy", [Taylor(), GroupNorm(), UtilizationSeeds()], ids=lambda s: s.name)
def test_frames_that_the_network_does_not_take_are_refused_in_one_error(
    network: nn.Module, seeded: SeededNetwork, strategy: Strategy
) -> None:
    net = seeded if isinstance(strategy, UtilizationSeeds) else network
    for frames, words in (
        (X[:0], "expected at least 1, got 0"),
        (X[:4].long(), r"does not take frames of shape \(4, .*\) in int64: .*[Ff]loat"),
        (X[:4].repeat(1, 2, 1, 1), rf"shape \(4, {2 * X.shape[1]}, .*expected .* {X.shape[1]} channels"),
    ):
        with pytest.raises(InputError, match=words):
            strategy.scores(net, frames)
    assert strategy.scores(net, X[:4]), "and those that it takes are scored"


@pytest.mark.parametrize(
    ("frames", "labels", "said"),
    [
        (None, None, "frames are NoneType"),
        (torch.zeros(2, 3).numpy(), None, "frames are ndarray"),
        (torch.zeros(2, 3), torch.zeros(1, 2), r"labels are \(1, 2\), expected a tensor"),
        (torch.zeros(2, 3), [0, 1], "labels are list"),
    ],
)
def test_frames_and_labels_that_are_none_are_refused_before_anything_changes(
    network: nn.Module, frames: Any, labels: Any, said: str
) -> None:
    for strategy, amount in STRATEGIES:
        with (
            pytest.raises(InputError, match=said),
            pruned(network, strategy, amount, frames, labels, accept=lambda _: Judgement(True)),
        ):
            raise AssertionError("the block must not run")
