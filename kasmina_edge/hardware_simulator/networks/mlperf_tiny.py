"""The four reference networks of MLPerf Tiny as tables of layers (github.com/mlcommons/tiny, benchmark/training).

**The reference person detector is mostly dead.** In its int8 file (vww_96_int8.tflite) most filters of the last eight
pointwise layers have no weight but 0. A compiler may leave them out together with everything that reads them, and some
do: X-CUBE-AI counts 7,494,744 multiply-accumulates up to version 8.0 and 4,646,932 from 8.1 on (``ModelMacc`` in the
.ioc files of the submitted projects, tiny_results_v0.7 to v1.3), and ONNC's generated code names the channels that
stayed (tiny_results_v1.1, closed/Skymizer). An interpreter cannot. So the network has three tables, and an anchor
names the one that its toolchain runs; a latency on one says nothing about another.

Padding, order and fused activations are those of the reference int8 TFLite files; the tests compare
multiply-accumulates and weights with the published numbers (Banbury et al., arXiv 2106.07597).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kasmina_edge.hardware_simulator.networks.building import LayerTable, Node
from kasmina_edge.hardware_simulator.workload import Workload


def anomaly_detection() -> Workload:
    """AD: an autoencoder of ten dense layers over 640 spectrogram values, 8 in the middle."""
    net = LayerTable("mlperf-tiny-ad")
    x = net.input((1, 640))
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = net.fully_connected(x, units, activation="relu")
    return net.build(net.fully_connected(x, 640))


def keyword_spotting() -> Workload:
    """KWS: DS-CNN over 49 frames of 10 cepstral coefficients, 12 words."""
    net = LayerTable("mlperf-tiny-kws")
    x = net.conv(net.input((1, 49, 10, 1)), 64, (10, 4), stride=2)
    for _ in range(4):
        x = net.separable(x, 64)
    x = net.average_pool(x, (25, 5), padding="valid")
    return net.build(net.unary("softmax", net.fully_connected(x, 12)))


def visual_wake_words() -> Workload:
    """VWW: MobileNetV1 of width 0.25 over 96 x 96 colour images, person or none; every filter of the file."""
    return _person_detector("mlperf-tiny-vww", (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256))


def visual_wake_words_live() -> Workload:
    """VWW without what is dead for certain: filters of zeros whose bias is not positive, so that ReLU gives zero."""
    return _person_detector("mlperf-tiny-vww-live", (16, 32, 32, 64, 62, 114, 77, 45, 35, 44, 63, 89, 22))


def visual_wake_words_onnc() -> Workload:
    """VWW with the channels that ONNC's generated code has."""
    return _person_detector("mlperf-tiny-vww-onnc", (16, 32, 32, 64, 60, 107, 58, 30, 19, 19, 27, 32, 22))


def _person_detector(name: str, filters: tuple[int, ...]) -> Workload:
    net = LayerTable(name)
    x = net.conv(net.input((1, 96, 96, 3)), 8, 3, stride=2)
    for count, stride in zip(filters, (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), strict=True):
        x = net.separable(x, count, stride=stride)
    x = net.average_pool(x, 3, padding="valid")
    return net.build(net.unary("softmax", net.fully_connected(x, 2)))


def image_classification() -> Workload:
    """IC: ResNet8 over 32 x 32 colour images, 10 classes."""
    net = LayerTable("mlperf-tiny-ic")
    x = net.conv(net.input((1, 32, 32, 3)), 16, 3)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        x = _residual(net, x, filters, stride)
    x = net.average_pool(x, 8, padding="valid")
    return net.build(net.unary("softmax", net.fully_connected(x, 10)))


def _residual(net: LayerTable, x: Node, filters: int, stride: int) -> Node:
    y = net.conv(net.conv(x, filters, 3, stride=stride), filters, 3, activation="")
    if stride > 1:
        x = net.conv(x, filters, 1, stride=stride, activation="")
    return net.add(x, y, activation="relu")


NETWORKS: Mapping[str, Callable[[], Workload]] = {
    "mlperf-tiny-ad": anomaly_detection,
    "mlperf-tiny-kws": keyword_spotting,
    "mlperf-tiny-vww": visual_wake_words,
    "mlperf-tiny-vww-live": visual_wake_words_live,
    "mlperf-tiny-vww-onnc": visual_wake_words_onnc,
    "mlperf-tiny-ic": image_classification,
}
