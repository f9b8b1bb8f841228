"""The optimizers' updates: one loop an algorithm, written as on the slide, and the walk over all parameters.

All parameters, in the order of the list, are numbered through; number i has its state at place i of every slot. A step
is cut by these numbers alone: into BLOCKs for the sum of squares, into one run of blocks for each thread, whatever the
tensors' sizes. Every number's update is its own and nothing is contracted to a fused multiply-add, so the bits depend
on no cut and no level.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport isinf, sqrt
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy, memset

from fastconv._kernels.tiles cimport begin_task, end_task, real

cnp.import_array()

cdef extern from "<math.h>" nogil:
    float sqrtf(float)

cdef enum:
    BLOCK = 4096     # parameters that are updated, and their gradients zeroed, in one go: they fit a core's cache
    LANES = 16       # partial sums of the norm
    TEAM = 1 << 15   # parameters below which a second thread costs more than it brings

cdef enum:
    SGD, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, RMSPROP_MOMENTUM, RMSPROP_NESTEROV, ADAM, SOLUTION

ALGORITHMS = {
    "sgd": SGD, "momentum": MOMENTUM, "nesterov": NESTEROV, "adagrad": ADAGRAD, "rmsprop": RMSPROP, "adam": ADAM,
    "rmsprop_momentum": RMSPROP_MOMENTUM, "rmsprop_nesterov": RMSPROP_NESTEROV, "solution": SOLUTION,
}

cdef struct Scalars:
    double lr, scale, decay, a, rho, b1, b2, eps, shrink

cdef struct Stretch:  # parameters begin <= i < end that lie side by side, as do their gradients
    char *theta
    char *g
    Py_ssize_t begin
    Py_ssize_t end

cdef struct Row:  # all n parameters, one after the other
    Stretch *stretches
    Py_ssize_t n_stretches
    Py_ssize_t n


cdef inline real root(real x) noexcept nogil:
    if real is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline real ratio(real x, real y) noexcept nogil:
    """x/y, and 0 where y is 0: a parameter that never had a gradient stays where it is."""
    return x / y if y != 0 else 0


# ---- the algorithms: g is scale times the gradient, plus the coupled decay --------------------------------------
# All is read before anything is written: a load waits for a store just before it if their addresses agree in the low 12 bits,
# as those of arrays that begin with a page do.

cdef void sgd(real *theta, const real *g, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """theta <- theta - lr g"""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay
    cdef Py_ssize_t i
    for i in range(n):
        theta[i] -= lr * (scale * g[i] + decay * theta[i])


cdef void momentum(real *theta, const real *g, real *v, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """v <- a v - lr g;  theta <- theta + v"""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, a = <real> c.a, at, vi
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        vi = a * v[i] - lr * (scale * g[i] + decay * at)
        v[i], theta[i] = vi, at + vi


cdef void nesterov(real *theta, const real *g, real *v, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """v <- a v - lr g;  theta + a v (the old v) becomes theta + v + a v (the new): it grows by a v - lr g"""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, a = <real> c.a
    cdef real at, vi, step
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        step = lr * (scale * g[i] + decay * at)
        vi = a * v[i] - step
        v[i], theta[i] = vi, at + (a * vi - step)


cdef void adagrad(real *theta, const real *g, real *r, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """r <- r + g^2;  theta <- theta - lr g/(eps + sqrt(r))"""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, eps = <real> c.eps
    cdef real at, gi, ri
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        gi = scale * g[i] + decay * at
        ri = r[i] + gi * gi
        r[i], theta[i] = ri, at - lr * ratio(gi, eps + root(ri))


cdef void rmsprop(real *theta, const real *g, real *r, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """r <- rho r + (1 - rho) g^2;  theta <- theta - lr g/(sqrt(r) + eps)"""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, eps = <real> c.eps
    cdef real rho = <real> c.rho, rest = <real> (1 - c.rho), at, gi, ri
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        gi = scale * g[i] + decay * at
        ri = rho * r[i] + rest * (gi * gi)
        r[i], theta[i] = ri, at - lr * ratio(gi, root(ri) + eps)


cdef void rmsprop_momentum(real *theta, const real *g, real *r, real *v, Py_ssize_t n,
                           const Scalars *c) noexcept nogil:
    """r <- rho r + (1 - rho) g^2;  v <- a v - lr g/(sqrt(r) + eps);  theta <- theta + v"""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, eps = <real> c.eps
    cdef real rho = <real> c.rho, rest = <real> (1 - c.rho), a = <real> c.a, at, gi, ri, vi
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        gi = scale * g[i] + decay * at
        ri = rho * r[i] + rest * (gi * gi)
        vi = a * v[i] - lr * ratio(gi, root(ri) + eps)
        r[i], v[i], theta[i] = ri, vi, at + vi


cdef void rmsprop_nesterov(real *theta, const real *g, real *r, real *v, Py_ssize_t n,
                           const Scalars *c) noexcept nogil:
    """As above, with theta + a v in the place of theta."""
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, eps = <real> c.eps
    cdef real rho = <real> c.rho, rest = <real> (1 - c.rho), a = <real> c.a
    cdef real at, gi, ri, vi, step
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        gi = scale * g[i] + decay * at
        ri = rho * r[i] + rest * (gi * gi)
        step = lr * ratio(gi, root(ri) + eps)
        vi = a * v[i] - step
        r[i], v[i], theta[i] = ri, vi, at + (a * vi - step)


cdef void adam(real *theta, const real *g, real *s, real *r, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """s <- b1 s + (1 - b1) g;  r <- b2 r + (1 - b2) g^2;  theta <- theta - lr s/(sqrt(r) + eps)

    lr and eps hold the bias corrections: lr sqrt(1 - b2^t)/(1 - b1^t) and eps sqrt(1 - b2^t) give the same quotient.
    AdamW's decay is shrink, lr times its weight_decay.
    """
    cdef real lr = <real> c.lr, scale = <real> c.scale, decay = <real> c.decay, eps = <real> c.eps
    cdef real b1 = <real> c.b1, b2 = <real> c.b2, rest1 = <real> (1 - c.b1), rest2 = <real> (1 - c.b2)
    cdef real shrink = <real> c.shrink, at, gi, si, ri
    cdef Py_ssize_t i
    for i in range(n):
        at = theta[i]
        gi = scale * g[i] + decay * at
        si = b1 * s[i] + rest1 * gi
        ri = b2 * r[i] + rest2 * (gi * gi)
        s[i], r[i], theta[i] = si, ri, at - (shrink * at + lr * ratio(si, root(ri) + eps))


cdef void solution(real *theta, const real *v, Py_ssize_t n, const Scalars *c) noexcept nogil:
    """theta + a v becomes theta"""
    cdef real a = <real> c.a
    cdef Py_ssize_t i
    for i in range(n):
        theta[i] -= a * v[i]


cdef void apply(int algorithm, real *theta, real *g, real *one, real *two, Py_ssize_t n,
                const Scalars *c) noexcept nogil:
    if algorithm == SGD:
        sgd(theta, g, n, c)
    elif algorithm == MOMENTUM:
        momentum(theta, g, one, n, c)
    elif algorithm == NESTEROV:
        nesterov(theta, g, one, n, c)
    elif algorithm == ADAGRAD:
        adagrad(theta, g, one, n, c)
    elif algorithm == RMSPROP:
        rmsprop(theta, g, one, n, c)
    elif algorithm == RMSPROP_MOMENTUM:
        rmsprop_momentum(theta, g, one, two, n, c)
    elif algorithm == RMSPROP_NESTEROV:
        rmsprop_nesterov(theta, g, one, two, n, c)
    elif algorithm == ADAM:
        adam(theta, g, one, two, n, c)
    elif algorithm == SOLUTION:
        solution(theta, one, n, c)


# ---- the walk ---------------------------------------------------------------------------------------------------

cdef const Stretch *find(const Row *row, Py_ssize_t i) noexcept nogil:
    """The stretch that parameter i lies in."""
    cdef Py_ssize_t low = 0, high = row.n_stretches - 1, middle
    while low < high:
        middle = (low + high) // 2
        if row.stretches[middle].end <= i:
            low = middle + 1
        else:
            high = middle
    return row.stretches + low


cdef inline Py_ssize_t to_next_line(real *theta) noexcept nogil:
    """Parameters before the next cache line, so that whole vectors are written from there on; BLOCK if one begins here."""
    cdef size_t past = <size_t> theta % 64
    return (64 - past) // sizeof(real) if past and past % sizeof(real) == 0 else BLOCK


cdef void update(int algorithm, const Row *row, Py_ssize_t i, Py_ssize_t end, real *one, real *two, const Scalars *c,
                 bint zero) noexcept nogil:
    """Updates parameters i to end, and sets their gradients to 0 while they are in the cache."""
    cdef const Stretch *at = find(row, i)
    cdef Py_ssize_t n
    cdef real *g
    while i < end:
        n = min(BLOCK, end - i, at.end - i, to_next_line(<real *> at.theta + (i - at.begin)))
        g = <real *> at.g + (i - at.begin) if at.g is not NULL else NULL
        apply(algorithm, <real *> at.theta + (i - at.begin), g, one + i, two + i, n, c)
        if zero:
            memset(g, 0, n * sizeof(real))
        i += n
        if i == at.end:
            at += 1


cdef void run(int algorithm, const Row *row, real *one, real *two, const Scalars *c, bint zero,
              int n_threads) noexcept nogil:
    """Updates all parameters, each thread its share of the blocks."""
    cdef Py_ssize_t k, share = ((row.n + BLOCK - 1) // BLOCK + n_threads - 1) // n_threads * BLOCK
    cdef unsigned int before
    for k in prange(n_threads, schedule="static", num_threads=n_threads, use_threads_if=n_threads > 1):
        if k * share < row.n:
            before = begin_task()
            update(algorithm, row, k * share, min(row.n, (k + 1) * share), one, two, c, zero)
            end_task(before)


cdef inline Py_ssize_t rows_of_squares(const real *g, Py_ssize_t i, Py_ssize_t end, double factor,
                                       double *lane) noexcept nogil:
    """lane[k] += (factor g[i + k])^2 for the whole rows of LANES from i on; returns where they end."""
    cdef double local[LANES]
    cdef double x
    cdef Py_ssize_t k
    for k in range(LANES):
        local[k] = lane[k]
    while end - i >= LANES:
        for k in range(LANES):
            x = factor * <double> g[i + k]
            local[k] += x * x
        i += LANES
    for k in range(LANES):
        lane[k] = local[k]
    return i


cdef double squares(const Row *row, Py_ssize_t i, Py_ssize_t end, double factor, const real *like) noexcept nogil:
    """Sum of (factor g)^2 over parameters i to end: number i counts in lane i % LANES, in rising order."""
    cdef const Stretch *at = find(row, i)
    cdef double lane[LANES]
    cdef double x
    cdef const real *g
    cdef Py_ssize_t k, stop
    for k in range(LANES):
        lane[k] = 0
    while i < end:
        stop = min(end, at.end)
        g = <const real *> at.g - at.begin
        while i < stop:
            if i % LANES == 0 and stop - i >= LANES:
                i = rows_of_squares(g, i, stop, factor, lane)
            else:
                x = factor * <double> g[i]
                lane[i % LANES] += x * x
                i += 1
        at += 1
    for k in range(8):
        lane[k] += lane[k + 8]
    for k in range(4):
        lane[k] += lane[k + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef double norm(const Row *row, double factor, double *partial, int n_threads, const real *like) noexcept nogil:
    """Length of all gradients times factor, from the sums of the blocks, added in their order."""
    cdef Py_ssize_t k, n_blocks = (row.n + BLOCK - 1) // BLOCK
    cdef double total = 0
    cdef unsigned int before
    for k in prange(n_blocks, schedule="static", num_threads=n_threads, use_threads_if=n_threads > 1):
        before = begin_task()
        partial[k] = squares(row, k * BLOCK, min(row.n, (k + 1) * BLOCK), factor, like)
        end_task(before)
    for k in range(n_blocks):
        total += partial[k]
    return sqrt(total)


cdef double clip_and_run(int algorithm, const Row *row, real *one, real *two, Scalars *c, double max_norm,
                         double *partial, bint zero, int n_threads) noexcept nogil:
    """Clips and updates; returns the norm of the scaled gradients, or -1 if there is no max_norm."""
    cdef double length = -1
    if max_norm >= 0:
        length = norm(row, 1.0, partial, n_threads, <const real *> one)
        if isinf(length):  # the squares may have overflowed: once more in another scale
            length = norm(row, 2.0 ** -600, partial, n_threads, <const real *> one) * 2.0 ** 600
        length *= c.scale
        if length > max_norm:
            c.scale *= max_norm / length
    run(algorithm, row, one, two, c, zero, n_threads)
    return length


# ---- the calls from Python --------------------------------------------------------------------------------------

cdef enum:  # rows of the table that Python makes once: an intp array with one column more than there are parameters
    ADDRESS  # where each lies
    BEGIN    # the number of its first
    LOW      # where they begin in rising order, and there
    HIGH     # where they end
    SEEN     # where the gradient lay that was last found to share no memory with a parameter


cdef bint same_shape(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int k
    if cnp.PyArray_NDIM(a) != cnp.PyArray_NDIM(b):
        return False
    for k in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[k] != cnp.PyArray_DIMS(b)[k]:
            return False
    return True


cdef bint apart(Py_ssize_t low, Py_ssize_t high, const Py_ssize_t *lows, const Py_ssize_t *highs,
                Py_ssize_t n) noexcept:
    """Whether bytes low to high lie outside all n disjoint pieces, which stand in rising order."""
    cdef Py_ssize_t k = 0, middle
    while k < n:
        middle = (k + n) // 2
        if highs[middle] <= low:
            k = middle + 1
        else:
            n = middle
    return lows[k] >= high  # the column after the last piece holds the largest number there is


cdef char *gradient(Py_ssize_t i, cnp.ndarray p, given, Py_ssize_t *table, Py_ssize_t columns, bint zero, owner,
                    list copies) except? NULL:
    """Where gradient i lies; what is not plainly right goes to the owner's checks, which raise or return a copy."""
    cdef Py_ssize_t *seen = table + SEEN * columns + i
    cdef cnp.ndarray g
    cdef Py_ssize_t at
    if type(given) is cnp.ndarray:
        g = given
        if (cnp.PyArray_TYPE(g) == cnp.PyArray_TYPE(p) and same_shape(g, p)
                and (cnp.PyArray_ISCARRAY(g) if zero else cnp.PyArray_ISCARRAY_RO(g))):
            at = <Py_ssize_t> cnp.PyArray_BYTES(g)
            if at == seen[0]:
                return cnp.PyArray_BYTES(g)
            if apart(at, at + cnp.PyArray_NBYTES(g), table + LOW * columns, table + HIGH * columns, columns - 1):
                seen[0] = at
                return cnp.PyArray_BYTES(g)
    g = owner._gradient(i, given, zero)
    copies.append((given, g))
    return cnp.PyArray_BYTES(g)


cdef int bind(Row *row, list params, list grads, Py_ssize_t *table, bint zero, owner, list copies) except -1:
    """Joins parameters and gradients to stretches."""
    cdef Py_ssize_t i, n, columns = len(params) + 1
    cdef Py_ssize_t *address = table + ADDRESS * columns
    cdef Py_ssize_t *begin = table + BEGIN * columns
    cdef cnp.ndarray p
    cdef char *theta
    cdef char *g = NULL
    row.n, row.n_stretches = begin[columns - 1], 0
    for i in range(columns - 1):
        p = params[i]
        theta, n = cnp.PyArray_BYTES(p), cnp.PyArray_SIZE(p)
        if <Py_ssize_t> theta != address[i] or n != begin[i + 1] - begin[i] or not cnp.PyArray_ISCARRAY(p):
            owner._changed(i)
        if grads is not None:
            g = gradient(i, p, grads[i], table, columns, zero, owner, copies)
        if n == 0:
            continue
        if row.n_stretches and joins(&row.stretches[row.n_stretches - 1], theta, g, cnp.PyArray_ITEMSIZE(p)):
            row.stretches[row.n_stretches - 1].end += n
        else:
            row.stretches[row.n_stretches] = Stretch(theta, g, begin[i], begin[i + 1])
            row.n_stretches += 1
    return 0


cdef bint joins(const Stretch *last, char *theta, char *g, Py_ssize_t itemsize) noexcept:
    """Whether parameters at theta with gradients at g continue the last stretch."""
    cdef Py_ssize_t bytes = (last.end - last.begin) * itemsize
    return last.theta + bytes == theta and (g is NULL if last.g is NULL else last.g + bytes == g)


cdef int by_gradient(const void *a, const void *b) noexcept nogil:
    cdef char *x = (<const Stretch *> a).g
    cdef char *y = (<const Stretch *> b).g
    return (x > y) - (x < y)


cdef int disjoint(const Row *row, Py_ssize_t itemsize) except -1:
    """Whether no two gradients share memory, as they must if one is set to 0 before the next is read."""
    cdef Stretch *sorted = <Stretch *> malloc((row.n_stretches + 1) * sizeof(Stretch))
    cdef Py_ssize_t k
    cdef bint yes = True
    if sorted is NULL:
        raise MemoryError
    memcpy(sorted, row.stretches, row.n_stretches * sizeof(Stretch))
    qsort(sorted, row.n_stretches, sizeof(Stretch), by_gradient)
    for k in range(row.n_stretches - 1):
        if sorted[k].g + (sorted[k].end - sorted[k].begin) * itemsize > sorted[k + 1].g:
            yes = False
    free(sorted)
    return yes


def step(int algorithm, list params, list grads, cnp.ndarray table, tuple slots, tuple scalars, double max_norm,
         bint zero, int n_threads, owner):
    """One update of all parameters. If the owner's checks raise, nothing has been changed."""
    cdef void *one = cnp.PyArray_DATA(slots[0]) if len(slots) > 0 else NULL
    cdef void *two = cnp.PyArray_DATA(slots[1]) if len(slots) > 1 else NULL
    cdef bint is_double = cnp.PyArray_TYPE(params[0]) == cnp.NPY_DOUBLE
    cdef double length
    cdef double *partial = NULL
    cdef list copies = []
    cdef Scalars c
    cdef Row row
    c.lr, c.scale, c.decay, c.a, c.rho, c.b1, c.b2, c.eps, c.shrink = scalars
    row.stretches = <Stretch *> malloc((len(params) + 1) * sizeof(Stretch))
    try:
        if row.stretches is NULL:
            raise MemoryError
        bind(&row, params, grads, <Py_ssize_t *> cnp.PyArray_DATA(table), zero, owner, copies)
        if zero and not disjoint(&row, cnp.PyArray_ITEMSIZE(params[0])):
            owner._gradients_overlap()
        if max_norm >= 0:
            partial = <double *> malloc((row.n // BLOCK + 1) * sizeof(double))
            if partial is NULL:
                raise MemoryError
        if row.n < TEAM:
            n_threads = 1
        with nogil:
            if is_double:
                length = clip_and_run(algorithm, &row, <double *> one, <double *> two, &c, max_norm, partial, zero,
                                      n_threads)
            else:
                length = clip_and_run(algorithm, &row, <float *> one, <float *> two, &c, max_norm, partial, zero,
                                      n_threads)
        if zero:
            for given, copy in copies:
                if given is not copy:
                    given.fill(0)
    finally:
        free(partial)
        free(row.stretches)
    return length
