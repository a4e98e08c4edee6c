"""A classifier as a file for elsewhere: preprocessing and network in one, uint8 images in, probabilities out.

The weights are float32, and the file gives what the library gives in float32 on a CPU, whatever the run's precision
was. Each file is compared with the library before it is written: one that differs by more than `TOLERANCE` is not.
"""

from cifarnet.export.comparison import TOLERANCE
from cifarnet.export.exported import ExportedFile
from cifarnet.export.onnx_file import export_onnx
from cifarnet.export.torch_file import export_torch

__all__ = ["TOLERANCE", "ExportedFile", "export_onnx", "export_torch"]
