"""MobileNets and what is built on them: two SSDs, a U-Net and DeepLab, as Coral's page has them (see `coral`).

Post-processing that the compiler leaves to the CPU is part of a table, because the page times a whole call.
"""

from __future__ import annotations

from kasmina_edge.hardware_simulator.networks.building import LayerTable, Node
from kasmina_edge.hardware_simulator.workload import Workload

CLASSES = 1001
ANCHORS = ((19, 3), (10, 6), (5, 6), (3, 6), (2, 6), (1, 6))
"""Of the SSDs at 300 x 300: side of each feature map and boxes a place; 1,917 boxes in all."""
COCO_CLASSES = 91
V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, repeats and first stride of each stage (table 2 of the paper)."""


def mobilenet_v1() -> Workload:
    """MobileNetV1 1.0 at 224 (arXiv 1704.04861): 569 M multiply-adds, 4.24 M parameters."""
    t = LayerTable("mobilenet-v1")
    x, _ = _mobilenet_v1_body(t, t.input((1, 224, 224, 3)))
    x = t.average_pool(x, 7, padding="valid")
    return t.build(slim_classifier(t, x))


def _mobilenet_v1_body(t: LayerTable, x: Node) -> tuple[Node, Node]:
    """The last feature map, and the one of stride 16 (layer 11)."""
    x = t.conv(x, 32, 3, stride=2)
    middle = x
    for i, (filters, stride) in enumerate(
        [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    ):
        x = t.separable(x, filters, stride=stride)
        middle = x if i == 10 else middle
    return x, middle


def mobilenet_v2() -> Workload:
    """MobileNetV2 1.0 at 224 (arXiv 1801.04381): 300 M multiply-adds, 3.47 M parameters."""
    t = LayerTable("mobilenet-v2")
    x = _mobilenet_v2_body(t, t.input((1, 224, 224, 3)))[-1]
    x = t.conv(x, 1280, 1)
    x = t.average_pool(x, 7, padding="valid")
    return t.build(slim_classifier(t, x))


def _mobilenet_v2_body(t: LayerTable, x: Node, *, output_stride: int = 32) -> list[Node]:
    """Expansions before each stride of two, then the last block's output; strides turn into dilation at the limit."""
    x = t.conv(x, 32, 3, stride=2)
    taps: list[Node] = []
    reached, dilation = 2, 1
    for expansion, channels, repeats, first in V2_BLOCKS:
        for i in range(repeats):
            stride = first if i == 0 else 1
            rate = dilation
            if stride == 2 and reached == output_stride:
                stride, dilation = 1, dilation * 2
            reached *= stride
            inner = t.conv(x, x.channels * expansion, 1) if expansion > 1 else x
            if stride == 2:
                taps.append(inner)
            inner = t.depthwise(inner, stride=stride, dilation=rate)
            inner = t.conv(inner, channels, 1, activation="")
            x = t.add(x, inner) if stride == 1 and x.channels == channels else inner
    return [*taps, x]


def mobilenet_v1_ssd() -> Workload:
    """SSD on MobileNetV1 at 300, COCO (TensorFlow's ssd_mobilenet_v1_coco): 1.2 G multiply-adds, 6.8 M parameters."""
    t = LayerTable("mobilenet-v1-ssd")
    last, middle = _mobilenet_v1_body(t, t.input((1, 300, 300, 3)))
    return t.build(*_ssd(t, [middle, last]))


def mobilenet_v2_ssd() -> Workload:
    """SSD on MobileNetV2 at 300, COCO (TensorFlow's ssd_mobilenet_v2_coco, predictors of 1x1)."""
    t = LayerTable("mobilenet-v2-ssd")
    taps = _mobilenet_v2_body(t, t.input((1, 300, 300, 3)))
    return t.build(*_ssd(t, [taps[3], t.conv(taps[-1], 1280, 1)]))


def _ssd(t: LayerTable, maps: list[Node]) -> list[Node]:
    """Extra feature maps, predictors, and the box decoding and suppression that run on the CPU."""
    maps = list(maps)
    for filters in (512, 256, 256, 128):
        maps.append(t.conv(t.conv(maps[-1], filters // 2, 1), filters, 3, stride=2))
    boxes, scores = [], []
    for x, (side, each) in zip(maps, ANCHORS, strict=True):
        places = side * side * each
        boxes.append(t.reshape(t.conv(x, 4 * each, 1, activation=""), (1, places, 4)))
        scores.append(t.reshape(t.conv(x, COCO_CLASSES * each, 1, activation=""), (1, places, COCO_CLASSES)))
    box, score = t.concat(boxes, axis=1), t.unary("logistic", t.concat(scores, axis=1))
    return [t.many("tflite_detection_postprocess", (box, score), (1, 10, 4), dtype="float32")]


def unet_mobilenet_v2_128() -> Workload:
    """U-Net on MobileNetV2 at 128 (tensorflow.org/tutorials/images/segmentation): 6.5 M parameters.

    Coral's file is quantized after training; that it takes and gives floats, so that the CPU quantizes, is assumed.
    """
    t = LayerTable("unet-mobilenet-v2-128")
    image = t.input((1, 128, 128, 3), dtype="float32")
    taps = _mobilenet_v2_body(t, t.unary("quantize", image, dtype="int8"))
    x = taps.pop()
    for filters in (512, 256, 128, 64):
        x = t.unary("relu", t.transpose_conv(x, filters, 3))
        x = t.concat([x, taps.pop()])
    return t.build(t.unary("dequantize", t.transpose_conv(x, 3, 3), dtype="float32"))


def deeplab_v3_513() -> Workload:
    """DeepLabV3 on MobileNetV2 at 513, output stride 16, no ASPP: 2.75 G multiply-adds, 2.11 M parameters.

    Table 7 of arXiv 1801.04381; the last upsampling and the arg max are too large for the Edge TPU.
    """
    t = LayerTable("deeplab-v3-513")
    x = _mobilenet_v2_body(t, t.input((1, 513, 513, 3)), output_stride=16)[-1]
    side = x.shape[1]
    pooled = t.resize(t.conv(t.average_pool(x, side, padding="valid"), 256, 1), side, side)
    x = t.conv(t.concat([pooled, t.conv(x, 256, 1)]), 256, 1)
    x = t.conv(x, 21, 1, activation="")
    x = t.resize(x, 513, 513)
    return t.build(t.unary("argmax", x, shape=(1, 513, 513), dtype="int64"))


def slim_classifier(t: LayerTable, x: Node) -> Node:
    """TensorFlow's slim networks: a 1x1 convolution on (1, 1, 1, C), reshape, softmax."""
    x = t.reshape(t.conv(x, CLASSES, 1, activation=""), (1, CLASSES))
    return t.unary("softmax", x)
