"""What the kernels use of C, under one name for float and for double."""

cimport cython
cimport numpy as cnp

ctypedef fused real:
    float
    double

cdef extern from "kernels.h" nogil:
    int MR
    int VECTOR_BYTES
    unsigned int flush_denormals()
    void restore_denormals(unsigned int before)


cdef inline real *data(cnp.ndarray array, real *like) noexcept:
    """Where an array's numbers begin; `like` only names the type."""
    return <real *> cnp.PyArray_DATA(array)
