"""Inference libraries behind one interface: LiteRT (CPU, Edge TPU) and ONNX Runtime."""

from kasmina_edge.engines.choice import check_layout, choose_engine, engine_types, open_engine
from kasmina_edge.engines.engine import Engine, EngineCheck, SelfTestResult, self_test

__all__ = [
    "Engine",
    "EngineCheck",
    "SelfTestResult",
    "check_layout",
    "choose_engine",
    "engine_types",
    "open_engine",
    "self_test",
]
