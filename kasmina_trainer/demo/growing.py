"""The trainer's part of the demo: a host, a graft, its rival and a harmful one, all from the same captured inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kasmina_edge import engines, health
from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT
from kasmina_edge.contracts.profile import load_profile
from kasmina_trainer.acceptance import AcceptanceLimits, Samples, measure_acceptance
from kasmina_trainer.checkpoints import load_checkpoint, save_host, save_network
from kasmina_trainer.datasets.corruptions import NHWC_AXES, corrupt
from kasmina_trainer.datasets.digits import LABELS, DigitSplits, split_digits, to_nchw
from kasmina_trainer.datasets.scenes import set_aside
from kasmina_trainer.evolve import GrownNetwork, evolve
from kasmina_trainer.export.bundle import export_bundle
from kasmina_trainer.seeds import SeededNetwork, attach_seeds, freeze
from kasmina_trainer.training import TrainingSettings, train_host

Progress = Callable[[str, float | None], None]
Frames = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

NAME = "digits"
PROFILE = "coral-usb"
HOST_FILE = "host.checkpoint"
HOLDOUT_SHARE = 0.25
HARMFUL = TrainingSettings(steps=120, learning_rate=5e-3)


class Grower:
    """One trainer's session.

    Args:
        out: Where checkpoints go.
        seed: Of everything.
        progress: Called with a text and the share done.
    """

    def __init__(self, out: Path, *, seed: int, progress: Progress) -> None:
        self._out = out
        self._seed = seed
        self._progress = progress
        self.splits: DigitSplits = split_digits(seed)
        self._host: Bundle | None = None
        self._seeds: SeededNetwork | None = None

    def train_host(self) -> str:
        """Train on the host part alone; says how large it is and how well it does on digits it never saw."""
        network = train_host(self.splits.host, seed=self._seed, on_step=self._show("Train the host"))
        save_host(self._out / HOST_FILE, network)
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

    def grow(self, x: Frames, y: Labels, batches: Sequence[str]) -> tuple[GrownNetwork, Samples, Samples]:
        """A depthwise graft from captured inputs and the clean set."""
        return self._evolve(x, y, batches, blueprint="depthwise")

    def retune(self, x: Frames, y: Labels, batches: Sequence[str]) -> tuple[GrownNetwork, Samples, Samples]:
        """The cheapest rival: scale and shift of every channel, merged into a new host."""
        return self._evolve(x, y, batches, blueprint="scale-bn-retune")

    def grow_harmful(self, x: Frames, y: Labels, batches: Sequence[str]) -> tuple[GrownNetwork, Samples, Samples]:
        """The same blueprint trained on the captured inputs alone: it forgets what the host could."""
        return self._evolve(x, y, batches, blueprint="depthwise", target_only=True, settings=HARMFUL)

    def export_grown(
        self, grown: tuple[GrownNetwork, Samples, Samples], version: str, *, insist: bool = False
    ) -> Bundle:
        """The int8 form, judged again as the file that a device will run; ``insist`` overrides the parity gate."""
        network, learned, held_out = grown
        assert self._host is not None
        clean = self.splits.probes
        bundle = export_bundle(
            network.network,
            NAME,
            version=version,
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
            grafts=network.grafts,
            acceptance=network.acceptance,
            seed=self._seed,
            minimum_agreement=0.0 if insist else MINIMUM_AGREEMENT,
        )
        acceptance = measure_acceptance(
            predictor(self._host), predictor(bundle), (clean.nhwc(), clean.y), held_out, limits=LIMITS, seed=self._seed
        )
        save_network(self._out / f"grown-{version}.checkpoint", network.network, grafts=network.grafts)
        return Bundle(bundle.manifest.model_copy(update={"acceptance": acceptance}), bundle.files, {})

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
        self,
        x: Frames,
        y: Labels,
        batches: Sequence[str],
        *,
        blueprint: str,
        target_only: bool = False,
        settings: TrainingSettings | None = None,
    ) -> tuple[GrownNetwork, Samples, Samples]:
        judge = set_aside(x, share=HOLDOUT_SHARE, seed=self._seed)
        learn = ~judge
        splits = self.splits
        grown = evolve(
            self.seeds,
            train=(splits.host.x, splits.host.y),
            target=(to_nchw(x[learn]), y[learn]),
            holdout_clean=(splits.probes.x, splits.probes.y),
            holdout_target=(to_nchw(x[judge]), y[judge]),
            blueprint=blueprint,
            target_only=target_only,
            settings=settings,
            rival=False,
            limits=LIMITS,
            capture_batches=tuple(batches),
            seed=self._seed,
            on_step=self._show(f"Grow {blueprint}"),
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
