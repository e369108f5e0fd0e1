"""What export writes for each engine that a worker process loads itself, in the version folder of the worker's model."""

ENGINE_FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml"}
