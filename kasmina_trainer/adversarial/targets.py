"""What a query attack asks: a network on the desk, or the file that a device runs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_edge.runtime import Runtime
from kasmina_trainer.adversarial.square_attack import Scores
from kasmina_trainer.datasets.digits import Images, to_nhwc
from kasmina_trainer.training import one_core

_BATCH = 256


def network_scores(network: nn.Module) -> Scores:
    """A network's logits, in evaluation mode.

    Args:
        network: Takes pictures (N, C, H, W).
    """

    def asked(x: Images) -> npt.NDArray[np.float32]:
        mode = network.training
        network.eval()
        try:
            with torch.no_grad(), one_core():
                parts = [network(torch.from_numpy(np.array(x[i : i + _BATCH]))) for i in range(0, len(x), _BATCH)]
        finally:
            network.train(mode)
        found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return found

    return asked


def device_scores(runtime: Runtime, output: str | None = None) -> Scores:
    """The answers of a deployed bundle, frame by frame as an app asks for them.

    Args:
        runtime: Open; quantizes frames as the manifest says.
        output: Its output that holds one score a class; the first when left out.

    Raises:
        InputError: The bundle has no output of this name.
    """
    names = [tensor.name for tensor in runtime.manifest.outputs]
    chosen = names[0] if output is None else output
    if chosen not in names:
        raise InputError(f"output {chosen!r}: the bundle has {', '.join(names)}")

    def asked(x: Images) -> npt.NDArray[np.float32]:
        answers = [result.outputs[chosen] for result in runtime.infer_batch(to_nhwc(x))]
        return np.stack([np.ravel(answer) for answer in answers]).astype(np.float32)

    return asked
