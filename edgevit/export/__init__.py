"""ONNX files: writing them, counting them, and proving that they are what was promised."""
