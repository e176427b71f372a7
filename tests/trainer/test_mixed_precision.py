"""The layers that hurt are found, budgets are kept, and the front is the one that trying everything gives."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.quantization.calibration import calibrated
from kasmina_trainer.quantization.config import QuantizeConfig
from kasmina_trainer.quantization.folding import folded_graph
from kasmina_trainer.quantization.mixed import allocate, front
from kasmina_trainer.quantization.report import QuantizationReport, report_of
from kasmina_trainer.quantization.sensitivity import Effect, Sensitivities, measure_sensitivity
from kasmina_trainer.quantization.simulation import observe_points, rounding_points


def effects(rows: list[tuple[int, float]]) -> tuple[Effect, ...]:
    return tuple(Effect(f"l{i}", 4, weights, distance, None) for i, (weights, distance) in enumerate(rows))


def found(rows: list[tuple[int, float]]) -> Sensitivities:
    return Sensitivities(effects(rows), 0.0, 0.99, 0.99)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), max_size=7))
def test_the_front_is_that_of_trying_everything(rows: list[tuple[int, float]]) -> None:
    each = effects(rows)
    every = []
    for picks in product((False, True), repeat=len(each)):
        distance = 0.0
        for effect, pick in zip(each, picks, strict=True):
            distance += effect.distance if pick else 0.0
        every.append((sum(e.saved_bytes for e, p in zip(each, picks, strict=True) if p), distance))
    best = {(s, d) for s, d in every if not any((a >= s and b < d) or (a > s and b <= d) for a, b in every)}
    assert {(c.saved_bytes, c.distance) for c in front(each)} == best


def test_the_budget_goes_to_the_layers_that_hurt_least_a_byte() -> None:
    choice = allocate(found([(1000, 0.9), (1000, 0.1), (1000, 0.2), (10, 0.0)]), save_bytes=900).chosen
    assert dict(choice.bits) == {"l1": 4, "l2": 4, "l3": 4} and choice.saved_bytes == 1005


def test_a_latency_budget_is_measured_and_four_bits_may_lose_it() -> None:
    def latency_ms(bits: dict[str, int]) -> float:
        return 1.0 + 0.3 * sum(b == 4 for b in bits.values())

    rows = [(100, 0.1), (100, 0.2), (100, 0.3)]
    chosen = allocate(found(rows), save_bytes=50, most_ms=1.3, latency_ms=latency_ms).chosen
    assert dict(chosen.bits) == {"l0": 4} and chosen.latency_ms == pytest.approx(1.3)
    with pytest.raises(InputError, match=r"at most 1\.2 ms, the fastest of 3 choices takes 1\.3 ms"):
        allocate(found(rows), save_bytes=1, most_ms=1.2, latency_ms=latency_ms)


def test_accuracy_is_measured_on_the_whole_and_not_added_up() -> None:
    def accuracy(bits: dict[str, int]) -> float:
        return 0.90 if {"l0", "l1"} <= set(bits) else 0.98  # two that are harmless alone and not together

    rows = [(100, 0.01), (200, 0.02), (300, 0.5)]
    chosen = allocate(found(rows), save_bytes=150, most_loss=0.02, accuracy=accuracy).chosen
    assert set(chosen.bits) == {"l0", "l2"} and chosen.accuracy == 0.98
    with pytest.raises(InputError, match=r"at most 2\.00% of accuracy may be lost, the best of 1 choices loses 9\.00%"):
        allocate(found(rows), save_bytes=300, most_loss=0.02, accuracy=accuracy)


def test_a_budget_that_four_bits_cannot_keep_says_what_they_save() -> None:
    with pytest.raises(InputError, match="151 bytes to save, 4 bits in every layer that can have them save 150"):
        allocate(found([(100, 0.1), (200, 0.2)]), save_bytes=151)
    with pytest.raises(InputError, match="comes with the function that measures it"):
        allocate(found([]), most_ms=1.0)


class Fragile(nn.Module):
    """Two like layers; the first one's small weights carry the answer beside large ones that meet zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.fragile, self.dw, self.sturdy = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 1, groups=6), nn.Conv2d(6, 6, 1)
        with torch.no_grad():
            self.fragile.weight[:, 1] = 40.0  # its input is nearly always zero
            self.sturdy.weight.copy_(torch.eye(6)[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sturdy(torch.relu(self.dw(self.fragile(x)))).mean((2, 3))


def test_the_fragile_layer_is_found_and_depthwise_ones_are_not_tried() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        graph = folded_graph(Fragile().eval())
    frames = np.random.default_rng(0).uniform(0, 1, (64, 4, 4, 2)).astype(np.float32)
    frames[..., 1] *= 1e-3
    points = rounding_points(graph, frames)
    ranges = calibrated(observe_points(graph, frames, points), QuantizeConfig(headroom=0))
    measured = measure_sensitivity(graph, ranges, frames, np.zeros(64, np.int64), bits=(4, 32))
    worst = measured.worst()
    assert [e.layer for e in worst] == ["fragile", "sturdy"]
    assert worst[0].distance > 10 * abs(worst[1].distance)
    assert {e.layer for e in measured.effects if e.bits == 32} == {"fragile", "dw", "sturdy"}
    assert measured == measure_sensitivity(graph, ranges, frames, np.zeros(64, np.int64), bits=(4, 32))


def test_the_report_says_what_was_lost_and_which_layers_hurt() -> None:
    report = QuantizationReport(
        QuantizeConfig(weight_bits=4), {"a": 4, "b": 8}, 500, 0.98, 0.95, 0.96, 600, 2000,
        (("conv", 0.2), ("fc", 0.1)), effects([(100, 0.5)]), ("clipped",),
    )  # fmt: skip
    text = "\n".join(report.lines())
    assert report.lost_points == pytest.approx(1.0)
    for part in ("600 B, 30%", "+1.00 points lost", "0.3 ms; most of it: conv 0.2 ms", "1 layers at 4", "l0 at 4 bits"):
        assert part in text
    assert report.as_data()["config"]["weight_bits"] == 4
    with pytest.raises(InputError, match="0 samples"):
        QuantizationReport(QuantizeConfig(), {}, 0, 1.0, None, None, 1, 1)


def test_a_report_is_made_of_answers() -> None:
    floats, ours, labels = np.eye(4), np.eye(4)[[0, 1, 2, 0]], np.array([0, 1, 0, 3])
    report = report_of(
        QuantizeConfig(), {"a": 8}, answers=ours, float_answers=floats, labels=labels, size_bytes=10,
        float_size_bytes=40, found=found([(10, 0.1), (10, 0.3)]),
    )  # fmt: skip
    assert (report.agreement, report.accuracy, report.float_accuracy) == (0.75, 0.5, 0.75)
    assert [e.layer for e in report.hurts] == ["l1", "l0"] and report.lost_points == pytest.approx(25)
    with pytest.raises(InputError, match=r"answers \(4, 4\) against \(3, 4\)"):
        report_of(
            QuantizeConfig(), {}, answers=ours, float_answers=floats[:3], labels=None, size_bytes=1, float_size_bytes=1
        )
    with pytest.raises(InputError, match="4 of 16 of the file's answers are not finite"):
        report_of(
            QuantizeConfig(), {}, answers=np.where(ours > 0, np.nan, ours), float_answers=floats, labels=labels,
            size_bytes=1, float_size_bytes=1,
        )  # fmt: skip
