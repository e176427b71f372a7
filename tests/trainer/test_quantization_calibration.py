"""Each calibration method wins on the distribution it is for, and frames that give no range are refused."""

from __future__ import annotations

import numpy as np
import pytest

from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.quantization import Observed, QuantizeConfig
from kasmina_trainer.quantization.calibration import calibrated, end_percentiles, range_by, require_frames, versions

RNG = np.random.default_rng(0)
UNIFORM = RNG.uniform(-1, 1, 40_000)
SPIKED = np.append(RNG.normal(0, 1, 40_000), [60.0])
HEAVY = RNG.standard_t(3, 40_000)


def seen(values: np.ndarray) -> Observed:
    return quantization.observe(lambda: iter([{"t": values}]))["t"]


def error(values: np.ndarray, ends: tuple[float, float]) -> float:
    step = (ends[1] - ends[0]) / 255
    return float(((np.clip(np.rint(values / step) * step, *ends) - values) ** 2).mean())


def by(method: str, values: np.ndarray, **more: float) -> float:
    return error(values, range_by(seen(values), QuantizeConfig.parse({"calibration": method, **more})))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_in_whichever_frame_it_is(place: int, value: float) -> None:
    frames = [{"conv/out": np.array([0.0, 1.0], np.float32)} for _ in range(3)]
    frames[place]["conv/out"][1] = value
    with pytest.raises(KasminaError, match=r"tensor conv/out.*int8 needs finite ones"):
        quantization.observe(lambda: iter(frames))


def test_a_tensor_of_almost_nothing_has_a_range() -> None:
    found = seen(np.array([0.0, 1e-40], np.float32))
    assert found.low == 0.0 and found.high > 0.0 and found.shares.sum() == 1.0


def test_min_max_keeps_everything_and_wins_where_every_value_counts() -> None:
    assert range_by(seen(UNIFORM), QuantizeConfig(calibration="minmax")) == (UNIFORM.min(), UNIFORM.max())
    assert by("minmax", UNIFORM) < by("percentile", UNIFORM, percentile=99.0)


def test_a_percentile_shuts_out_one_spike_that_min_max_lets_in() -> None:
    low, high = range_by(seen(SPIKED), QuantizeConfig(calibration="percentile", percentile=99.9))
    assert -4.5 < low < -2.5 and 2.5 < high < 4.5
    rest = SPIKED[:-1]
    ends = range_by(seen(SPIKED), QuantizeConfig(calibration="minmax"))
    assert error(rest, (low, high)) < 0.1 * error(rest, ends)


def test_mean_square_error_beats_min_max_on_heavy_tails_and_leaves_even_ones_alone() -> None:
    assert by("mse", HEAVY) < 0.95 * by("minmax", HEAVY)
    assert by("mse", SPIKED[:-1]) <= by("minmax", SPIKED[:-1])
    low, high = range_by(seen(UNIFORM), QuantizeConfig(calibration="mse"))
    assert low < -0.99 and high > 0.99
    assert range_by(seen(np.zeros(5)), QuantizeConfig(calibration="mse")) == (0.0, 0.0)


def test_a_percentile_keeps_the_share_it_names() -> None:
    for percentile in (90.0, 99.0, 99.9):
        low, high = end_percentiles(seen(HEAVY), percentile)
        inside = ((low <= HEAVY) & (high >= HEAVY)).mean()
        assert inside == pytest.approx(percentile / 100, abs=2e-3)


def test_a_percentile_leaves_a_relus_zero_alone() -> None:
    assert end_percentiles(seen(np.maximum(HEAVY, 0)), 99.0)[0] == 0.0
    assert end_percentiles(seen(np.zeros(9)), 99.0) == (0.0, 0.0)
    with pytest.raises(InputError, match="percentile 30"):
        end_percentiles(seen(HEAVY), 30)


def test_headroom_widens_the_inside_and_the_whole_range_is_the_second_version() -> None:
    observed = {"in": seen(UNIFORM), "t": seen(HEAVY)}
    wide = calibrated(observed, QuantizeConfig(headroom=0.5), border=("in",))
    tight = calibrated(observed, QuantizeConfig(headroom=0.0), border=("in",))
    assert wide["in"] == tight["in"]
    assert wide["t"][1] == pytest.approx(1.5 * tight["t"][1], rel=0.01)
    found = versions(observed, QuantizeConfig(), border=("in",))
    assert list(found) == ["mse", "minmax"]
    assert found["minmax"] == quantization.free_ranges(
        observed, headroom=quantization.HEADROOM, border=("in",), whole=True
    )
    assert list(versions(observed, QuantizeConfig(calibration="minmax"))) == ["minmax"]


def test_learned_ranges_take_the_places_of_calibrated_ones() -> None:
    observed = {"a": seen(UNIFORM), "b": seen(HEAVY)}
    found = versions(observed, QuantizeConfig(method="qat"), carried={"a": (-0.5, 0.5), "gone": (0.0, 1.0)})
    assert len(found) == 1
    (ranges,) = found.values()
    assert ranges["a"] == (-0.5, 0.5) and set(ranges) == {"a", "b"} and ranges["b"] != (-0.5, 0.5)


FRAMES = RNG.uniform(0, 1, (32, 4, 4, 1)).astype(np.float32)


def test_good_frames_pass() -> None:
    require_frames(FRAMES)
    require_frames(FRAMES, valid=(0.0, 1.0))


@pytest.mark.parametrize(
    ("frames", "valid", "message"),
    [
        (FRAMES[:5], None, r"5 frames, at least 16"),
        (np.where(np.arange(512).reshape(FRAMES.shape) == 40, np.nan, FRAMES), None, r"1 of 512 .*frame 2"),
        (np.full_like(FRAMES, 0.25), None, r"all 512 values are 0\.25"),
        (FRAMES * 255, (0.0, 1.0), r"values from 0\.\d+ to 25\d\.?\d*, 99\.\d% of them outside .* 0 to 1"),
        (FRAMES / 255, (0.0, 1.0), r"cover 0\.4% of the valid range 0 to 1; at least 1%"),
    ],
)
def test_frames_that_give_no_range_are_refused(
    frames: np.ndarray, valid: tuple[float, float] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        require_frames(frames, valid=valid)
