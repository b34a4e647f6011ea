"""What lies in the folder of an exported model; needs nothing but Python."""

SETTINGS = "export.json"
VERSION = 1  # of the folder's layout
TEXT, UNET, DECODER = PROGRAMS = "text_encoder", "unet", "decoder"
SUFFIXES = {"jax": ".stablehlo", "litert": ".tflite", "iree": ".vmfb", "onnx": ".onnx"}
"""Target -> the ending of its programs' files."""
TARGETS = tuple(SUFFIXES)
