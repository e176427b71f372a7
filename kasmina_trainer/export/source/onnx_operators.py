"""Which ONNX operators can be taken, and what each becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from kasmina_trainer.export.source import onnx_layers as layers
from kasmina_trainer.export.source import onnx_moves as moves
from kasmina_trainer.export.source.onnx_step import Made, Step

OPERATORS: Mapping[str, Callable[[Step], Made]] = {
    "Abs": layers.unary(torch.abs),
    "Add": layers.binary(torch.add),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Clip": layers.clip,
    "Concat": moves.concat,
    "Constant": moves.constant,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "DepthToSpace": moves.depth_to_space,
    "Div": layers.binary(torch.div),
    "Dropout": moves.same,
    "Elu": lambda step: step.layer(nn.ELU(float(step.options.get("alpha", 1.0)))),
    "Erf": layers.unary(torch.erf),
    "Exp": layers.unary(torch.exp),
    "Flatten": moves.flatten,
    "Gather": moves.gather,
    "Gelu": layers.gelu,
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.over_space(torch.mean),
    "GlobalMaxPool": layers.over_space(torch.amax),
    "HardSigmoid": layers.hard_sigmoid,
    "HardSwish": layers.layered(nn.Hardswish),
    "Identity": moves.same,
    "LayerNormalization": layers.layer_norm,
    "LeakyRelu": lambda step: step.layer(nn.LeakyReLU(float(step.options.get("alpha", 0.01)))),
    "Log": layers.unary(torch.log),
    "LogSoftmax": layers.softmax(torch.log_softmax),
    "MatMul": layers.matmul,
    "Max": layers.binary(torch.maximum),
    "MaxPool": layers.max_pool,
    "Min": layers.binary(torch.minimum),
    "Mul": layers.binary(torch.mul),
    "Neg": layers.unary(torch.neg),
    "PRelu": layers.prelu,
    "Pad": moves.pad,
    "Pow": layers.binary(torch.pow),
    "ReduceMax": layers.reduced(torch.amax),
    "ReduceMean": layers.reduced(torch.mean),
    "ReduceMin": layers.reduced(torch.amin),
    "ReduceSum": layers.reduced(torch.sum),
    "Relu": layers.layered(nn.ReLU),
    "Reshape": moves.reshape,
    "Resize": moves.resize,
    "Sigmoid": layers.layered(nn.Sigmoid),
    "Slice": moves.cut,
    "Softmax": layers.softmax(torch.softmax),
    "Softplus": layers.layered(nn.Softplus),
    "Split": moves.split,
    "Sqrt": layers.unary(torch.sqrt),
    "Squeeze": moves.squeeze,
    "Sub": layers.binary(torch.sub),
    "Sum": layers.binary(torch.add),
    "Tanh": layers.layered(nn.Tanh),
    "Transpose": moves.transpose,
    "Unsqueeze": moves.unsqueeze,
    "Upsample": moves.resize,
}
"""Converters by operator; a name with a domain in front is not ONNX's own."""
