"""MNIST-C, attacks, the detector and the denoising graft: what a small frozen host withstands, and what growing adds.

A host of 56,346 parameters learns clean MNIST and stays frozen. A recipe of removable grafts and full fine-tuning learn
from the same clean and wrong rows for the same steps; forms are chosen on validation rows of the first host, figures
are test rows', means over the seeds. Attacks are run on the host's float network and, by asking it, on its int8 file
through the runtime; the detector's scores are those that the device gives.

``python -m benchmarks.domain_mnist_c --minutes 60`` trains what is missing and prints the table; what is there is kept.
The forms on Fashion-MNIST are trained with ``--fashion`` alone, and shown where they are kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._mnist_c_attacks import attack_rows
from benchmarks._mnist_c_cells import Line, Size, kept, line, place
from benchmarks._mnist_c_fit import Form
from benchmarks.quantize import row
from kasmina_trainer.adversarial import denoiser, quality
from kasmina_trainer.adversarial.denoiser import DenoiserSettings, Restored, evaluate_denoiser, train_denoiser
from kasmina_trainer.adversarial.mnist_c import KINDS
from kasmina_trainer.seeds import attach_seeds
from kasmina_trainer.training import TrainingSettings

SEEDS, TUNED_ON = 3, 0
MINUTES = 60.0
MEAN_TARGET, CLEAN_TARGET, SHARE_TARGET, DENOISED_TARGET = 95.0, 0.3, 0.9, 95.0
MOST_PARAMETERS = 60_000
STEPS, RANK = 1000, 16
FULL, RECIPE = "full fine-tuning", "recipe"
WHOLE, FASHION = Size(), Size(data="Fashion-MNIST")
SMALL = Size(host_steps=60, train_rows=900, validation_rows=300, test_rows=90, device_rows=0)


def _settings(rate: float, keep: float = 0.5) -> TrainingSettings:
    return TrainingSettings(steps=STEPS, batch=128, learning_rate=rate, keep=keep)


PLAN: dict[str, list[Form]] = {
    RECIPE: [Form(RECIPE, _settings(1e-2), rank=RANK)],
    FULL: [Form(FULL, _settings(rate)) for rate in (5e-3, 1e-2)],
}


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Accuracies before and after growing, the denoiser's, and what attacks and the detector do."""
    if quick:
        plan = {name: replace(forms[0], settings=_short(forms[0].settings)) for name, forms in PLAN.items()}
        found = _collected(plan, SMALL, [0], keep=False)
        settings = DenoiserSettings(steps=12, batch=16, looks=1)
        out = _growth_rows(found, 1) + _denoiser_rows([_denoised(0, SMALL, settings)])
        return [{**each, "target": None, "ok": True} for each in out + attack_rows(place(0, SMALL), quick=True)]
    return _table(MINUTES)


def _table(minutes: float, *, fashion: bool = False) -> list[dict[str, Any]]:
    found, clothing = _everything(minutes, fashion)
    if not found[RECIPE]:
        raise RuntimeError(f"no host is whole after {minutes:g} minutes: python -m benchmarks.domain_mnist_c goes on")
    denoised = [_kept_denoised(seed) for seed in range(SEEDS)]
    out = _growth_rows(found, SEEDS) + _fashion_rows(clothing) + _denoiser_rows(denoised)
    return out + attack_rows(place(TUNED_ON, WHOLE))


Lines = dict[str, list[Line]]


def _everything(minutes: float, fashion: bool) -> tuple[Lines, Lines]:
    """Lines of MNIST over all seeds, and of Fashion-MNIST over one, as far as the time goes."""
    end = time.monotonic() + 60 * minutes
    chosen: dict[str, Form] = {}
    for name, forms in PLAN.items():
        tried = [line(TUNED_ON, form, WHOLE, only_kept=time.monotonic() > end) for form in forms]
        whole = [each for each in tried if each is not None]
        if len(whole) < len(forms):
            return {name: [] for name in PLAN}, {name: [] for name in PLAN}
        chosen[name] = forms[_best(whole, careful=name == RECIPE)]
    found = _collected(chosen, WHOLE, range(SEEDS), end=end)
    return found, _collected(chosen, FASHION, [TUNED_ON], end=end if fashion else -np.inf)


def _collected(
    chosen: dict[str, Form], size: Size, seeds: Sequence[int] | range, *, end: float = np.inf, keep: bool = True
) -> Lines:
    """Lines of one form of each kind, for the seeds that are whole before ``end`` on the monotonic clock."""
    out: Lines = {name: [] for name in chosen}
    for seed in seeds:
        tried = {
            name: line(seed, form, size, only_kept=time.monotonic() > end, keep=keep) for name, form in chosen.items()
        }
        made = {name: each for name, each in tried.items() if each is not None}
        if len(made) < len(chosen):
            break
        for name, each in made.items():
            out[name].append(each)
    return out


def _short(settings: TrainingSettings) -> TrainingSettings:
    return replace(settings, steps=12, batch=32)


def _best(tried: Sequence[Line], *, careful: bool) -> int:
    """By accuracy on wrong validation rows; a recipe among those that lose little on clean ones."""
    fair = [at for at, each in enumerate(tried) if not careful or each.validation_clean <= CLEAN_TARGET]
    among = fair or [int(np.argmin([each.validation_clean for each in tried]))]
    return max(among, key=lambda at: tried[at].validation)


def _growth_rows(found: Lines, seeds: int) -> list[dict[str, Any]]:
    grown, full = found[RECIPE], found[FULL]
    short = "" if len(grown) == seeds else f"; NOT YET {seeds} hosts, only {len(grown)}"
    how = f"{len(grown)} hosts{short}; grafts of {grown[0].parameters:,} parameters, {grown[0].share:.0%} of the host's"
    mean, host = (100 * float(np.mean([getattr(each, name) for each in grown])) for name in ("mean", "host_mean"))
    tuned = 100 * float(np.mean([each.mean for each in full]))
    lost = 100 * float(np.mean([each.host_clean - each.clean for each in grown]))
    gained = sum(each.mean - each.host_mean for each in full)
    share = sum(each.mean - each.host_mean for each in grown) / gained if gained else 0.0
    size = round(grown[0].parameters / grown[0].share)
    whole = not short
    out = [
        row("MNIST-C: host's parameters", MOST_PARAMETERS, size, "", size <= MOST_PARAMETERS, "frozen, clean MNIST"),
        row("MNIST-C: mean of 15 after grafting", MEAN_TARGET, mean, "%", mean >= MEAN_TARGET and whole,
            f"{how}; host {host:.2f} %, full fine-tuning {tuned:.2f} %"),
        row("MNIST-C: clean loss of the grafts", CLEAN_TARGET, lost, "points", lost <= CLEAN_TARGET and whole,
            f"{how}; clean accuracy of the host {100 * np.mean([each.host_clean for each in grown]):.2f} %"),
        row("MNIST-C: share of full fine-tuning's gain", SHARE_TARGET, share, "", share >= SHARE_TARGET and whole, how),
        row("MNIST-C: removal bit-identical", 1.0, float(np.mean([bool(each.removed) for each in grown])),
            "of networks", all(each.removed for each in grown), f"{len(grown)} grown networks"),
    ]  # fmt: skip
    device = [(each.device, each.device_agrees or 0.0) for each in grown if each.device is not None]
    if device:
        right, alike = (100 * float(part) for part in np.mean(device, 0))
        told = (
            f"{len(device)} files, {WHOLE.device_rows:,} rows a kind; {alike:.2f} % answered as the float network does"
        )
        out.append(row("MNIST-C: mean of 15, int8 file through the runtime", None, right, "%", True, told))
    for kind in KINDS:
        before, after, whole_net = (
            100 * float(np.mean([getattr(each, name)[kind] for each in lines]))
            for lines, name in ((grown, "host_kinds"), (grown, "kinds"), (full, "kinds"))
        )
        told = f"plain CNN (the frozen host) {before:.2f} %, full fine-tuning {whole_net:.2f} %"
        out.append(row(f"MNIST-C: {kind}, after grafting", None, after, "%", True, told))
    return out


def _fashion_rows(found: Lines) -> list[dict[str, Any]]:
    """What the same forms do on clothing; stated, since they were chosen on digits."""
    out = []
    for grown, full in zip(found[RECIPE], found[FULL], strict=True):
        told = (
            f"1 host; before {100 * grown.host_mean:.2f} %, full fine-tuning {100 * full.mean:.2f} %; clean "
            f"{100 * grown.host_clean:.2f} -> {100 * grown.clean:.2f} %"
        )
        out.append(row("Fashion-MNIST-C: mean of 15 after grafting", None, 100 * grown.mean, "%", True, told))
    return out


def _denoised(seed: int, size: Size, settings: DenoiserSettings) -> list[Restored]:
    ground = place(seed, size)
    seeds = attach_seeds(ground.host)
    seeds.graft("input", "input-filter", config={"hidden": 16, "taps": 5}, seed=seed)
    train_denoiser(seeds, ground.clean.train, settings=settings, seed=seed)
    return evaluate_denoiser(seeds, ground.clean.test, seed=9_000 + seed)


def _kept_denoised(seed: int) -> list[Restored]:
    settings = DenoiserSettings()

    def made() -> dict[str, Any]:
        return {"rows": [asdict(each) for each in _denoised(seed, WHOLE, settings)]}

    code = [Path(module.__file__ or "") for module in (denoiser, quality)]
    found = kept(f"denoiser {seed} {WHOLE} {settings}", made, code)
    assert found is not None
    return [Restored(**each) for each in found["rows"]]


def _denoiser_rows(found: Sequence[Sequence[Restored]]) -> list[dict[str, Any]]:
    noisy = [each for lines in found for each in lines[1:]]
    recovered = 100 * float(np.mean([each.recovered for each in noisy]))
    worst = min(noisy, key=lambda each: each.recovered)
    lost = 100 * float(np.mean([lines[0].clean - lines[0].after for lines in found]))
    how = (
        f"{len(found)} hosts, input filter; worst {100 * worst.recovered:.2f} % ({worst.kind}); clean loss {lost:+.2f}"
    )
    out = [row("denoising graft: share of clean accuracy", DENOISED_TARGET, recovered, "%",
               recovered >= DENOISED_TARGET, how)]  # fmt: skip
    for at, kind in enumerate(each.kind for each in found[0]):
        lines = [each[at] for each in found]
        names = ("before", "after", "psnr_before", "psnr_after", "ssim_before")
        mean = {name: float(np.mean([getattr(each, name) for each in lines])) for name in names}
        told = (
            f"accuracy {100 * mean['before']:.2f} -> {100 * mean['after']:.2f} %, PSNR {mean['psnr_before']:.2f} -> "
            f"{mean['psnr_after']:.2f} dB, SSIM {mean['ssim_before']:.3f} before"
        )
        ssim = float(np.mean([each.ssim_after for each in lines]))
        out.append(row(f"denoising graft: SSIM after, {kind}", None, ssim, "", True, told))
    return out


def main() -> None:
    """Train what is missing within some minutes, and print what is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.domain_mnist_c")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--fashion", action="store_true", help="train the same forms on one Fashion-MNIST host, too")
    parser.add_argument("--quick", action="store_true", help="a moment's training: the way, not the figures")
    asked = parser.parse_args()
    for each in rows(quick=True) if asked.quick else _table(asked.minutes, fashion=asked.fashion):
        mark = "" if each["target"] is None else "ok" if each["ok"] else "MISSED"
        print(f"{each['name']}: {each['measured']:.3f} {each['unit']} (target {each['target']}) {mark}; {each['how']}")


if __name__ == "__main__":
    main()
