"""The networks of Coral's benchmark page (coral.ai/docs/edgetpu/benchmarks) as tables of layers.

The page gives names and input sizes. Layers are those of the published sources named at each function; tests hold
multiply-accumulates and parameters against published counts. Where the page leaves a choice, the one is taken that its
CPU column supports: that column's other networks run at 3.4 to 3.9 GMAC/s, so a 300 x 300 input is taken for the two
SSDs (the page says 224) and version 1.0 of SqueezeNet.
"""

from __future__ import annotations

from collections.abc import Callable

from kasmina_edge.hardware_simulator.networks.building import LayerTable, Node
from kasmina_edge.hardware_simulator.networks.mobilenets import (
    CLASSES,
    deeplab_v3_513,
    mobilenet_v1,
    mobilenet_v1_ssd,
    mobilenet_v2,
    mobilenet_v2_ssd,
    slim_classifier,
    unet_mobilenet_v2_128,
)
from kasmina_edge.hardware_simulator.workload import Workload


def inception_v1() -> Workload:
    """GoogLeNet with batch normalisation (arXiv 1409.4842), 3x3 for 5x5: 1.5 G multiply-adds, 6.6 M parameters."""
    t = LayerTable("inception-v1")
    x = t.conv(t.input((1, 224, 224, 3)), 64, 7, stride=2)
    x = t.max_pool(x, 3, stride=2)
    x = t.conv(t.conv(x, 64, 1), 192, 3)
    x = t.max_pool(x, 3, stride=2)
    for row in ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)):
        x = _googlenet_block(t, x, *row)
    x = t.max_pool(x, 3, stride=2)
    for row in (
        (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
    ):  # fmt: skip
        x = _googlenet_block(t, x, *row)
    x = t.max_pool(x, 2, stride=2)
    for row in ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)):
        x = _googlenet_block(t, x, *row)
    x = t.average_pool(x, 7, padding="valid")
    return t.build(slim_classifier(t, x))


def _googlenet_block(t: LayerTable, x: Node, one: int, r3: int, n3: int, r5: int, n5: int, pool: int) -> Node:
    return t.concat([
        t.conv(x, one, 1), t.conv(t.conv(x, r3, 1), n3, 3), t.conv(t.conv(x, r5, 1), n5, 3),
        t.conv(t.max_pool(x, 3, stride=1), pool, 1),
    ])  # fmt: skip


def inception_v4() -> Workload:
    """Inception-v4 at 299 (arXiv 1602.07261, figures 3 to 9): 12.3 G multiply-adds, 42.7 M parameters."""
    t = LayerTable("inception-v4")
    x = t.conv(t.input((1, 299, 299, 3)), 32, 3, stride=2, padding="valid")
    x = t.conv(t.conv(x, 32, 3, padding="valid"), 64, 3)
    x = t.concat([t.max_pool(x, 3, stride=2, padding="valid"), t.conv(x, 96, 3, stride=2, padding="valid")])
    left = t.conv(t.conv(x, 64, 1), 96, 3, padding="valid")
    right = t.conv(t.conv(t.conv(x, 64, 1), 64, (1, 7)), 64, (7, 1))
    x = t.concat([left, t.conv(right, 96, 3, padding="valid")])
    x = t.concat([t.conv(x, 192, 3, stride=2, padding="valid"), t.max_pool(x, 3, stride=2, padding="valid")])
    for _ in range(4):
        x = t.concat([
            t.conv(x, 96, 1), t.conv(t.conv(x, 64, 1), 96, 3), t.conv(t.conv(t.conv(x, 64, 1), 96, 3), 96, 3),
            t.conv(t.average_pool(x, 3, stride=1), 96, 1),
        ])  # fmt: skip
    deep = t.conv(t.conv(t.conv(x, 192, 1), 224, 3), 256, 3, stride=2, padding="valid")
    x = t.concat([t.conv(x, 384, 3, stride=2, padding="valid"), deep, t.max_pool(x, 3, stride=2, padding="valid")])
    for _ in range(7):
        one = t.conv(t.conv(t.conv(x, 192, 1), 224, (1, 7)), 256, (7, 1))
        two = t.conv(t.conv(t.conv(x, 192, 1), 192, (7, 1)), 224, (1, 7))
        two = t.conv(t.conv(two, 224, (7, 1)), 256, (1, 7))
        x = t.concat([t.conv(x, 384, 1), one, two, t.conv(t.average_pool(x, 3, stride=1), 128, 1)])
    short = t.conv(t.conv(x, 192, 1), 192, 3, stride=2, padding="valid")
    long = t.conv(t.conv(t.conv(x, 256, 1), 256, (1, 7)), 320, (7, 1))
    x = t.concat([
        short, t.conv(long, 320, 3, stride=2, padding="valid"), t.max_pool(x, 3, stride=2, padding="valid")
    ])  # fmt: skip
    for _ in range(3):
        one = t.conv(x, 384, 1)
        two = t.conv(t.conv(t.conv(x, 384, 1), 448, (3, 1)), 512, (1, 3))
        pooled = t.conv(t.average_pool(x, 3, stride=1), 256, 1)
        split = [t.conv(n, 256, k) for n in (one, two) for k in ((1, 3), (3, 1))]
        x = t.concat([t.conv(x, 256, 1), *split, pooled])
    return t.build(_dense_classifier(t, x))


def densenet() -> Workload:
    """DenseNet (6, 12, 24, 16) of growth 32 without bottlenecks at 224: 10.9 M parameters.

    TensorFlow's hosted DenseNet has 43.6 MB of floats and 64.2 % top-1; tensorflow/tpu's network, whose
    ``use_bottleneck`` is off, has that size. DenseNet-121 of the paper would have 8.0 M parameters.
    """
    t = LayerTable("densenet")
    x = t.conv(t.input((1, 224, 224, 3)), 64, 7, stride=2)
    x = t.max_pool(x, 3, stride=2)
    for i, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            x = t.concat([x, t.conv(t.affine(x), 32, 3, activation="", bias=False)])
        if i < 3:
            x = t.conv(t.affine(x), x.channels // 2, 1, activation="", bias=False)
            x = t.average_pool(x, 2)
    return t.build(_dense_classifier(t, x))


def resnet_50_v1_299() -> Workload:
    """ResNet-50 at 299 (arXiv 1512.03385), strides as in TensorFlow's slim: 25.6 M parameters."""
    t = LayerTable("resnet-50-v1-299")
    return t.build(_resnet(t, 299, (3, 4, 6, 3), before=False))


def resnet_152_v2() -> Workload:
    """ResNet-152 V2 at 299 (arXiv 1603.05027), strides as in TensorFlow's slim: 60.4 M parameters."""
    t = LayerTable("resnet-152-v2")
    return t.build(_resnet(t, 299, (3, 8, 36, 3), before=True))


def resnet_50_v2_299() -> Workload:
    """ResNet-50 V2 at 299, on the page beside V1."""
    t = LayerTable("resnet-50-v2-299")
    return t.build(_resnet(t, 299, (3, 4, 6, 3), before=True))


def _resnet(t: LayerTable, size: int, blocks: tuple[int, ...], *, before: bool) -> Node:
    """Bottlenecks; ``before``: normalisation stands before the convolutions (V2), where nothing can take it in."""
    x = t.conv(t.input((1, size, size, 3)), 64, 7, stride=2, activation="" if before else "relu")
    x = t.max_pool(x, 3, stride=2)
    for stage, units in enumerate(blocks):
        depth = 64 << stage
        for i in range(units):
            stride = 2 if i == units - 1 and stage < len(blocks) - 1 else 1
            inner = t.affine(x) if before else x
            if x.channels != 4 * depth:
                short = t.conv(inner, 4 * depth, 1, stride=stride, activation="")
            else:
                short = x if stride == 1 else t.max_pool(x, 1, stride=stride)
            inner = t.conv(t.conv(inner, depth, 1), depth, 3, stride=stride)
            x = t.add(short, t.conv(inner, 4 * depth, 1, activation=""), activation="" if before else "relu")
    return _dense_classifier(t, t.affine(x) if before else x)


def squeezenet() -> Workload:
    """SqueezeNet 1.0 at 224 (arXiv 1602.07360): 0.8 G multiply-adds, 1.25 M parameters."""
    t = LayerTable("squeezenet")
    x = t.conv(t.input((1, 224, 224, 3)), 96, 7, stride=2, padding="valid")
    x = t.max_pool(x, 3, stride=2)
    for i, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        thin = t.conv(x, squeeze, 1)
        x = t.concat([t.conv(thin, 4 * squeeze, 1), t.conv(thin, 4 * squeeze, 3)])
        if i in (2, 6):
            x = t.max_pool(x, 3, stride=2)
    x = t.mean(t.conv(x, CLASSES, 1))
    return t.build(t.unary("softmax", x))


def vgg_16() -> Workload:
    """VGG-16 at 224 (arXiv 1409.1556): 15.5 G multiply-adds, 138 M parameters."""
    return _vgg("vgg16", (2, 2, 3, 3, 3))


def vgg_19() -> Workload:
    """VGG-19 at 224 (arXiv 1409.1556): 19.6 G multiply-adds, 144 M parameters."""
    return _vgg("vgg19", (2, 2, 4, 4, 4))


def _vgg(name: str, depths: tuple[int, ...]) -> Workload:
    t = LayerTable(name)
    x = t.input((1, 224, 224, 3))
    for stage, layers in enumerate(depths):
        for _ in range(layers):
            x = t.conv(x, min(64 << stage, 512), 3)
        x = t.max_pool(x, 2)
    for units in (4096, 4096):
        x = t.fully_connected(x, units, activation="relu")
    return t.build(t.unary("softmax", t.fully_connected(x, 1000)))


def efficientnet_edgetpu_s() -> Workload:
    """EfficientNet-EdgeTPU-S at 224 (tensorflow/tpu, efficientnet/edgetpu): 1.8 G multiply-adds, 5.4 M parameters."""
    return _efficientnet("efficientnet-edgetpu-s", 224, 1.0, 1.0)


def efficientnet_edgetpu_m() -> Workload:
    """EfficientNet-EdgeTPU-M at 240: 3.0 G multiply-adds, 6.9 M parameters."""
    return _efficientnet("efficientnet-edgetpu-m", 240, 1.0, 1.1)


def efficientnet_edgetpu_l() -> Workload:
    """EfficientNet-EdgeTPU-L at 300, on the page beside S and M: 8.0 G multiply-adds, 10.6 M parameters."""
    return _efficientnet("efficientnet-edgetpu-l", 300, 1.2, 1.4)


EFFICIENT_STAGES = ((True, 1, 3, 1, 4, 24), (True, 2, 3, 2, 8, 32), (True, 4, 3, 2, 8, 48), (False, 5, 5, 2, 8, 96),
                    (False, 4, 5, 1, 8, 144), (False, 2, 5, 2, 8, 192))  # fmt: skip
"""Fused, repeats, kernel, first stride, expansion, channels of each stage."""


def _efficientnet(name: str, size: int, wide: float, deep: float) -> Workload:
    t = LayerTable(name)
    x = t.conv(t.input((1, size, size, 3)), _round_channels(32 * wide), 3, stride=2)
    for stage, (fused, repeats, kernel, first, expansion, filters) in enumerate(EFFICIENT_STAGES):
        channels = _round_channels(filters * wide)
        for i in range(-int(-repeats * deep // 1)):
            stride = first if i == 0 else 1
            basis = channels if stage == 0 else x.channels  # the first stage expands what it gives, not what it gets
            if fused:
                inner = t.conv(x, basis * expansion, kernel, stride=stride)
            else:
                inner = t.depthwise(t.conv(x, basis * expansion, 1), kernel, stride=stride)
            inner = t.conv(inner, channels, 1, activation="")
            x = t.add(x, inner) if stride == 1 and x.channels == channels and stage else inner
    x = t.conv(x, _round_channels(1280 * wide), 1)
    return t.build(_dense_classifier(t, x))


def _round_channels(channels: float) -> int:
    """To the nearest multiple of 8, not below 90 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def inception_resnet_v2() -> Workload:
    """Inception-ResNet-v2 at 299 (arXiv 1602.07261), on the page beside: 13.2 G multiply-adds, 55.8 M parameters."""
    t = LayerTable("inception-resnet-v2")
    x = t.conv(t.input((1, 299, 299, 3)), 32, 3, stride=2, padding="valid")
    x = t.max_pool(t.conv(t.conv(x, 32, 3, padding="valid"), 64, 3), 3, stride=2, padding="valid")
    x = t.max_pool(t.conv(t.conv(x, 80, 1), 192, 3, padding="valid"), 3, stride=2, padding="valid")
    x = t.concat([
        t.conv(x, 96, 1), t.conv(t.conv(x, 48, 1), 64, 5), t.conv(t.conv(t.conv(x, 64, 1), 96, 3), 96, 3),
        t.conv(t.average_pool(x, 3, stride=1), 64, 1),
    ])  # fmt: skip
    for _ in range(10):
        parts = [t.conv(x, 32, 1), t.conv(t.conv(x, 32, 1), 32, 3), t.conv(t.conv(t.conv(x, 32, 1), 48, 3), 64, 3)]
        x = t.add(x, t.conv(t.concat(parts), 320, 1, activation=""), activation="relu")
    deep = t.conv(t.conv(t.conv(x, 256, 1), 256, 3), 384, 3, stride=2, padding="valid")
    x = t.concat([t.conv(x, 384, 3, stride=2, padding="valid"), deep, t.max_pool(x, 3, stride=2, padding="valid")])
    for _ in range(20):
        parts = [t.conv(x, 192, 1), t.conv(t.conv(t.conv(x, 128, 1), 160, (1, 7)), 192, (7, 1))]
        x = t.add(x, t.conv(t.concat(parts), 1088, 1, activation=""), activation="relu")
    ends = [t.conv(t.conv(x, 256, 1), n, 3, stride=2, padding="valid") for n in (384, 288)]
    deep = t.conv(t.conv(t.conv(x, 256, 1), 288, 3), 320, 3, stride=2, padding="valid")
    x = t.concat([*ends, deep, t.max_pool(x, 3, stride=2, padding="valid")])
    for _ in range(10):
        parts = [t.conv(x, 192, 1), t.conv(t.conv(t.conv(x, 192, 1), 224, (1, 3)), 256, (3, 1))]
        x = t.add(x, t.conv(t.concat(parts), 2080, 1, activation=""), activation="relu")
    return t.build(_dense_classifier(t, t.conv(x, 1536, 1)))


def _dense_classifier(t: LayerTable, x: Node) -> Node:
    return t.unary("softmax", t.fully_connected(t.mean(x), CLASSES))


NETWORKS: dict[str, Callable[[], Workload]] = {
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "inception-v1": inception_v1,
    "inception-v4": inception_v4,
    "mobilenet-v1-ssd": mobilenet_v1_ssd,
    "mobilenet-v2-ssd": mobilenet_v2_ssd,
    "densenet": densenet,
    "resnet-50-v1-299": resnet_50_v1_299,
    "resnet-152-v2": resnet_152_v2,
    "squeezenet": squeezenet,
    "vgg16": vgg_16,
    "vgg19": vgg_19,
    "efficientnet-edgetpu-s": efficientnet_edgetpu_s,
    "efficientnet-edgetpu-m": efficientnet_edgetpu_m,
    "unet-mobilenet-v2-128": unet_mobilenet_v2_128,
    "deeplab-v3-513": deeplab_v3_513,
    "inception-resnet-v2": inception_resnet_v2,
    "resnet-50-v2-299": resnet_50_v2_299,
    "efficientnet-edgetpu-l": efficientnet_edgetpu_l,
}
"""The sixteen that the profiles' anchors name, and three more."""

UNSEEN = ("inception-resnet-v2", "resnet-50-v2-299", "efficientnet-edgetpu-l")
"""Networks of the page that stay out of every fit: a last check."""
