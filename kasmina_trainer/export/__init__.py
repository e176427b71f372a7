"""From a PyTorch network to a bundle: int8 TFLite and QDQ ONNX, with parity numbers and self-test vectors."""

from kasmina_trainer.export.bundle import export_bundle

__all__ = ["export_bundle"]
