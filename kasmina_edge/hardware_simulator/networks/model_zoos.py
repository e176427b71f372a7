"""Networks that vendors time their chips with, besides Coral's and MLPerf's own: MobileNetV1 ladders, ResNet-50."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kasmina_edge.hardware_simulator.networks.building import LayerTable, Node
from kasmina_edge.hardware_simulator.workload import Workload

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


def mobilenet_v1(name: str, width: float, size: int, *, channels: int = 3, classes: int) -> Workload:
    """MobileNetV1 (arXiv 1704.04861) of any width over square images.

    Args:
        name: Of the table.
        width: Multiplier of every layer's channels.
        size: Pixels a side.
        channels: 3, or 1 for grey images.
        classes: Outputs of the dense layer at the end.
    """
    net = LayerTable(name)
    x = net.conv(net.input((1, size, size, channels)), round(32 * width), 3, stride=2)
    for filters, stride in _BLOCKS:
        x = net.separable(x, round(filters * width), stride=stride)
    x = net.mean(x)
    return net.build(net.unary("softmax", net.fully_connected(x, classes)))


def resnet_50() -> Workload:
    """ResNet-50 at 224 (arXiv 1512.03385, stride in the 3x3): 4.1 G multiply-adds, 25.6 M parameters."""
    net = LayerTable("resnet-50-224")
    x = net.max_pool(net.conv(net.input((1, 224, 224, 3)), 64, 7, stride=2), 3, stride=2)
    for filters, blocks, stride in _STAGES:
        for block in range(blocks):
            x = _bottleneck(net, x, filters, stride if block == 0 else 1)
    return net.build(net.unary("softmax", net.fully_connected(net.mean(x), 1000)))


def _bottleneck(net: LayerTable, x: Node, filters: int, stride: int) -> Node:
    y = net.conv(net.conv(x, filters, 1), filters, 3, stride=stride)
    y = net.conv(y, 4 * filters, 1, activation="")
    if x.channels != y.channels:
        x = net.conv(x, 4 * filters, 1, stride=stride, activation="")
    return net.add(x, y, activation="relu")


def _ladder(name: str, width: float, size: int, channels: int, classes: int) -> Callable[[], Workload]:
    return partial(mobilenet_v1, name, width, size, channels=channels, classes=classes)


NETWORKS: Mapping[str, Callable[[], Workload]] = {
    "resnet-50-224": resnet_50,
    **{
        name: _ladder(name, width, size, channels, classes)
        for name, width, size, channels, classes in (
            ("mobilenet-v1-0.25-224", 0.25, 224, 3, 1000),
            ("mobilenet-v1-0.5-224", 0.5, 224, 3, 1000),
            ("mobilenet-v1-0.25-224-flowers", 0.25, 224, 3, 5),
            ("mobilenet-v1-0.5-224-flowers", 0.5, 224, 3, 5),
            ("mobilenet-v1-0.25-96-flowers", 0.25, 96, 3, 5),
            ("mobilenet-v1-0.25-96-grey-flowers", 0.25, 96, 1, 5),
            ("person-detection-96-grey", 0.25, 96, 1, 2),
        )
    },
}
