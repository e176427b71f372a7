"""What a search leaves: a page, its figures as JSON, the chosen file, and a recipe that makes it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasmina_edge.cli.output import size_text
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator import HardwareContext, read_workload
from kasmina_edge.storage import make_private_folder, write_durable
from kasmina_trainer.optimize.choosing import Goals, Loss, Point, confirmation
from kasmina_trainer.optimize.recipes import RecipeFile, write_recipe
from kasmina_trainer.optimize.search import Found, Identity
from kasmina_trainer.pages.charts import Spot, side_by_side, trade_off
from kasmina_trainer.pages.document import Content, Markup, document, facts, paragraphs, section, table
from kasmina_trainer.pages.figure import number
from kasmina_trainer.pages.hardware import hardware_sections

RECIPE, FIGURES, PAGE, MODEL = "recipe.json", "optimize.json", "optimize.html", "model.tflite"


@dataclass(frozen=True)
class Outcome:
    """A finished search with what it was asked.

    Attributes:
        name: Of the network, for people.
        profile: The target.
        goals: What was asked for.
        found: The search's result.
        float_accuracy: Share of 1, on the inputs that recipes were chosen by; None without labels.
        float_bytes: Of the network's weights in float32.
        confirmed: The chosen file's loss on inputs that nothing was chosen by.
        identity: What the candidates depend on.
    """

    name: str
    profile: HardwareProfile
    goals: Goals
    found: Found
    float_accuracy: float | None
    float_bytes: int
    confirmed: Loss | None
    identity: Identity

    @property
    def confirmation(self) -> str:
        """What fresh inputs say of the chosen recipe; "" where none was chosen or asked."""
        return self._confirmed()[0]

    @property
    def refuted(self) -> bool:
        """Whether fresh inputs prove that the chosen recipe loses more than is asked for."""
        return self._confirmed()[1]

    @property
    def keeps_goals(self) -> bool:
        """A recipe was chosen, and fresh inputs do not refute it."""
        return self.found.chosen is not None and not self.refuted

    def _confirmed(self) -> tuple[str, bool]:
        index = self.found.verdict.index
        if index is None or self.confirmed is None:
            return "", False
        return confirmation(self.found.points[index].loss, self.confirmed, self.goals)

    def recipe(self) -> RecipeFile | None:
        """The recipe of the chosen file; None when none was chosen."""
        candidate, index = self.found.chosen, self.found.verdict.index
        if candidate is None or index is None:
            return None
        point = self.found.points[index]
        measured = {
            "loss_points": round(point.loss.mean, 4), "size_bytes": point.size_bytes,
            "latency_ms": point.latency_ms, "band": point.band,
        }  # fmt: skip
        return RecipeFile(
            recipe=candidate.recipe, model=self.identity.model, data=self.identity.data,
            versions=dict(self.identity.versions), profile=self.profile.name, file=candidate.digest, measured=measured,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        verdict = self.found.verdict
        points = []
        for i, p in enumerate(self.found.points):
            points.append(
                {
                    "recipe": self.found.candidates[i].recipe.model_dump(mode="json"), "name": p.name,
                    "loss_points": p.loss.mean, "loss_low": p.loss.low, "loss_high": p.loss.high,
                    "samples": p.loss.samples, "size_bytes": p.size_bytes, "latency_ms": p.latency_ms, "band": p.band,
                    "fits": p.fits, "misses": list(verdict.misses[i]), "front": i in verdict.front,
                    "file": self.found.candidates[i].digest, "seconds": round(self.found.candidates[i].seconds, 1),
                }
            )  # fmt: skip
        return {
            "network": self.name,
            "profile": self.profile.name,
            "goals": vars(self.goals),
            "float_accuracy": self.float_accuracy,
            "float_weight_bytes": self.float_bytes,
            "points": points,
            "not_tried": [
                {"name": t.offer.recipe.name, "why": t.note} for t in self.found.tried if t.candidate is None
            ],
            "chosen": verdict.index,
            "reasons": list(verdict.reasons),
            "confirmed": None if self.confirmed is None else vars(self.confirmed),
            "confirmation": self.confirmation,
            "keeps_goals": self.keeps_goals,
            "model": self.identity.model,
            "data": self.identity.data,
            "versions": dict(self.identity.versions),
        }  # fmt: skip


def write_outcome(outcome: Outcome, out: Path) -> dict[str, Path]:
    """Write everything into a folder; files of an earlier search that do not belong to this one are removed.

    Raises:
        StorageError: The disk refused.
    """
    make_private_folder(out)
    text = json.dumps(outcome.as_dict(), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_durable(out / FIGURES, text.encode() + b"\n", mode=0o644)
    write_durable(out / PAGE, outcome_page(outcome).encode(), mode=0o644)
    left = {"page": out / PAGE, "figures": out / FIGURES}
    candidate, made = outcome.found.chosen, outcome.recipe()
    if candidate is None or made is None:
        for name in (RECIPE, MODEL):
            (out / name).unlink(missing_ok=True)
        return left
    write_durable(out / MODEL, candidate.data, mode=0o644)
    write_recipe(out / RECIPE, made)
    return {"model": out / MODEL, "recipe": out / RECIPE, **left}


def outcome_page(outcome: Outcome) -> str:
    """The page: what was chosen and why, what else there was, and what the chosen file costs where."""
    found, chosen = outcome.found, outcome.found.chosen
    title = f"{outcome.name} for {outcome.profile.name}"
    taken = (
        f"{chosen.recipe.name} was chosen of {len(found.points)} recipes." if chosen else "No recipe keeps the goals."
    )
    if outcome.refuted:
        taken = f"{taken[:-1]}, and fresh inputs refute it: the goals are not kept."
    told = [*found.verdict.reasons, *filter(None, [outcome.confirmation])]
    sections = [
        section("The choice", facts(_chosen_facts(outcome)), paragraphs(told)),
        section("What is lost for what is saved", _trade_offs(outcome), _points_table(outcome), _not_tried(outcome)),
    ]
    if chosen is not None:
        sections += _hardware(chosen.data, outcome)
    return document(title, f"{taken} Asked for: {_asked(outcome.goals)}.", sections)


def _chosen_facts(outcome: Outcome) -> list[tuple[str, Content]]:
    index = outcome.found.verdict.index
    accuracy = "unknown: no labels" if outcome.float_accuracy is None else f"{outcome.float_accuracy:.2%}"
    known: list[tuple[str, Content]] = [
        ("float accuracy", accuracy), ("float weights", size_text(outcome.float_bytes))
    ]  # fmt: skip
    if index is None:
        return known
    point = outcome.found.points[index]
    confirmed = outcome.confirmed
    return [
        ("chosen", point.name),
        ("points lost", _loss_text(point.loss)),
        ("on fresh inputs", None if confirmed is None else _loss_text(confirmed)),
        ("file", size_text(point.size_bytes)),
        ("latency", latency_text(point)),
        *known,
    ]  # fmt: skip


def _loss_text(loss: Loss) -> str:
    return f"{loss.mean:.2f} ({loss.low:.2f} to {loss.high:.2f})"


def latency_text(point: Point) -> str:
    """``0.9 ms ± 15 %``."""
    if point.latency_ms is None:
        return "unknown"
    band = "band unknown" if point.band is None else f"± {100 * point.band:.0f} %"
    return f"{number(point.latency_ms)} ms {band}"


def _asked(goals: Goals) -> str:
    parts = [
        None if goals.max_loss is None else f"at most {goals.max_loss:g} points lost",
        None if goals.max_ms is None else f"at most {goals.max_ms:g} ms",
        None if goals.max_kb is None else f"at most {goals.max_kb:g} kB",
    ]
    return ", ".join(p for p in parts if p) or "the best there is"


def _trade_offs(outcome: Outcome) -> Markup:
    found, goals = outcome.found, outcome.goals
    by_size = trade_off(
        [_spot(outcome, i, p.size_bytes / 1000, None) for i, p in enumerate(found.points)],
        "Accuracy lost against size", "file, kB", "points lost",
        "Whiskers: 95 % interval of the paired difference. Green: chosen; grey: misses a goal.",
        x_goal=goals.max_kb, y_goal=goals.max_loss,
    )  # fmt: skip
    timed = [(i, p) for i, p in enumerate(found.points) if p.latency_ms is not None]
    if not timed:
        return by_size
    by_time = trade_off(
        [_spot(outcome, i, p.latency_ms or 0.0, p.band) for i, p in timed],
        "Accuracy lost against latency", "latency, ms", "points lost",
        "Whiskers across: the estimate's band"
        + (", which is unknown here" if any(p.band is None for _, p in timed) else "")
        + ". No choice rests on a difference smaller than it.",
        x_goal=goals.max_ms, y_goal=goals.max_loss, from_zero=True,
    )  # fmt: skip
    return side_by_side(by_size, by_time)


def _spot(outcome: Outcome, i: int, x: float, band: float | None) -> Spot:
    point, verdict = outcome.found.points[i], outcome.found.verdict
    return Spot(
        i + 1, point.name, x, point.loss.mean,
        None if band is None else x * (1 - band), None if band is None else x * (1 + band),
        point.loss.low, point.loss.high, chosen=i == verdict.index, front=i in verdict.front,
        allowed=not verdict.misses[i],
    )  # fmt: skip


def _points_table(outcome: Outcome) -> Markup:
    verdict = outcome.found.verdict
    rows: list[Sequence[Content]] = []
    for i, p in enumerate(outcome.found.points):
        if i == verdict.index:
            state = "chosen, refuted by fresh inputs" if outcome.refuted else "chosen"
        else:
            state = "; ".join(verdict.misses[i]) or "keeps the goals"
        rows.append(
            (f"{i + 1}  {p.name}", f"{p.loss.mean:.2f}", f"{p.loss.low:.2f} to {p.loss.high:.2f}",
             number(p.size_bytes / 1000), latency_text(p), state)
        )  # fmt: skip
    columns = ("recipe", "points lost", "95 % interval", "kB", "latency", "")
    marked = () if verdict.index is None else (verdict.index,)
    return table(columns, rows, caption="Every recipe that was made", numbers=(1, 2, 3, 4), marked=marked)


def _not_tried(outcome: Outcome) -> Markup:
    return paragraphs(
        (f"Not made: {t.offer.recipe.name} ({t.note})." for t in outcome.found.tried if t.candidate is None),
        class_="small",
    )


def _hardware(data: bytes, outcome: Outcome) -> Sequence[Markup]:
    workload = read_workload(data, outcome.name)
    try:
        estimate = HardwareContext(outcome.profile).estimate(workload)
    except InputError as exc:
        return [section("What it costs there", paragraphs([f"{exc.message}. {exc.next_step}"]))]
    return hardware_sections(workload, estimate, outcome.profile)
