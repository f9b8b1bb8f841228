"""Convolution by the register tile: direct and im2col, forward and both gradients."""
cimport numpy as cnp
from fastconv._kernels.tiles cimport real, MR
cnp.import_array()
def mr():
    return MR
