"""Intensity: files and overrides give checked levels, levels act on rate, width and gate, safety only lowers."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import traceback
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from kasmina_edge.contracts.record import BudgetLeft, SafetyScores, SeedTelemetry
from kasmina_edge.errors import InputError, StorageError
from kasmina_trainer.blueprints import blueprint_names, find_blueprint
from kasmina_trainer.intensity_scaler import (
    AXES,
    HIGHEST,
    REST,
    Change,
    Intensity,
    IntensitySettings,
    SafetyOverride,
    Signals,
    gate_value,
    load_intensities,
    lowered,
    rate_groups,
    signals_of,
    widened,
)
from kasmina_trainer.intensity_scaler.loading import CONF
from kasmina_trainer.seeds import SeededNetwork, SiteState
from kasmina_trainer.training import TrainingSettings, as_tensors, train

ROOT = Path(__file__).resolve().parents[2]
FACTORS = st.floats(0, 4, exclude_min=True)
LEVELS = st.builds(Intensity, learning_rate=FACTORS, width=FACTORS, gain=st.floats(0, 1))
FIGURES = st.none() | st.floats(allow_nan=True, allow_infinity=True)
SIGNALS = st.builds(Signals, FIGURES, FIGURES, st.sampled_from((None, "warning", "critical")))


def folder_with(tmp_path: Path, **files: str) -> Path:
    """A folder of one's own; a file for each blueprint, `intensity` for the main one."""
    folder = tmp_path / "own, with 'quotes'"
    (folder / "blueprints").mkdir(parents=True)
    for name, text in files.items():
        place = folder if name == "intensity" else folder / "blueprints"
        (place / f"{name.replace('_', '-')}.yaml").write_text(text)
    return folder


def test_every_blueprint_has_a_file_and_every_file_a_blueprint() -> None:
    assert {path.stem for path in (CONF / "blueprints").iterdir()} == set(blueprint_names())
    settings = load_intensities(blueprint_names())
    assert set(settings.blueprints) == set(blueprint_names())
    assert settings == IntensitySettings(blueprints=dict.fromkeys(blueprint_names(), Intensity()))


def test_a_file_of_ones_own_takes_the_place_of_the_packages(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, depthwise="gain: 0.5\n", low_rank_residual="width: 2\n")
    settings = load_intensities(folder=folder, overrides=["default.learning_rate=0.5", "ceilings.width=1.5"])
    assert settings.of("depthwise") == Intensity(learning_rate=0.5, gain=0.5)  # what the file leaves out is the default
    assert settings.of("low-rank-residual") == Intensity(learning_rate=0.5, width=1.5)
    assert settings.of("se") == Intensity()  # the package's own file says 1
    assert settings.of("anything") == Intensity(learning_rate=0.5)
    assert settings.levels()[REST] == settings.of("anything")
    assert settings.levels()["depthwise"] == settings.of("depthwise")


def test_the_main_file_may_be_ones_own(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, intensity="default: {gain: 0.25}\n")
    settings = load_intensities(folder=folder)
    assert settings.default == Intensity(gain=0.25)
    assert settings.ceilings == HIGHEST


def test_an_override_lowers_a_ceiling_and_never_raises_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, intensity="ceilings: {width: 1.5}\n")
    assert load_intensities(folder=folder, overrides=["ceilings.width=1"]).ceilings.width == 1.0
    with pytest.raises(InputError, match=r"width x 1\.5.*asked for .*width x 4"):
        load_intensities(folder=folder, overrides=["ceilings.width=4"])


def test_overrides_come_last_and_a_bare_number_is_the_gain(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, se="gain: 0.5\nwidth: 2.0\n")
    settings = load_intensities(
        folder=folder, overrides=["se.width=0.5", "se=0.75", "blueprints.se.learning_rate=1e-3"]
    )
    assert settings.of("se") == Intensity(learning_rate=1e-3, width=0.5, gain=0.75)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gain: 2.0", r"se\.yaml: blueprints\.se\.gain: input should be less than or equal to 1, got 2\.0"),
        ("width: 0", r"se\.yaml: blueprints\.se\.width: input should be greater than 0, got 0"),
        ("learning_rate: .nan", r"se\.yaml: blueprints\.se\.learning_rate"),
        ("gain: strong", r"se\.yaml: blueprints\.se\.gain: input should be a valid number, got 'strong'"),
        ("gain: true", r"se\.yaml: blueprints\.se\.gain: input should be a valid number, got True"),
        ("gian: 0.5", r"se\.yaml: blueprints\.se\.gian: unknown field"),
        ("- 1", r"se\.yaml"),
        ("gain: [", r"se\.yaml: cannot be composed"),
        ("gain: ${nothing.here}", r"cannot be composed"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_intensities(folder=folder_with(tmp_path, se=text))
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("gain: ${oc.env:KASMINA_SECRET}", "line 1: an interpolation"),
        ('gain: "\\x24{oc.env:KASMINA_SECRET}"', "line 1: an interpolation"),
        ("${oc.env:KASMINA_SECRET}: 1", "line 1: an interpolation"),
        ("defaults:\n  - ${oc.env:KASMINA_SECRET}", "line 1: unknown key defaults"),
        ("hydra:\n  searchpath: [file:///]", "line 1: unknown key hydra"),
        ("a: &a [1, 1]\nb: [*a, *a]", r"line 2: \*a is an alias"),
        ("gain: " + "[" * 3000 + "]" * 3000, "line 1: more than 8 levels"),
        ("# " + "x" * 70_000, "at most 65,536 bytes"),
    ],
)
@pytest.mark.parametrize("file", ["se", "intensity"])
def test_a_file_reaches_nothing_beyond_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, clause: str
) -> None:
    monkeypatch.setenv("KASMINA_SECRET", "hunter2")
    with pytest.raises(InputError, match=clause) as refused:
        load_intensities(folder=folder_with(tmp_path, **{file: text}))
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("se.gain=2", r"se\.yaml with se\.gain=2: blueprints\.se\.gain: .*less than or equal to 1, got 2"),
        ("se.gian=1", "'gian' is none of learning_rate, width, gain"),
        ("se.gain=high", "expected a number, got 'high'"),
        ("se.gain=nan", "expected a number, got 'nan'"),
        ("se.gain", r"expected NAME\.AXIS=NUMBER"),
        ("hydra.run.dir=/etc", r"expected NAME\.AXIS=NUMBER"),
        ("~se", r"expected NAME\.AXIS=NUMBER"),
        ("sea.gain=0.5", "no blueprint is called 'sea'"),
        ("default.gain=-1", r"intensity\.yaml with default\.gain=-1: default\.gain: .*greater than or equal to 0"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_intensities(blueprint_names(), overrides=[override])


def test_a_file_for_a_blueprint_that_there_is_not_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, depthwize="gain: 0.5\n")
    with pytest.raises(InputError, match=r"depthwize\.yaml: no blueprint is called 'depthwize'") as caught:
        load_intensities(blueprint_names(), folder=folder)
    assert "depthwise" in caught.value.next_step
    with pytest.raises(InputError, match="no such folder"):
        load_intensities(folder=tmp_path / "nowhere")


def test_hydra_of_the_program_around_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    OmegaConf.register_new_resolver("now", lambda text: f"mine {text}", replace=True)
    try:
        with initialize_config_dir(str(tmp_path), version_base="1.2"):
            before = GlobalHydra.instance()
            OmegaConf.register_new_resolver("now", lambda text: f"mine {text}", replace=True)
            load_intensities(overrides=["se=0.5"])
            assert GlobalHydra.instance() is before
            assert compose("theirs").a == 1
            assert OmegaConf.create({"t": "${now:x}"}).t == "mine x"
    finally:
        OmegaConf.clear_resolver("now")
    assert not GlobalHydra.instance().is_initialized()


def test_hydra_is_read_in_when_files_are() -> None:
    code = (
        "import sys, kasmina_trainer.intensity_scaler as scaler; assert 'hydra' not in sys.modules; "
        "scaler.load_intensities; assert 'hydra' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_may_load_at_once() -> None:
    found: list[IntensitySettings] = []
    threads = [
        threading.Thread(target=lambda gain=gain: found.append(load_intensities(overrides=[f"se={gain}"])))  # type: ignore[misc]
        for gain in (0.25, 0.5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(settings.of("se").gain for settings in found) == [0.25, 0.5]


@pytest.mark.parametrize(("axis", "value"), [("gain", 1.01), ("gain", -0.1), ("width", 0.0), ("learning_rate", 4.1)])
def test_levels_outside_their_ranges_are_refused(axis: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"level\.{axis}"):
        Intensity.parse({axis: value}, where="level")


def test_width_scales_what_a_blueprint_marks_and_gain_the_gate() -> None:
    config = find_blueprint("adapter").Config.parse({"bottleneck": 8})
    assert widened(config, Intensity(width=0.5)) == find_blueprint("adapter").Config.parse({"bottleneck": 4})
    assert gate_value(0.5, Intensity(gain=0.5)) == 0.25
    with pytest.raises(InputError, match=r"intensity 1\.5: expected 0 to 1"):
        gate_value(1.5, Intensity())


def test_rates_reach_the_optimizer_by_site(
    seeded: SeededNetwork, captured: tuple[object, object], digit_batch: torch.Tensor
) -> None:
    """At a factor next to nothing a site stays where it was, while the other learns; with factors of 1 both move."""

    def moved(levels: dict[str, Intensity]) -> dict[str, float]:
        network = seeded.fresh()
        for site in ("s1", "s2"):
            network.graft(site, "adapter", seed=1)
        before = {site: [p.detach().clone() for p in network.graft_parameters(site)] for site in ("s1", "s2")}
        parameters = {site: network.graft_parameters(site) for site in ("s1", "s2")}
        train(
            network,
            network.graft_parameters(),
            [as_tensors(captured, "cpu")],  # type: ignore[arg-type]
            settings=TrainingSettings(steps=6, batch=16, weight_decay=0.0),
            seed=0,
            groups=rate_groups(parameters, levels),
        )
        return {
            site: sum(float((p.detach() - q).abs().sum()) for p, q in zip(parameters[site], before[site], strict=True))
            for site in before
        }

    even, slow = moved({}), moved({"s2": Intensity(learning_rate=1e-6)})
    assert slow["s1"] > 0.5 * even["s1"]
    assert slow["s2"] < 1e-3 * even["s2"]
    with pytest.raises(InputError, match="intensity of s9: nothing learns there; s1, s2 learn"):
        rate_groups({"s1": [], "s2": []}, {"s9": Intensity()})


@given(now=LEVELS, signals=SIGNALS, ceilings=LEVELS)
def test_safety_never_raises(now: Intensity, signals: Signals, ceilings: Intensity) -> None:
    level, reason = lowered(now, signals, ceilings)
    assert level.at_most(now) and level.at_most(ceilings)
    assert bool(reason) == (not signals.calm or level != now)


@given(now=LEVELS, signals=SIGNALS)
def test_what_alarms_lowers_at_once(now: Intensity, signals: Signals) -> None:
    level, _ = lowered(now, signals)
    if signals.calm:
        assert level == now
    elif (now.gain > 1e-300 or signals.alert is None) and min(now.learning_rate, now.width) > 1e-300:
        smallest = 1e-9  # a drift or an overdraft by next to nothing may round to no change
        worst = signals.drift is not None and not signals.drift <= 1 + smallest
        spent = signals.budget_left is not None and not signals.budget_left >= -smallest
        assert not (worst or spent or (signals.alert and now.gain > 0)) or level != now


@given(now=LEVELS, drifts=st.tuples(st.floats(0, 9), st.floats(0, 9)))
def test_more_drift_never_leaves_more(now: Intensity, drifts: tuple[float, float]) -> None:
    less, more = sorted(drifts)
    assert lowered(now, Signals(drift=more))[0].at_most(lowered(now, Signals(drift=less))[0])


@pytest.mark.parametrize(
    ("signals", "level"),
    [
        (Signals(drift=2.0), Intensity(learning_rate=0.5, gain=0.5)),
        (Signals(drift=4.0), Intensity(learning_rate=0.01, gain=0.0)),
        (Signals(drift=math.nan), Intensity(learning_rate=0.01, gain=0.0)),
        (Signals(budget_left=-1.0), Intensity(learning_rate=0.5, width=0.5)),
        (Signals(alert="warning"), Intensity(gain=0.5)),
        (Signals(alert="critical"), Intensity(gain=0.0)),
        (Signals(drift=1.0, budget_left=0.0), Intensity()),
    ],
)
def test_the_rule_in_figures(signals: Signals, level: Intensity) -> None:
    assert lowered(Intensity(), signals)[0] == level


@given(course=st.lists(SIGNALS, max_size=12), asked=LEVELS)
def test_the_level_is_latched(course: list[Signals], asked: Intensity) -> None:
    override = SafetyOverride(asked)
    levels = [override.level, *(override.observe(signals) for signals in course)]
    assert all(after.at_most(before) for before, after in pairwise(levels))
    assert all(override.level.at_most(lowered(asked, signals)[0]) for signals in course)


def test_the_same_alarm_twice_lowers_once() -> None:
    override = SafetyOverride(Intensity())
    assert override.observe(Signals(drift=2.0)).gain == 0.5
    assert override.observe(Signals(drift=2.0)).gain == 0.5
    assert len(override.history) == 1 and override.history[0].reason == "drift 2, the line is 1"


def test_what_passes_stays_low_until_somebody_releases_it() -> None:
    asked: list[str] = []
    override = SafetyOverride(Intensity(gain=0.8))
    with pytest.raises(InputError, match="nothing to release"):
        override.release("why not", probe=asked.append)
    override.observe(Signals(alert="critical"))
    with pytest.raises(InputError, match="not released: critical alert"):
        override.release("looked into", probe=asked.append)
    assert override.observe(Signals(drift=0.2, budget_left=0.5)).gain == 0.0
    with pytest.raises(InputError, match="a reason is needed"):
        override.release(" ", probe=asked.append)
    assert override.held and not asked
    assert override.release("lens cleaned, by the operator", probe=asked.append) == Intensity(gain=0.8)
    assert asked == ["lens cleaned, by the operator"] and not override.held


def test_a_release_goes_through_probing_on_a_network(seeded: SeededNetwork, trained_host: nn.Module) -> None:
    seeded.graft("s1", "adapter", seed=0)
    with torch.no_grad():
        for parameter in seeded.graft_parameters():
            parameter.add_(0.1)
    seeded.accept()
    x = torch.rand(4, 1, 16, 16)
    whole = seeded(x)
    override = SafetyOverride(Intensity())
    seeded.set_intensity("s1", gate_value(1.0, override.observe(Signals(alert="critical"))))
    assert torch.equal(seeded(x), trained_host(x)) and seeded.states["s1"] is SiteState.ACTIVE
    override.observe(Signals())
    level = override.release("found harmless", probe=lambda reason: seeded.probe("s1", reason=reason))
    seeded.set_intensity("s1", gate_value(1.0, level))
    assert torch.equal(seeded(x), whole) and seeded.states["s1"] is SiteState.PROBING


def test_a_probe_that_is_refused_keeps_the_level_down() -> None:
    override = SafetyOverride(Intensity())
    override.observe(Signals(drift=3.0))
    override.observe(Signals(drift=0.5))

    def refuse(reason: str) -> None:
        raise InputError("the site is gone")

    with pytest.raises(InputError, match="the site is gone"):
        override.release("try", probe=refuse)
    assert override.held


def test_a_record_that_fails_never_keeps_a_level_up() -> None:
    told = SimpleNamespace(changes=list[Change](), full=True)

    def record(change: Change) -> None:
        if told.full:
            raise StorageError("disk full")
        told.changes.append(change)

    override = SafetyOverride(Intensity(), record=record)
    with pytest.raises(StorageError):
        override.observe(Signals(alert="critical"))
    assert override.level.gain == 0.0
    override.observe(Signals())
    with pytest.raises(StorageError):
        override.release("try", probe=lambda reason: None)
    assert override.level.gain == 0.0
    told.full = False
    override.release("try", probe=lambda reason: None)
    assert [(change.before.gain, change.after.gain) for change in told.changes] == [(0.0, 1.0)]


def test_signals_are_read_from_telemetry() -> None:
    row = SeedTelemetry(
        site="s1", budget=BudgetLeft(parameters=-100, latency_us=50.0), safety=SafetyScores(drift=1.5, alert=1)
    )
    assert signals_of(row) == Signals(drift=1.5, alert="warning")
    assert signals_of(row, parameters=200, latency_us=150.0) == Signals(drift=1.5, budget_left=-1.0, alert="warning")
    assert signals_of(row, latency_us=150.0).budget_left == 0.25
    assert signals_of(row, parameters=100).budget_left == -math.inf  # nothing is allowed any more
    assert signals_of(SeedTelemetry(site="s1")) == Signals()
    width = lowered(Intensity(), signals_of(row, parameters=200))[0].width
    assert 200 * width == 100  # what the plan allows


def test_the_axes_are_those_of_the_level() -> None:
    assert tuple(Intensity.model_fields) == AXES
