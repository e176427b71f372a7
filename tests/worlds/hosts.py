"""Hosts that are not ours: stock definitions, as people type them, with random weights and no word about seeds.

Batch norms carry statistics that are not 0 and 1, so that evaluation mode is no identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


class PlainCnn(nn.Module):
    """LeNet with functional activations: none of its activations is a module."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.fc1 = nn.Linear(12 * 3 * 3, 20)
        self.fc2 = nn.Linear(20, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 12, 12) to (N, classes)."""
        x = functional.relu(self.conv1(x))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """A residual block in the style of timm: modules for the activations, an in-place addition."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        shortcut = x
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act2(x)  # type: ignore[no-any-return]


class ResidualNet(nn.Module):
    """A small residual net with a stem, two stages and a pooled head."""

    def __init__(self, classes: int = 4, width: int = 8, blocks: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks)))
        self.layer2 = nn.Sequential(
            BasicBlock(width, 2 * width, 2), *(BasicBlock(2 * width, 2 * width) for _ in range(blocks - 1))
        )
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.global_pool(x).flatten(1))  # type: ignore[no-any-return]


class ReusingBlock(nn.Module):
    """A residual block in the style of torchvision: one activation, called twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class ReusingNet(nn.Sequential):
    """A stem and two such blocks."""

    def __init__(self, classes: int = 4) -> None:
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
        super().__init__(stem, ReusingBlock(8, 8), ReusingBlock(8, 16, 2), head)


class EncoderNet(nn.Module):
    """Patches and PyTorch's own transformer layers, which no tracer sees into."""

    def __init__(self, classes: int = 4, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(0.02 * torch.randn(1, 9, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 12, 12) to (N, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Pre-norm attention and MLP, written out."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, D) to the same shape."""
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class SmallVit(nn.Module):
    """A vision transformer whose attention is written out."""

    def __init__(self, classes: int = 4, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(AttentionBlock(width), AttentionBlock(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 12, 12) to (N, classes)."""
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


class EcgNet(nn.Module):
    """A 1-D net over beats, with Conv1d."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 8, 7, 2, 3), nn.BatchNorm1d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv1d(8, 16, 5, 2, 2), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 48) to (N, classes)."""
        return self.head(self.body(self.stem(x)).mean(2))  # type: ignore[no-any-return]


class FlatEcgNet(nn.Module):
    """The same over (1, k) convolutions, which small runtimes prefer."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, (1, 7), (1, 2), (0, 3))
        self.conv2 = nn.Conv2d(8, 16, (1, 5), (1, 2), (0, 2))
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 1, 48) to (N, classes)."""
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two hidden layers over a vector."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 24)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(24, 24)
        self.head = nn.Linear(24, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 10) to (N, classes)."""
        x = self.act(self.fc1(x))
        return self.head(torch.tanh(self.fc2(x)))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Looks at its values to decide where to go: torch.fx cannot trace it."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 12, 12) to (N, classes)."""
        x = self.act(self.norm(self.conv(x)))
        pooled = x.mean((2, 3))
        if float(pooled.detach().max()) > 1e6:
            pooled = pooled / pooled.max()
        return self.head(pooled)  # type: ignore[no-any-return]


class Masked(nn.Module):
    """Arguments that are mostly left out choose the way."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, features: bool = False) -> torch.Tensor:
        """(N, 3, 12, 12) to (N, classes)."""
        if mask is not None:
            x = x * mask
        pooled = functional.silu(self.conv(x)).mean((2, 3))
        return pooled if features else self.head(pooled)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Stock:
    """A host definition and what it reads.

    Attributes:
        make: Builds it.
        shape: One input without the batch.
        sites: What ``sites="auto"`` should find.
        traceable: Whether torch.fx can trace it.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: tuple[str, ...]
    traceable: bool = True


STOCK: dict[str, Stock] = {
    "plain-cnn": Stock(PlainCnn, (3, 12, 12), ("relu", "relu_2", "relu_3")),
    "residual": Stock(ResidualNet, (3, 12, 12), ("act1", "layer2.0.act1")),
    "reusing": Stock(ReusingNet, (3, 12, 12), ("0.2", "2.relu_1")),
    "encoder": Stock(EncoderNet, (3, 12, 12), ("layers.0",)),
    "small-vit": Stock(SmallVit, (3, 12, 12), ("blocks.0.add",)),
    "ecg": Stock(EcgNet, (1, 48), ("stem.2", "body.2")),
    "flat-ecg": Stock(FlatEcgNet, (1, 1, 48), ("relu", "relu_2")),
    "mlp": Stock(Mlp, (10,), ("act",)),
    "masked": Stock(Masked, (3, 12, 12), ("silu",)),
    "branching": Stock(Branching, (3, 12, 12), ("act",), traceable=False),
}


def make_host(name: str, *, seed: int = 0) -> nn.Module:
    """A stock host with weights and statistics drawn from ``seed``, in evaluation mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        host = STOCK[name].make()
        for module in host.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return host.eval()


def make_batch(name: str, *, rows: int = 4, seed: int = 0) -> torch.Tensor:
    """A batch that the stock host reads."""
    return torch.randn(rows, *STOCK[name].shape, generator=torch.Generator().manual_seed(seed))
