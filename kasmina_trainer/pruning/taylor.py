"""What a channel is worth to the answers: the Fisher information along the direction in which it vanishes.

To first order, taking a channel out changes the loss by the sum of weight times gradient over the weights that read it
(Molchanov et al. 2019). At a trained optimum that sum is zero on average, so its square counts. Labels are drawn from
the network's own answers, which makes the mean square the Fisher information (Theis et al. 2018 prune by it) and needs
no label; for answers that are no classes, signs are drawn in their place, which gives the squared Jacobian.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import InputError
from kasmina_trainer.pruning.groups import Group
from kasmina_trainer.quantization.simulation import outputs_of

BATCH = 8
MOST_ROWS = 512


def fisher_scores(
    network: nn.Module, groups: Sequence[Group], frames: torch.Tensor, *, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Worth of every channel, in squared units of the loss.

    Args:
        network: In evaluation mode; parameters, gradients and modes are left as they were.
        groups: Its channels.
        frames: Inputs; at most 512 are looked at.  # (N, C, ...)
        seed: Of the labels that are drawn.

    Raises:
        InputError: No frames, or a score is no finite number; the group is named.
    """
    if not len(frames):
        raise InputError("0 frames to score channels by: expected at least 1")
    frames = frames[torch.linspace(0, len(frames) - 1, min(len(frames), MOST_ROWS)).long()]
    tensors = dict(network.named_parameters())
    needed = sorted({tensor for group in groups for tensor, _ in group.reading})
    weights = [tensors[name] for name in needed]
    before = [(p, p.requires_grad, p.grad) for p in weights]
    sums = {group.name: torch.zeros(len(group)) for group in groups}
    generator = torch.Generator().manual_seed(seed)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        for p in weights:
            p.requires_grad_(True)
        for start in range(0, len(frames), BATCH):
            answers = outputs_of(network(frames[start : start + BATCH]))
            if not all(bool(torch.isfinite(a).all()) for a in answers):
                last = min(start + BATCH, len(frames)) - 1
                raise InputError(f"the network's answers to frames {start} to {last} are not finite")
            gradients = torch.autograd.grad(_sampled_loss(answers, generator), weights, allow_unused=True)
            products = {
                name: torch.zeros_like(w) if g is None else (w * g).detach()
                for name, w, g in zip(needed, weights, gradients, strict=True)
            }
            for group in groups:
                sums[group.name] += _by_channel(group, products) ** 2
    finally:
        for p, learns, gradient in before:
            p.requires_grad_(learns)
            p.grad = gradient
        for module, mode in modes:
            module.training = mode
    for name, value in sums.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"group {name}: {int((~torch.isfinite(value)).sum())} of {len(value)} scores not finite")
    return {name: value / len(frames) for name, value in sums.items()}


def _sampled_loss(answers: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """A loss whose gradient, squared and averaged over draws, is the Fisher information of the answers."""
    if len(answers) == 1 and answers[0].ndim == 2 and answers[0].shape[1] > 1:
        with torch.no_grad():
            drawn = torch.multinomial(functional.softmax(answers[0].cpu(), 1), 1, generator=generator)[:, 0]
        return functional.cross_entropy(answers[0], drawn.to(answers[0].device), reduction="sum")
    signs = [torch.randint(0, 2, a.shape, generator=generator).to(a) * 2 - 1 for a in answers]
    return torch.stack([(a * s).sum() for a, s in zip(answers, signs, strict=True)]).sum()


def _by_channel(group: Group, products: dict[str, torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(len(group))
    for number, (tensor, axis, _) in enumerate(group.channels[0]):
        if (tensor, axis) not in group.reading:
            continue
        along = products[tensor].transpose(0, axis).flatten(1).sum(1).cpu()
        indices = torch.tensor([channel[number][2] for channel in group.channels])
        total += along[indices].sum(1)
    return total
