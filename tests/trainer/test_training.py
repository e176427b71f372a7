"""The training loop: it stops between two steps, goes on to the same bytes, and says at which step it went wrong."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kasmina_edge.contracts.arrays import pack_arrays, unpack_arrays
from kasmina_edge.errors import InputError
from kasmina_trainer.training import TrainingRun, TrainingSettings, TrainingState, train

SETTINGS = TrainingSettings(steps=9, learning_rate=1e-2, batch=8, keep=0.5)


def small(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
        ).eval()


def rows(count: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 6, 6, generator=rng), torch.randint(0, 3, (count,), generator=rng)


def fit(network: nn.Module, **options: object) -> TrainingRun:
    return train(
        network,
        list(network.parameters()),
        [rows(), rows(20, 1)],
        training_modules=[network],
        **{"settings": SETTINGS, "seed": 3, "teacher": small(), **options},  # type: ignore[arg-type]
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def through_a_file(state: TrainingState) -> TrainingState:
    arrays = unpack_arrays(pack_arrays(state.arrays), where="state")
    return TrainingState(state.step, state.seconds, arrays)


@pytest.mark.parametrize("every", [1, 4])
def test_a_training_goes_on_to_the_same_bytes_from_every_checkpoint(every: int):
    whole = small(1)
    states: list[TrainingState] = []
    run = fit(whole, on_checkpoint=states.append, checkpoint_every=every)
    assert [s.step for s in states] == [n for n in range(1, 9) if n % every == 0]
    for state in states:
        later: list[TrainingState] = []
        network = small(2)
        again = fit(network, state=through_a_file(state), on_checkpoint=later.append, checkpoint_every=every)
        assert same(network, whole) and again.loss == run.loss and again.peak_bytes == run.peak_bytes
        for mine, first in zip(later, states[states.index(state) + 1 :], strict=True):
            assert pack_arrays(mine.arrays) == pack_arrays(first.arrays)


def test_a_state_that_is_left_out_makes_a_difference():
    """The control: without the moments, or from another step, the bytes differ."""
    whole, states = small(1), []
    fit(whole, on_checkpoint=states.append, checkpoint_every=4)
    state = states[0]
    for name in ("exp_avg.0", "generator", "order.0", "rates"):
        arrays = {**state.arrays}
        if name == "generator":
            arrays[name] = torch.Generator().manual_seed(9).get_state().numpy()
        else:
            arrays[name] = arrays[name][::-1].copy() if name == "order.0" else arrays[name] * 0.5
        other = small(1)
        fit(other, state=TrainingState(state.step, 0.0, arrays))
        assert not same(other, whole), name


def test_a_state_of_another_network_is_refused():
    states: list[TrainingState] = []
    fit(small(), on_checkpoint=states.append)
    fit(small(), on_checkpoint=states.append, checkpoint_every=4)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError, match=r"state is of another training: parameter.0 is \(4, 1, 3, 3\), expected"):
        train(network, list(network.parameters()), [rows()], settings=SETTINGS, seed=3, state=states[0])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("order.0", None, "order.0 is missing"),
        ("rates", None, "rates is missing"),
        ("noise", None, "noise is missing"),
        ("peak_bytes", np.zeros(2), r"peak_bytes is \(2,\), expected \(1,\)"),
        ("rates", np.zeros((3, 3)), r"rates is \(3, 3\), expected \(1, 3\)"),
        ("losses", np.zeros(9), r"losses is \(9,\), expected \(4,\)"),
        ("generator", np.zeros(7, np.uint8), "generator is"),
        ("order.0", np.array([10**6]), r"order.0 is \(1,\) int64, expected numbers of"),
        ("order.0", np.array([-1]), "expected numbers of"),
        ("order.0", np.array([0.5]), "float64"),
    ],
)
def test_a_state_that_lacks_its_course_is_refused_and_changes_nothing(name: str, value: Any, said: str):
    states: list[TrainingState] = []
    fit(small(), on_checkpoint=states.append, checkpoint_every=4)
    arrays = {k: v for k, v in states[0].arrays.items() if k != name}
    if value is not None:
        arrays[name] = value
    network = small()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(InputError, match=said):
        fit(network, state=TrainingState(4, 0.0, arrays))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_an_order_is_asked_for_every_source():
    states: list[TrainingState] = []
    network = small()
    both = [rows(), rows()]
    train(
        network, list(network.parameters()), both, settings=SETTINGS, seed=3,
        on_checkpoint=states.append, checkpoint_every=4,
    )  # fmt: skip
    lacking = {k: v for k, v in states[0].arrays.items() if k != "order.1"}
    again = small()
    with pytest.raises(InputError, match=r"order\.1 is missing"):
        train(again, list(again.parameters()), both, settings=SETTINGS, seed=3, state=TrainingState(4, 0.0, lacking))


def test_a_group_learns_at_its_own_rate():
    plain, slow, same_rate = small(), small(), small()
    fit(plain)
    fit(slow, groups=[(0.1, [slow[0].weight])])
    fit(same_rate, groups=[(1.0, [same_rate[0].weight])])
    start = small()
    moved = [(n[0].weight - start[0].weight).abs().mean().item() for n in (plain, slow)]
    assert moved[1] < 0.3 * moved[0]
    assert same(plain, same_rate)


@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps_can_be_asked_for(steps: int):
    assert fit(small(), settings=TrainingSettings(steps=steps, batch=8)).steps == steps


def test_a_teacher_that_is_remembered_teaches_the_same():
    """Asked once a row or once a step, the answers agree; the control is a teacher that is not asked at all."""
    still = TrainingSettings(steps=9, learning_rate=1e-2, batch=8, keep=0.5, shift=0)
    asked, remembered, alone = small(), small(), small()
    fit(asked, settings=still)
    fit(remembered, settings=replace(still, remember=True))
    fit(alone, settings=replace(still, keep=0.0))
    near, far = ((n[4].weight - asked[4].weight).abs().max().item() for n in (remembered, alone))
    assert near < 1e-5 < 1e-3 < far
    calls: list[int] = []
    teacher = small()
    teacher.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    fit(small(), settings=replace(still, remember=True), teacher=teacher)
    assert calls == [24]
    with pytest.raises(InputError, match="remember with a shift of 1"):
        TrainingSettings(remember=True)


def test_every_loss_is_watched():
    seen: list[tuple[int, float]] = []
    run = fit(small(), watch=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 10))
    assert run.loss == seen[-1][1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_is_told_with_its_step(bad: float):
    x, y = rows()
    network = small()
    order: list[int] = []

    def spoil(step: int, loss: float) -> None:
        order.append(step)
        if step == 5:
            x.fill_(bad)

    with pytest.raises(InputError, match=r"training diverged: loss nan at step 6 of 9"):
        train(network, list(network.parameters()), [(x, y)], settings=SETTINGS, seed=0, watch=spoil)
    assert order == [1, 2, 3, 4, 5]
    assert all(torch.isfinite(p).all() for p in network.parameters()), "the step that went wrong is not taken"
    assert not network.training


@pytest.mark.parametrize("shape", [(7,), (2, 12), (1, 1, 12)])
def test_series_and_vectors_train_as_images_do(shape: tuple[int, ...]):
    x = torch.rand(30, *shape)
    network = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    run = train(network, list(network.parameters()), [(x, torch.arange(30) % 3)], settings=SETTINGS, seed=0)
    assert run.steps == 9 and run.peak_bytes > 0


def test_a_graft_keeps_fewer_bytes_than_the_whole_network():
    """What is counted follows what learns: the last layer alone saves nothing of the layers before it."""
    whole, part = small(), small()
    run = fit(whole)
    part.requires_grad_(False)
    last = list(part[4].requires_grad_(True).parameters())
    small_run = train(part, last, [rows(), rows(20, 1)], settings=SETTINGS, seed=3)
    assert 0 < small_run.peak_bytes < run.peak_bytes
