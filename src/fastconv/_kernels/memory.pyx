"""Memory for results and workspaces, aligned to 64 bytes and used again.

Fresh memory costs as much as a pass over it: the system hands out its pages one by one, zeroed. So a `Block` that nobody holds
any more keeps its memory in a list of at most SLOTS pieces and `limit` bytes, and the next array of about its size takes it.
"""

cimport cython
cimport numpy as cnp

cnp.import_array()

cdef extern from "memory.h":
    void *aligned_new(size_t bytes) nogil
    void aligned_delete(void *p) nogil

cdef enum:
    SLOTS = 512
    SMALLEST = 1 << 15  # below this malloc is as good

cdef struct Piece:
    void *at
    size_t bytes

cdef Piece idle[SLOTS]
cdef int n_idle = 0
cdef size_t idle_bytes = 0
cdef size_t limit = 1 << 30
cdef cython.pymutex lock


cdef void *take(size_t bytes, size_t *got) noexcept:
    """The smallest idle piece that holds `bytes` and wastes no more than a quarter, of equals the one used last, for it may be
    in a cache still; else fresh memory; NULL if there is none."""
    global n_idle, idle_bytes
    cdef int i, best = -1
    cdef void *at = NULL
    with lock:
        for i in range(n_idle):
            if bytes <= idle[i].bytes <= bytes + bytes // 4 and (best < 0 or idle[i].bytes <= idle[best].bytes):
                best = i
        if best >= 0:
            at, got[0] = idle[best].at, idle[best].bytes
            forget(best)
    if at is NULL:
        got[0] = (bytes + 4095) // 4096 * 4096
        at = aligned_new(got[0])
    return at


cdef void forget(int i) noexcept:
    """Strikes piece i off the list, keeping the order: the oldest stands first. The caller holds the lock."""
    global n_idle, idle_bytes
    idle_bytes -= idle[i].bytes
    n_idle -= 1
    while i < n_idle:
        idle[i] = idle[i + 1]
        i += 1


cdef void give_back(void *at, size_t bytes) noexcept:
    global n_idle, idle_bytes
    with lock:
        while n_idle and (n_idle == SLOTS or idle_bytes + bytes > limit):
            aligned_delete(idle[0].at)
            forget(0)
        if bytes <= limit:
            idle[n_idle] = Piece(at, bytes)
            n_idle += 1
            idle_bytes += bytes
            at = NULL
    if at is not NULL:
        aligned_delete(at)


@cython.final
cdef class Block:
    """Owns a piece of memory while arrays use it."""
    cdef void *at
    cdef size_t bytes

    def __dealloc__(self):
        if self.at is not NULL:
            give_back(self.at, self.bytes)


def empty(tuple shape, dtype):
    """Like np.empty(shape, dtype), C order; MemoryError where there is no memory."""
    cdef cnp.npy_intp dims[32]
    cdef cnp.dtype kind = cnp.PyArray_DescrFromType(cnp.NPY_FLOAT32) if dtype is None else cnp.dtype(dtype)
    cdef size_t bytes = kind.itemsize
    cdef Py_ssize_t n, i = 0
    for size in shape:
        if size and bytes > (1 << 62) // size:
            raise MemoryError(f"no memory for an array of shape {shape}")
        n = size
        dims[i] = n
        i += 1
        bytes *= <size_t> n
    if bytes < SMALLEST:
        return cnp.PyArray_EMPTY(<int> i, dims, kind.type_num, 0)
    cdef Block block = Block()
    block.at = take(bytes, &block.bytes)
    if block.at is NULL:
        raise MemoryError(f"no memory for an array of shape {shape}, {bytes} bytes")
    cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(<int> i, dims, kind.type_num, block.at)
    cnp.set_array_base(array, block)
    return array


def set_cache_limit(size_t bytes):
    """Keep at most so much idle memory; 0 gives everything back."""
    global limit
    with lock:
        limit = bytes
        while n_idle and idle_bytes > limit:
            aligned_delete(idle[0].at)
            forget(0)


def cached_bytes():
    return idle_bytes
