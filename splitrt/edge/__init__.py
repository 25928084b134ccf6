"""The device: capture, head, link, and the Edge that joins them (ONNX Runtime, never torch)."""
