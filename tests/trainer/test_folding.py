"""Folding changes the operations, not the function."""

from __future__ import annotations

import torch
from torch import nn

from kasmina_trainer.export.folding import fold_norms


class _Forking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if bool(x.sum() > 0) else -x


def test_norms_are_gone_and_answers_stay(trained_host: nn.Module, digit_batch: torch.Tensor) -> None:
    folded = fold_norms(trained_host)
    assert any(isinstance(m, nn.BatchNorm2d) for m in trained_host.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(digit_batch), trained_host(digit_batch), atol=1e-4)


def test_what_cannot_be_traced_stays_as_it_is() -> None:
    module = _Forking().eval()
    assert fold_norms(module) is module
