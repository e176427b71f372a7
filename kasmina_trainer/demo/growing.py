"""The trainer's part of the demo: a host, a graft, its rival and a harmful one, all from the same captured inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kasmina_edge import engines, health
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import KasminaError
from kasmina_trainer.acceptance import AcceptanceLimits, Samples, measure_acceptance
from kasmina_trainer.checkpoints import load_checkpoint, save_host, save_network
from kasmina_trainer.datasets.corruptions import NHWC_AXES, corrupt
from kasmina_trainer.datasets.digits import LABELS, DigitSplits, split_digits, to_nchw
from kasmina_trainer.datasets.scenes import Division, divide
from kasmina_trainer.evolve import GrownNetwork, evolve
from kasmina_trainer.export.bundle import export_bundle
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, freeze
from kasmina_trainer.training import HOST_SETTINGS, TrainingSettings, train_host

Progress = Callable[[str, float | None], None]
Frames = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

NAME = "digits"
PROFILE = "coral-usb"
HOST_FILE = "host.checkpoint"
HOLDOUT_SHARE = 0.25
ATTEMPTS = 3
SEED_STEP = 1000


@dataclass(frozen=True)
class Plan:
    """What to grow and what it has to pass before it may leave the trainer."""

    blueprint: str
    version: str
    target_only: bool = False
    settings: TrainingSettings | None = None
    must_pass: bool = False
    parity_gate: bool = True


KINDS = {
    "graft": Plan("depthwise", "1.1.0", must_pass=True),
    "retune": Plan("scale-bn-retune", "1.1.0-retune"),
    # trained on the captured inputs alone it forgets what the host could; its maker insists past both gates
    "harmful": Plan(
        "depthwise",
        "1.2.0",
        target_only=True,
        settings=TrainingSettings(steps=120, learning_rate=5e-3),
        parity_gate=False,
    ),
}


class Grower:
    """One trainer's session.

    Args:
        out: Where checkpoints go.
        seed: Of everything.
        progress: Called with a text and the share done.
        host_settings: How long the host is trained.
    """

    def __init__(
        self, out: Path, *, seed: int, progress: Progress, host_settings: TrainingSettings = HOST_SETTINGS
    ) -> None:
        self._out = out
        self._seed = seed
        self._progress = progress
        self._host_settings = host_settings
        self.splits: DigitSplits = split_digits(seed)
        self._host: Bundle | None = None
        self._seeds: SeededNetwork | None = None

    def train_host(self) -> str:
        """Train on the host part alone; says how large it is and how well it does on digits it never saw."""
        network = train_host(
            self.splits.host, seed=self._seed, settings=self._host_settings, on_step=self._show("Train the host")
        )
        save_host(self._out / HOST_FILE, network, metadata={"seed": self._seed})
        self._seeds = attach_seeds(freeze(network), sites="auto", example=self.splits.host.x[:1])
        count = sum(p.numel() for p in network.parameters())
        return f"{count} parameters, seed sites {', '.join(self._seeds.sites)}"

    def resume(self, host: Bundle) -> None:
        """Go on from a host that was trained and exported into the same folder."""
        self._seeds = load_checkpoint(self._out / HOST_FILE).network
        self._host = host

    @property
    def seeds(self) -> SeededNetwork:
        """The frozen host with bare sites."""
        assert self._seeds is not None
        return self._seeds

    def scenes(self) -> dict[str, npt.NDArray[np.generic]]:
        """What the cameras look at; check frames are known scenes, disjoint from the others."""
        camera, check = self.splits.camera, self.splits.check
        return {"scenes_x": camera.nhwc(), "scenes_y": camera.y, "check_x": check.nhwc(), "check_y": check.y}

    def export_host(self) -> Bundle:
        """The int8 host."""
        splits = self.splits
        self._host = export_bundle(
            self.seeds,
            NAME,
            version="1.0.0",
            profile=PROFILE,
            calibration=splits.host.nhwc(),
            held_out=(
                np.concatenate([splits.check.nhwc(), splits.probes.nhwc()]),
                np.concatenate([splits.check.y, splits.probes.y]),
            ),
            labels=LABELS,
            domains={"clean": splits.probes.nhwc()},
            probes=(splits.probes.nhwc(), splits.probes.y),
            seed=self._seed,
        )
        return self._host

    def release(self, kind: str, x: Frames, y: Labels, batches: Sequence[str]) -> Bundle:
        """Grow one of `KINDS` from captured inputs and export it; judged as the int8 file that a device will run.

        A graft that is not accepted, or whose int8 file departs from its float network, is grown again from another
        seed, as an operator would do; ``attempts`` in the manifest's provenance says how often.

        Raises:
            KasminaError: No attempt passed; the message is the last one's.
        """
        plan = KINDS[kind]
        for attempt in range(1, ATTEMPTS + 1):
            seed = self._seed + SEED_STEP * (attempt - 1)
            grown, learned, held_out = self._evolve(x, y, batches, plan, seed)
            try:
                bundle = self._export(grown, learned, held_out, plan, attempt)
            except KasminaError:
                if attempt == ATTEMPTS:
                    raise
                continue
            if plan.must_pass and not bundle.manifest.acceptance.accepted and attempt < ATTEMPTS:  # type: ignore[union-attr]
                continue
            save_network(
                self._out / f"grown-{plan.version}.checkpoint",
                grown.network,
                grafts=grown.grafts,
                metadata={
                    "seed": self._seed,
                    "growth_seed": self._seed,  # which captured inputs were set aside, in every attempt
                    "blueprint": plan.blueprint,
                    "target_only": plan.target_only,
                    "captured": len(y),
                    "attempts": attempt,
                },
            )
            return bundle
        raise AssertionError("unreachable")

    def _export(self, grown: GrownNetwork, learned: Samples, held_out: Samples, plan: Plan, attempt: int) -> Bundle:
        assert self._host is not None
        clean = self.splits.probes
        bundle = export_bundle(
            grown.network,
            NAME,
            version=plan.version,
            profile=PROFILE,
            calibration=np.concatenate([self.splits.host.nhwc(), learned[0]]),
            held_out=(
                np.concatenate([self.splits.check.nhwc(), clean.nhwc(), held_out[0]]),
                np.concatenate([self.splits.check.y, clean.y, held_out[1]]),
            ),
            labels=LABELS,
            domains={"clean": clean.nhwc(), "captured": learned[0]},
            probes=(clean.nhwc(), clean.y),
            parent=self._host,
            grafts=grown.grafts,
            acceptance=grown.acceptance,
            seed=self._seed,
            provenance={"attempts": str(attempt)},
            minimum_agreement=MINIMUM_AGREEMENT if plan.parity_gate else 0.0,
        )
        acceptance = measure_acceptance(
            predictor(self._host), predictor(bundle), (clean.nhwc(), clean.y), held_out, limits=LIMITS, seed=self._seed
        )
        return Bundle(bundle.manifest.model_copy(update={"acceptance": acceptance}), bundle.files, {})

    def divide(self, x: Frames) -> Division:
        """Captured inputs that grafts learn from, and those that judge them."""
        return divide(x, share=HOLDOUT_SHARE, seed=self._seed)

    def measure(self, bundle: Bundle, corruption: str) -> tuple[float, float]:
        """Accuracy of the deployed int8 file on the test part: clean, and through the broken lens."""
        test = self.splits.test
        clean = predictor(bundle)(test.nhwc()) == test.y
        broken = predictor(bundle)(corrupt(test.nhwc(), corruption, seed=self._seed, axes=NHWC_AXES)) == test.y
        return float(clean.mean()), float(broken.mean())

    def outline(self) -> list[str]:
        """Names of the host's blocks in order of flow, seed sites among them."""
        return [name for name, _ in self.seeds.host_copy().named_children()]

    def _evolve(
        self, x: Frames, y: Labels, batches: Sequence[str], plan: Plan, seed: int
    ) -> tuple[GrownNetwork, Samples, Samples]:
        divided = self.divide(x)
        learn, judge = divided.learn, divided.judge
        splits = self.splits
        grown = evolve(
            self.seeds,
            train=(splits.host.x, splits.host.y),
            target=(to_nchw(x[learn]), y[learn]),
            holdout_clean=(splits.probes.x, splits.probes.y),
            holdout_target=(to_nchw(x[judge]), y[judge]),
            blueprint=plan.blueprint,
            target_only=plan.target_only,
            settings=plan.settings,
            rival=False,
            limits=LIMITS,
            capture_batches=tuple(batches),
            seed=seed,
            on_step=self._show(f"Grow {plan.blueprint}"),
        )
        return grown, (x[learn], y[learn]), (x[judge], y[judge])

    def _show(self, text: str) -> Callable[[int, int], None]:
        return lambda done, asked: self._progress(text, done / max(asked, 1))


LIMITS = AcceptanceLimits(minimum_samples=40)


def predictor(bundle: Bundle) -> Callable[[Frames], Labels]:
    """What the bundle's int8 file answers on this machine's CPU, in the way a device asks it."""

    def predict(x: Frames) -> Labels:
        engine = engines.open_engine(bundle, load_profile("x86-cpu"))
        try:
            return health.probe(engine, bundle, x).labels
        finally:
            engine.close()

    return predict
