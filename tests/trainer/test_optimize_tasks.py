"""``optimize`` on a real small network: tasks, builders, plans, and the verb from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimize import FILE, MCU, X86, Maker, recipe
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.cli import main
from kasmina_trainer.export.float_tflite import FloatNetwork
from kasmina_trainer.export.tflite import export_tflite
from kasmina_trainer.optimize import building
from kasmina_trainer.optimize.building import Builder, Task, module_digest
from kasmina_trainer.optimize.candidates import CandidateStore, key_of
from kasmina_trainer.optimize.choosing import Goals
from kasmina_trainer.optimize.optimizing import Optimizing, Settings, price_on, rerun
from kasmina_trainer.optimize.outcome import MODEL, PAGE, RECIPE
from kasmina_trainer.optimize.recipes import read_recipe
from kasmina_trainer.optimize.samples import Frames, halves, read_frames
from kasmina_trainer.optimize.search import Cost
from kasmina_trainer.optimize.tasks import LEAST_FRAMES, LEAST_ROWS, read_task, split_task


class Small(nn.Module):
    """Some hundred parameters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.conv = nn.Conv2d(1, 4, 3, 2, 1)
            self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) to (N, 3)."""
        x = torch.relu(self.conv(x)).mean((2, 3), keepdim=True).flatten(1)
        answer: torch.Tensor = self.head(x)
        return answer


def frames(count: int = 300) -> Frames:
    x = np.random.default_rng(0).uniform(0, 1, (count, 8, 8, 1)).astype(np.float32)
    with torch.no_grad():
        y = Small().eval()(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy().argmax(1)
    return Frames((x,), y.astype(np.int64), "drawn")


def task() -> Task:
    return split_task(Small().eval(), frames(), 0)


def test_the_three_parts_have_no_row_in_common() -> None:
    made = task()
    rows = [{x.tobytes() for x in part} for part in (made.learn, made.held_out, made.final)]
    assert [len(r) for r in rows] == [180, 60, 60]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    again = task()
    assert made.data_digest() == again.data_digest() and made.model_digest() == again.model_digest()
    assert split_task(Small().eval(), frames(), 1).data_digest() != made.data_digest()
    other = Small().eval()
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    assert module_digest(other) != made.model_digest()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=40), st.integers(0, 5))
def test_a_frame_that_repeats_is_in_one_part_only(times: list[int], seed: int) -> None:
    x = np.repeat(np.arange(len(times), dtype=np.float32), times)[np.random.default_rng(seed).permutation(sum(times))]
    made = split_task(nn.Identity(), Frames((x.reshape(-1, 1, 1, 1),), np.arange(len(x)), "repeats"), seed)
    parts = [{float(v) for v in part.ravel()} for part in (made.learn, made.held_out, made.final)]
    assert sum(map(len, parts)) == len(times) and len(made.learn) + len(made.held_out) + len(made.final) == len(x)
    for part, labels in (
        (made.learn, made.learn_labels), (made.held_out, made.labels), (made.final, made.final_labels)
    ):  # fmt: skip
        assert labels is not None and (x[labels] == part.ravel()).all(), "every frame keeps its label"


def test_a_split_by_row_would_have_leaked() -> None:
    x = np.repeat(np.arange(60, dtype=np.float32), 5)
    learn, rest = halves(len(x), 0.6, 0)
    assert set(x[learn]) & set(x[rest])
    with pytest.raises(InputError, match="9 frames, 1 of them different: no three parts"):
        split_task(Small(), Frames((np.zeros((9, 8, 8, 1), np.float32),), None, "x"), 0)


def test_repeats_do_not_count_as_frames(tmp_path: Path, trained: Path) -> None:
    drawn = np.random.default_rng(0).normal(size=(249, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "f.npz", x=np.concatenate([drawn, drawn]))
    with pytest.raises(InputError, match="498 frames, 249 of them different, at least 250 are needed") as told:
        read_task(trained, str(tmp_path / "f.npz"))
    assert "Record 1 more" in told.value.next_step


def test_data_that_cannot_judge_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 8, 8, 1), np.float32), y=np.zeros(3, np.int64))
    with pytest.raises(InputError, match=r"labels \(3,\) int64, expected \(4,\)"):
        read_frames(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", z=np.zeros(3))
    with pytest.raises(InputError, match="no array is called x or input0, it holds z"):
        read_frames(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK rubbish")
    with pytest.raises(InputError, match="not a file of plain arrays"):
        read_frames(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=np.array([object()]))
    with pytest.raises(InputError, match="not a file of plain arrays"):
        read_frames(tmp_path / "x.npz")
    with pytest.raises(InputError, match="2 inputs; recipes are made for networks with one"):
        split_task(Small(), Frames((np.zeros((9, 2)), np.zeros((9, 2))), None, "x"), 0)


@pytest.mark.parametrize("count", [4, 240, LEAST_FRAMES - 1])
def test_too_few_frames_name_the_limit_the_file_and_the_way_on(tmp_path: Path, trained: Path, count: int) -> None:
    data = tmp_path / "few.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(count, 8, 8, 1)).astype(np.float32))
    with pytest.raises(InputError, match=rf"few\.npz: {count} frames, at least 250 are needed") as told:
        read_task(trained, str(data))
    assert f"Record {250 - count} more" in told.value.next_step and str(trained) not in told.value.message


def test_the_least_number_of_frames_is_enough(tmp_path: Path, trained: Path) -> None:
    data = tmp_path / "enough.npz"
    np.savez(data, x=np.random.default_rng(0).normal(size=(LEAST_FRAMES, 8, 8, 1)).astype(np.float32))
    task = read_task(trained, str(data))
    assert min(len(task.learn), len(task.held_out), len(task.final)) == LEAST_ROWS


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network as a user's file."""
    path = tmp_path_factory.mktemp("small") / "small.pt2"
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(1, 1, 8, 8),)), path)
    return path


def test_a_network_that_is_no_classifier_is_refused() -> None:
    made = task()
    with pytest.raises(InputError, match=r"the network answers \(4, 4, 4\) a frame"):
        Builder(replace(made, module=made.module.conv))  # type: ignore[arg-type]


def test_a_recipe_that_prunes_needs_a_pruner() -> None:
    with pytest.raises(InputError, match="it prunes, and no pruner is installed"):
        Builder(task()).build(recipe("p").model_copy(update={"prune": 0.5}))


def test_the_plan_knows_what_is_kept_and_what_training_costs(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    made = Optimizing(
        task(), "small", X86, Goals(), settings=Settings(qat_steps=50), store=CandidateStore(tmp_path),
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    plan = made.plan()
    assert [p.offer.recipe.name for p in plan] == [o.recipe.name for o in made.offers]
    assert not any(p.kept for p in plan)
    assert plan[-1].seconds == pytest.approx(plan[0].seconds + 50 * 6.0), "a pass took one tick"
    key = key_of(plan[0].offer.recipe, made.identity.model, made.identity.data, made.identity.versions)
    CandidateStore(tmp_path).put(key, Maker()(plan[0].offer.recipe))
    assert [p.kept for p in made.plan()] == [True] + [False] * (len(plan) - 1)


def test_a_dry_run_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(1, 1, 8, 8),)), tmp_path / "small.pt2")
    drawn = frames()
    np.savez(tmp_path / "x.npz", x=drawn.inputs[0], y=drawn.labels)
    call = ["optimize", str(tmp_path / "small.pt2"), "--profile", "x86-cpu", "--data", str(tmp_path / "x.npz")]
    out = ["--out", str(tmp_path / "out")]
    assert main([*call, *out, "--max-loss", "0.5", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan[0]["recipe"]["name"] == "ptq mse" and not plan[0]["kept"]
    assert not (tmp_path / "out").exists()
    assert main([*call, *out, "--dry-run"]) == 0
    assert "trains against the rounding" in capsys.readouterr().out
    for more, told in (
        (["--max-loss", "-1"], "max-loss: expected a number above 0"),
        (["--minutes", "0"], "--minutes 0: expected more than 0"),
        (["--recipe", str(tmp_path / "gone.json")], "no such recipe"),
        (["--profile", "corral"], "no profile is called"),
    ):
        assert main([*call, *out, *more]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert main(["optimize", str(tmp_path / "small.pt2")]) == 2
    assert "no data to judge recipes by" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_leaves_a_recipe_that_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(1, 1, 8, 8),)), tmp_path / "small.pt2")
    drawn = frames()
    np.savez(tmp_path / "x.npz", x=drawn.inputs[0], y=drawn.labels)
    call = ["optimize", str(tmp_path / "small.pt2"), "--profile", "stm32l4r5", "--data", str(tmp_path / "x.npz")]
    out = tmp_path / "out"
    assert main([*call, "--out", str(out), "--max-loss", "5", "--max-ms", "50", "--qat-steps", "20"]) == 0
    assert "smoke run" in capsys.readouterr().err
    first = (out / MODEL).read_bytes()
    page = (out / PAGE).read_text()
    assert "Where the time goes" in page and "What is lost for what is saved" in page
    assert main([*call, "--out", str(tmp_path / "again"), "--recipe", str(out / RECIPE)]) == 0
    assert (tmp_path / "again" / MODEL).read_bytes() == first
    began = sorted(p.stat().st_mtime_ns for p in (out / "candidates").rglob("*"))
    assert main([*call, "--out", str(out), "--max-loss", "5", "--max-ms", "50", "--qat-steps", "20"]) == 0
    assert "kept from before" in capsys.readouterr().err
    assert sorted(p.stat().st_mtime_ns for p in (out / "candidates").rglob("*")) == began
    assert (out / MODEL).read_bytes() == first
    made = read_recipe(out / RECIPE).model_copy(update={"data": "0" * 64})
    with pytest.raises(InputError, match="the recipe was made with 000000000000"):
        rerun(made, split_task(Small().eval(), drawn, 0), tmp_path)


def test_a_profile_without_figures_tells_no_latency() -> None:
    assert price_on(MCU)(FILE).latency_ms is not None
    bare = MCU.model_copy(update={"anchors": (), "coefficients": {}})
    assert price_on(bare)(FILE) == Cost(None, None)


def test_recipes_that_leave_the_weights_alone_share_one_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given, calls = task(), [], []
    files = {"made": b"made"}
    monkeypatch.setattr(building, "convert", lambda *args, **kw: calls.append(1) or "converted")
    monkeypatch.setattr(building, "litert_logits", lambda data, x: np.zeros((len(x), 3), np.float32))

    def export(module: nn.Module, **more: Any) -> Any:
        given.append(more["network"])
        return SimpleNamespace(data=files["made"], chosen=SimpleNamespace(name="free"))

    monkeypatch.setattr(building, "export_tflite", export)
    builder = Builder(made)
    for one in (recipe("8 bits", calibration="minmax"), recipe("other"), recipe("equalised", equalize=True)):
        builder.build(one)
    Builder(made.small(200), like=builder).build(recipe("8 bits"))
    assert given == ["converted", "converted", None, "converted"], "other weights need a conversion of their own"
    assert len(calls) == 1


@pytest.mark.slow
def test_a_shared_conversion_gives_the_same_bytes() -> None:
    alone = Builder(task())
    vars(alone)["float_network"] = None
    plain = recipe("8 bits", calibration="minmax")
    assert alone.build(plain).data == Builder(task()).build(plain).data


def test_a_conversion_for_other_frames_is_refused() -> None:
    made = task()
    network = FloatNetwork(b"", (), (), (), (1, 4, 4, 1))
    with pytest.raises(InputError, match=r"takes \(1, 4, 4, 1\), the frames are \(1, 8, 8, 1\)"):
        export_tflite(made.module, calibration=made.learn, held_out=made.held_out, network=network)
