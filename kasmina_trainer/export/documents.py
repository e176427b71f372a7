"""The bundle's papers: a CycloneDX bill of materials with the model card inside, as one small deterministic file.

What it was made of (libraries with versions, data sets by name), what it holds (files with digests), and the card that
Mitchell et al. 2019 ("Model Cards for Model Reporting") ask for: what it is for, how it was measured, on what, and
where it should not be used. CycloneDX 1.6 has a place for each (``modelCard`` of a machine-learning model:
cyclonedx.org/docs/1.6/json). Nobody's clock is read: the same bundle has the same papers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.contracts.manifest import BundleManifest
from kasmina_edge.errors import BundleError
from kasmina_trainer.export.judging import TOP_ANSWERS
from kasmina_trainer.export.models import Built

PATH = "papers.cdx.json"
LIBRARIES = (
    "torch",
    "litert-torch",
    "ai-edge-quantizer",
    "ai-edge-litert",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)
"""What turns a network into files: all of them shape the bytes."""

_NAMESPACE = uuid.UUID("6f1b4a52-6a0e-5d3c-9a54-7f6b1f1f6a11")
_UNSTATED = "not stated"


@dataclass(frozen=True)
class ModelCard:
    """What only people know of a network; what was measured, the export adds.

    Attributes:
        description: What it does, in a sentence.
        intended_use: Who should use it, for what.
        out_of_scope: What it should not be used for.
        training_data: Names of the data sets it learned from.
        evaluation_data: Names of those it was measured on.
        limitations: Where it is known to fail.
        ethics: Considerations on people and harm.
        licence: SPDX expression, or a name.
        timestamp: ISO 8601 instant to carry, if any.
        network: What it was made from: a file's name, or its architecture's; "": the module's class.
    """

    description: str = ""
    intended_use: tuple[str, ...] = ()
    out_of_scope: tuple[str, ...] = ()
    training_data: tuple[str, ...] = ()
    evaluation_data: tuple[str, ...] = ()
    limitations: tuple[str, ...] = ()
    ethics: tuple[str, ...] = ()
    licence: str = ""
    timestamp: str = ""
    network: str = ""


def bill_of_materials(
    manifest: BundleManifest, card: ModelCard, built: Sequence[Built], module: nn.Module, compares: str = TOP_ANSWERS
) -> bytes:
    """The papers of a bundle, as canonical JSON.

    Args:
        manifest: Of the bundle, without documents.
        card: What people say of it.
        built: Its model files with their figures.
        module: The network it was made of.
        compares: What the agreement counts.
    """
    content = manifest.content_digest()
    metadata: dict[str, Any] = {
        "component": {
            "type": "machine-learning-model",
            "bom-ref": "model",
            "name": manifest.name,
            "version": manifest.version,
            "modelCard": _card(manifest, card, built, module, compares),
        },
        "tools": {"components": [{"type": "application", "name": "kasmina", "version": _version("kasmina")}]},
    }
    metadata["component"]["description"] = card.description or _sentence(manifest, card)
    if card.licence:
        metadata["component"]["licenses"] = [{"license": {"name": card.licence}}]
    if card.timestamp:
        metadata["timestamp"] = card.timestamp
    files: list[dict[str, Any]] = [
        {
            "type": "file",
            "bom-ref": entry.path,
            "name": entry.path,
            "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
        }
        for entry in manifest.files()
    ]
    libraries = [
        {
            "type": "library",
            "bom-ref": name,
            "name": name,
            "version": found,
            "purl": f"pkg:pypi/{name}@{_quoted(found)}",
        }
        for name in LIBRARIES
        if (found := _version(name))
    ]
    data = [
        {"type": "data", "bom-ref": f"data-{i}", "name": name, "data": [{"type": "dataset", "name": name}]}
        for i, name in enumerate(dict.fromkeys((*card.training_data, *card.evaluation_data)))
    ]
    return canonical_bytes(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}",
            "version": 1,
            "metadata": metadata,
            "components": [*files, *libraries, *data],
            "dependencies": [{"ref": "model", "dependsOn": [c["bom-ref"] for c in (*files, *libraries, *data)]}],
        }
    )


def markdown(data: bytes) -> str:
    """The model card as a person reads it, from a bundle's papers.

    Raises:
        BundleError: Not such papers.
    """
    try:
        bill = json.loads(data)
        model = bill["metadata"]["component"]
        card = model["modelCard"]
        parameters, considered = card["modelParameters"], card.get("considerations", {})
        metrics = card["quantitativeAnalysis"]["performanceMetrics"]
        lines = [f"# {model['name']} {model['version']}", "", model.get("description", _UNSTATED), ""]
        lines += ["## Model", "", f"- task: {parameters['task']}", f"- network: {parameters['modelArchitecture']}"]
        lines += [f"- input: {i['format']}" for i in parameters["inputs"]]
        lines += [f"- output: {o['format']}" for o in parameters["outputs"]]
        lines += [f"- {p['name']}: {p['value']}" for p in card.get("properties", [])]
        lines += _section("Intended use", considered.get("useCases"))
        lines += ["", "## Data", ""]
        lines += [f"- {d['name']}" for d in parameters.get("datasets", [])] or [f"- {_UNSTATED}"]
        lines += ["", "## Measured on held-out data", "", "| file | measure | value |", "|---|---|---|"]
        lines += [f"| {m['slice']} | {m['type']} | {m['value']} |" for m in metrics]
        lines += _section("Limits", considered.get("technicalLimitations"))
        lines += _section("Ethics", [e["name"] for e in considered.get("ethicalConsiderations", [])])
        lines += ["", "## Made with", ""]
        lines += [f"- {c['name']} {c['version']}" for c in bill["components"] if c["type"] == "library"]
        lines += ["", "## Files", ""]
        lines += [f"- {c['name']} {c['hashes'][0]['content']}" for c in bill["components"] if c["type"] == "file"]
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise BundleError(f"{PATH}: not the papers of a bundle ({type(exc).__name__}: {exc})") from exc
    return "\n".join(lines) + "\n"


def _sentence(manifest: BundleManifest, card: ModelCard) -> str:
    """What can be said without people: what goes in and what comes out."""
    taken = " and ".join(_border(i.dtype, i.shape) for i in manifest.inputs)
    given = {
        "classification": f"tells {len(manifest.labels)} classes apart",
        "detection": "finds objects",
    }.get(manifest.head, f"gives {len(manifest.outputs)} output{'s' if len(manifest.outputs) > 1 else ''}")
    made = f", made from {card.network}" if card.network else ""
    return f"A network that takes {taken} and {given}{made}. What it is for is not stated."


def _section(title: str, items: Sequence[str] | None) -> list[str]:
    return ["", f"## {title}", "", *(f"- {item}" for item in items or (_UNSTATED,))]


def _card(
    manifest: BundleManifest, card: ModelCard, built: Sequence[Built], module: nn.Module, compares: str
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "task": manifest.head if manifest.head != "other" else "other (the app gives the outputs their meaning)",
        "modelArchitecture": f"{card.network or type(module).__name__}, "
        f"{sum(p.numel() for p in module.parameters())} parameters",
        "inputs": [{"format": _border(i.dtype, i.shape)} for i in manifest.inputs],
        "outputs": [{"format": _named(o.name) + _border(o.dtype, o.shape)} for o in manifest.outputs],
    }
    names = dict.fromkeys((*card.training_data, *card.evaluation_data))
    if names:
        parameters["datasets"] = [{"type": "dataset", "name": name} for name in names]
    considered: dict[str, Any] = {}
    if card.intended_use:
        considered["useCases"] = list(card.intended_use)
    limits = [*card.limitations, *(f"not for: {use}" for use in card.out_of_scope)]
    limits += [f"accepted on frames of these domains alone: {', '.join(d.name for d in manifest.domains)}"] * bool(
        manifest.domains
    )
    if limits:
        considered["technicalLimitations"] = limits
    if card.ethics:
        considered["ethicalConsiderations"] = [{"name": text} for text in card.ethics]
    made: dict[str, Any] = {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": _metrics(built, compares)},
    }
    if considered:
        made["considerations"] = considered
    facts = {"profile": manifest.profile, **{k: v for k, v in manifest.provenance.items() if k == "edgetpu"}}
    if manifest.labels:
        facts["classes"] = str(len(manifest.labels))
    made["properties"] = [{"name": name, "value": value} for name, value in facts.items()]
    return made


def _metrics(built: Sequence[Built], compares: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for model in built:
        path, found = model.entry.file.path, model.entry.parity
        assert found is not None, "export measures it"
        figures = {f"{compares}, of {found.samples}": found.top1_agreement}
        if found.accuracy is not None and found.float_accuracy is not None:
            figures |= {"accuracy": found.accuracy, "accuracy of the float network": found.float_accuracy}
        rows += [{"type": kind, "value": f"{value:.4f}", "slice": path} for kind, value in figures.items()]
        for output in model.figures:
            text = (
                f"cosine {output.cosine:.5f}, SQNR {output.sqnr_db:.1f} dB, "
                f"largest difference {output.max_abs_difference:.4g}"
            )
            kind = "answers beside the float network's" + (f", {output.name}" if len(model.figures) > 1 else "")
            rows.append({"type": kind, "value": text, "slice": path})
    return rows


def _named(output: str) -> str:
    """An output's name as a card shows it; nothing where the export had to invent one."""
    return "" if output == "output" else f"{output}: "


def _border(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} ({', '.join(map(str, shape))})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _quoted(text: str) -> str:
    return text.replace("+", "%2B")
