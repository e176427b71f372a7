"""Networks as tables of layers: shapes by TensorFlow's rules, and counts as published."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.networks import coral, names, table
from kasmina_edge.hardware_simulator.networks.building import LayerTable

# name: multiply-adds and parameters in millions, as the source states them (None: it states none)
PUBLISHED = {
    "mobilenet-v1": (569, 4.24),  # arXiv 1704.04861, tables 8; slim/nets/mobilenet_v1.md
    "mobilenet-v2": (300, 3.47),  # arXiv 1801.04381, table 4; slim/nets/mobilenet/README.md
    "inception-v1": (1500, 6.62),  # arXiv 1409.4842, section 5; torchvision's googlenet with 3x3 for 5x5
    "inception-v4": (12_280, 42.68),  # timm, inception_v4 at 299
    "mobilenet-v1-ssd": (1_200, 6.8),  # arXiv 1704.04861, table 13
    "mobilenet-v2-ssd": (None, 6.1),  # 6.2 MB of int8 in Coral's zoo
    "densenet": (None, 10.9),  # 43.6 MB of floats, TensorFlow's hosted models
    "resnet-50-v1-299": (None, 25.56),  # arXiv 1512.03385; counts at 224 do not hold at 299
    "resnet-152-v2": (None, 60.38),  # keras.io/api/applications
    "squeezenet": (837, 1.25),  # arXiv 1602.07360; 837 M of the Caffe model at 227 with valid padding
    "vgg16": (15_470, 138.36),  # arXiv 1409.1556; torchvision
    "vgg19": (19_632, 143.67),  # arXiv 1409.1556; torchvision
    "efficientnet-edgetpu-s": (1_810, 5.44),  # timm, efficientnet_es
    "efficientnet-edgetpu-m": (3_040, 6.90),  # timm, efficientnet_em at 240
    "efficientnet-edgetpu-l": (8_050, 10.59),  # timm, efficientnet_el at 300
    "unet-mobilenet-v2-128": (None, 6.50),  # tensorflow.org/tutorials/images/segmentation: 6,504,227
    "deeplab-v3-513": (2_750, 2.11),  # arXiv 1801.04381, table 7
    "inception-resnet-v2": (13_180, 55.84),  # timm, inception_resnet_v2 at 299
    "resnet-50-v2-299": (None, 25.61),  # keras.io/api/applications
}


def parameters(name: str) -> float:
    """Weights and biases, not bytes."""
    return sum(math.prod(op.weights) + (op.constant_bytes - math.prod(op.weights)) / 4 for op in table(name).ops)


@pytest.mark.parametrize("name", [*coral.NETWORKS])
def test_counts_are_the_published_ones(name: str) -> None:
    macs, weights = PUBLISHED[name]
    tolerance = 0.05 if name == "squeezenet" else 0.035
    if macs is not None:
        assert table(name).macs / 1e6 == pytest.approx(macs, rel=tolerance)
    assert parameters(name) / 1e6 == pytest.approx(weights, rel=0.025)


def test_the_hosted_densenet_is_recognised_by_its_size() -> None:
    assert 4 * parameters("densenet") / 1e6 == pytest.approx(43.6, rel=0.01)


def test_every_anchor_of_the_coral_profiles_has_a_table() -> None:
    for profile in ("coral-usb", "coral-dev-board"):
        assert {a.network for a in load_profile(profile).anchors} <= set(names())
    assert not set(coral.UNSEEN) & {a.network for a in load_profile("coral-usb").anchors}


def test_an_unknown_network_gets_the_nearest_names() -> None:
    with pytest.raises(InputError, match="resnet-50-v1") as caught:
        table("resnet-50-v1")
    assert "resnet-50-v1-299" in caught.value.next_step


@pytest.mark.parametrize("name", [*coral.NETWORKS])
def test_lives_hang_together(name: str) -> None:
    """Every tensor is written before it is read, every operation is read by somebody or is an output."""
    work = table(name)
    written = {t.first for t in work.tensors}
    assert written == set(range(-1, len(work.ops)))
    for tensor in work.tensors:
        assert all(reader > tensor.first for reader in tensor.readers)
        assert tensor.last == len(work.ops) or tensor.last == max(tensor.readers)
    read = [0] * len(work.ops)
    for tensor in work.tensors:
        for reader in tensor.readers:
            read[reader] += 1
    assert min(read) >= 1
    assert any(t.last == len(work.ops) for t in work.tensors)


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.sampled_from(("same", "valid")),
)
def test_windows_follow_tensorflows_rules(
    size: int, kernel: int, stride: int, dilation: int, padding: Literal["same", "valid"]
) -> None:
    """Against counting the places where the window can stand."""
    span = (kernel - 1) * dilation + 1
    if padding == "valid" and span > size:
        with pytest.raises(InputError, match=f"window of .*{span}.* does not fit"):
            t = LayerTable("t")
            t.conv(t.input((1, size, size, 2)), 3, kernel, stride=stride, dilation=dilation, padding=padding)
        return
    starts = range(0, size, stride) if padding == "same" else range(0, size - span + 1, stride)
    t = LayerTable("t")
    x = t.input((1, size, size, 2))
    y = t.conv(x, 3, kernel, stride=stride, dilation=dilation, padding=padding)
    assert y.shape == (1, len(starts), len(starts), 3)
    deep = t.depthwise(x, kernel, stride=stride, dilation=dilation, padding=padding)
    work = t.build(y, deep)
    assert work.ops[0].macs == len(starts) ** 2 * 3 * kernel * kernel * 2
    assert work.ops[1].macs == len(starts) ** 2 * 2 * kernel * kernel
    assert work.ops[0].constant_bytes == 3 * kernel * kernel * 2 + 4 * 3


def test_shapes_of_the_other_layers() -> None:
    t = LayerTable("t", dtype="float32")
    x = t.input((1, 10, 12, 6))
    assert t.max_pool(x, 3, stride=2).shape == (1, 5, 6, 6)
    assert t.average_pool(x, 2).shape == (1, 5, 6, 6)
    assert t.mean(x).shape == (1, 6) and t.mean(x, keep=True).shape == (1, 1, 1, 6)
    assert t.transpose_conv(x, 4, 3).shape == (1, 20, 24, 4)
    assert t.transpose_conv(x, 4, 3, padding="valid").shape == (1, 21, 25, 4)
    assert t.concat([x, x], axis=1).shape == (1, 20, 12, 6)
    assert t.pad(x, (1, 2)).shape == (1, 12, 16, 6)
    assert t.resize(x, 20, 24).shape == (1, 20, 24, 6)
    assert t.conv(x, 8, 1, groups=2).shape == (1, 10, 12, 8)
    work = t.build()
    conv = work.ops[-1]
    assert conv.weights == (8, 1, 1, 3) and conv.macs == 120 * 8 * 3
    assert conv.constant_bytes == 4 * (24 + 8)  # a float network has float biases
    assert work.ops[4].macs == 120 * 9 * 6 * 4


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda t, x: t.add(x, t.max_pool(x, 2)), "op 1 ADD.*expected two equal"),
        (lambda t, x: t.concat([x, t.max_pool(x, 2)]), "differ outside axis 3"),
        (lambda t, x: t.reshape(x, (1, 7)), "has 256 elements.*has 7"),
        (lambda t, x: t.conv(x, 3, 1, groups=2), "4 to 3 channels in 2 groups"),
        (lambda t, x: t.conv(t.mean(x), 3, 1), "expected \\(batch, height, width, channels\\)"),
        (lambda t, x: t.input((1, 0, 3)), "every axis is at least 1"),
    ],
)
def test_what_does_not_fit_is_named(wrong: object, words: str) -> None:
    t = LayerTable("t")
    with pytest.raises(InputError, match=words):
        wrong(t, t.input((1, 8, 8, 4)))  # type: ignore[operator]


def test_an_empty_table_and_an_unknown_type() -> None:
    with pytest.raises(InputError, match="no layers"):
        LayerTable("t").build()
    with pytest.raises(InputError, match="'int5'"):
        LayerTable("t", dtype="int5")
