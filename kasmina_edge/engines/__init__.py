"""Inference libraries behind one interface: LiteRT (CPU, Edge TPU), ONNX Runtime, OpenVINO, others by entry point."""

from kasmina_edge.engines.choice import AUTO, check_layout, choose_engine
from kasmina_edge.engines.engine import Engine, EngineCheck, FileFacts, LoadedTensor
from kasmina_edge.engines.measure import Measured, fastest, measure_engines
from kasmina_edge.engines.opening import choose_for, open_engine
from kasmina_edge.engines.registry import Registered, engine_type, engine_types, registered_engines
from kasmina_edge.engines.selftest import SelfTestResult, self_test

__all__ = [
    "AUTO",
    "Engine",
    "EngineCheck",
    "FileFacts",
    "LoadedTensor",
    "Measured",
    "Registered",
    "SelfTestResult",
    "check_layout",
    "choose_engine",
    "choose_for",
    "engine_type",
    "engine_types",
    "fastest",
    "measure_engines",
    "open_engine",
    "registered_engines",
    "self_test",
]
