"""The register tile, compiled once for all kernels of a level: they take its `addresses` by `find_tiles` of tiles.pxd."""

from cpython.pycapsule cimport PyCapsule_New

from fastconv._kernels.tiles cimport tile_addresses


cdef extern from "tile_code.h":
    const tile_addresses all_tiles


addresses = PyCapsule_New(<void *> &all_tiles, NULL, NULL)
