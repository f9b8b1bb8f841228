"""fastconv: convolution, its gradients and fused optimizer updates for NumPy, on a CPU."""

__version__ = "0.1.0"
from fastconv.geometry import ConvGeometry, GeometryError
from fastconv.ops import *
from fastconv.runtime import *
