/* What trellis_search.py does to find integers, and codec.py to make weights of them, compiled: the same numbers.

They are the specification. Every float here is one IEEE operation of its own, in the order that it has there, so
it must be compiled without contraction of products and sums (-ffp-contract=off). */

#include "../../coding/native.h"
#include <math.h>

enum { LEVELS = 64, LARGEST = 1 << 20 };

typedef struct {
    const float *factor, *steps, *pivots, *prices; /* factor may be NULL */
    size_t columns;
} Columns;

/* The best way to each state, of the columns of a row so far. */
typedef struct {
    double cost[STATES];  /* INFINITY where no way leads */
    float *wanted, *next; /* (STATES, columns): what each way has left to later columns, and where to make the next */
    float *codes;         /* (columns, STATES) */
    uint8_t *origins;     /* (columns, STATES) */
} Paths;

/* The integer of that quantiser and parity that costs least, the nearest or the one below. */
static inline float nearest(float value, int odd, int parity, const float *prices, float *cost)
{
    float size = fabsf(value);
    size = size < (float)LARGEST ? size : (float)LARGEST;
    const float first = 2 * parity + odd, rounded = floorf((size - first) * 0.25f + 0.5f);
    const float count = rounded > 0 ? rounded : 0, near = 4 * count + first, below = count > 0 ? near - 4 : near;
    const float highest = LEVELS - 1, level = near * 0.5f, lower = below * 0.5f;
    const float by_near = (size - near) * (size - near) + prices[(int)(level < highest ? level : highest)];
    const float by_below = (size - below) * (size - below) + prices[(int)(lower < highest ? lower : highest)];
    *cost = by_below < by_near ? by_below : by_near;
    return copysignf(by_below < by_near ? below : near, value);
}

/* Leads all paths through a column. */
static void advance(Paths *paths, const Columns *all, size_t column, const float *target)
{
    const float step = all->steps[column];
    float *code = paths->codes + column * STATES;
    uint8_t *origin = paths->origins + column * STATES;
    double unit = (double)step * all->pivots[column], after[STATES];
    unit *= unit;
    for (int state = 0; state < STATES; state++) {
        after[state] = INFINITY;
        code[state] = origin[state] = 0;
    }
    for (int state = 0; state < STATES; state++) {
        if (paths->cost[state] == INFINITY)
            continue;
        const float value = (all->factor ? paths->wanted[state * all->columns + column] : target[column]) / step;
        for (int parity = 0; parity < 2; parity++) {
            float price;
            const float found = nearest(value, state & 1, parity, all->prices + LEVELS * (state & 1), &price);
            const double total = paths->cost[state] + price * unit;
            const int to = NEXT[state][parity];
            if (total < after[to]) {
                after[to] = total;
                code[to] = found;
                origin[to] = state;
            }
        }
    }
    memcpy(paths->cost, after, sizeof after);
}

VECTORISED static void leave(float *wanted, const float *before, const float *factor, float error, size_t count)
{
    for (size_t at = 0; at < count; at++)
        wanted[at] = before[at] + factor[at] * error;
}

/* Leaves the error that each path makes in a column to the later ones. */
static void leave_all(Paths *paths, const Columns *all, size_t column, float weight)
{
    const float *code = paths->codes + column * STATES, *factor = all->factor + column * all->columns;
    const uint8_t *origin = paths->origins + column * STATES;
    const size_t later = column + 1;
    for (int state = 0; state < STATES; state++)
        if (paths->cost[state] != INFINITY)
            leave(paths->next + state * all->columns + later, paths->wanted + origin[state] * all->columns + later,
                  factor + later, weight - code[state] * all->steps[column], all->columns - later);
    float *made = paths->next;
    paths->next = paths->wanted;
    paths->wanted = made;
}

/* The integers of the best path, and the state that it ends in. */
static uint8_t trace(const Paths *paths, size_t columns, float *codes)
{
    int best = 0;
    for (int state = 1; state < STATES; state++)
        if (paths->cost[state] < paths->cost[best])
            best = state;
    const uint8_t end = best;
    for (size_t column = columns; column--;) {
        codes[column] = paths->codes[column * STATES + best];
        best = paths->origins[column * STATES + best];
    }
    return end;
}

/* That of the integers of a row; ``left`` is room for the columns. */
static double distortion(const Columns *all, const float *weight, const float *target, const float *codes, float *left)
{
    double total = 0;
    memcpy(left, target, all->columns * sizeof *left);
    for (size_t column = 0; column < all->columns; column++) {
        const size_t later = column + 1;
        const float rounded = codes[column] * all->steps[column];
        const double error = (double)(left[column] - rounded) * all->pivots[column];
        total += error * error;
        if (all->factor)
            leave(left + later, left + later, all->factor + column * all->columns + later, weight[column] - rounded,
                  all->columns - later);
    }
    return total;
}

static double search_row(const Columns *all, Paths *paths, const float *weight, const float *target, uint8_t *state,
                         float *codes)
{
    for (int other = 0; other < STATES; other++)
        paths->cost[other] = INFINITY;
    paths->cost[*state] = 0;
    if (all->factor)
        memcpy(paths->wanted + *state * all->columns, target, all->columns * sizeof *target);
    for (size_t column = 0; column < all->columns; column++) {
        advance(paths, all, column, target);
        if (all->factor)
            leave_all(paths, all, column, weight[column]);
    }
    *state = trace(paths, all->columns, codes);
    return distortion(all, weight, target, codes, paths->wanted);
}

/* Whether there was memory for it. */
static int search(const Columns *all, const float *weight, const float *target, uint8_t *states, float *codes,
                  double *errors, size_t rows)
{
    const size_t columns = all->columns;
    Memory memory = {NULL, 0};
    Paths paths = {{0}, NULL, NULL, NULL, NULL};
    paths.wanted = take(&memory, columns, STATES * sizeof *paths.wanted);
    paths.next = take(&memory, columns, STATES * sizeof *paths.next);
    paths.codes = take(&memory, columns, STATES * sizeof *paths.codes);
    paths.origins = take(&memory, columns, STATES);
    for (size_t row = 0; !memory.failed && row < rows; row++)
        errors[row] += search_row(all, &paths, weight + row * columns, target + row * columns, states + row,
                                  codes + row * columns);
    release(&memory);
    return !memory.failed;
}

/* ``rows[i] * columns[j] * codes[i, j]``, in float64, rounded once. */
VECTORISED static void dequantise_row(float *out, double row, const double *columns, const int8_t *codes, size_t count)
{
    for (size_t at = 0; at < count; at++)
        out[at] = (float)(row * columns[at] * codes[at]);
}

/* ---- Python */

enum { WEIGHT, TARGET, STEPS, PIVOTS, PRICES, START, CODES, ERRORS, FACTOR, SEARCHED };

static int fits_search(const Py_buffer *given, size_t rows, size_t columns)
{
    const size_t sizes[SEARCHED] = {
        [WEIGHT] = 4 * rows * columns, [TARGET] = 4 * rows * columns, [STEPS] = 4 * columns, [PIVOTS] = 4 * columns,
        [PRICES] = 4 * 2 * LEVELS,     [START] = rows,                [CODES] = 4 * rows * columns,
        [ERRORS] = 8 * rows,           [FACTOR] = given[FACTOR].obj ? 4 * columns * columns : 0};
    int fits = 1;
    for (int which = 0; which < SEARCHED; which++)
        fits &= (size_t)given[which].len == sizes[which];
    for (size_t row = 0; fits && row < rows; row++)
        fits = ((const uint8_t *)given[START].buf)[row] < STATES;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the rows and columns have, or no such state");
    return fits;
}

static void run_search(Py_buffer *given)
{
    const size_t rows = given[START].len;
    const Columns all = {given[FACTOR].obj ? given[FACTOR].buf : NULL, given[STEPS].buf, given[PIVOTS].buf,
                         given[PRICES].buf, given[STEPS].len / 4};
    int done = 0;
    if (!fits_search(given, rows, all.columns))
        return;
    Py_BEGIN_ALLOW_THREADS
    done = search(&all, given[WEIGHT].buf, given[TARGET].buf, given[START].buf, given[CODES].buf, given[ERRORS].buf,
                  rows);
    Py_END_ALLOW_THREADS
    if (!done)
        PyErr_NoMemory();
}

static PyObject *native_search(PyObject *self, PyObject *args)
{
    Py_buffer given[SEARCHED] = {{0}};
    PyObject *factor;
    if (!PyArg_ParseTuple(args, "y*y*Oy*y*y*w*w*w*", &given[WEIGHT], &given[TARGET], &factor, &given[STEPS],
                          &given[PIVOTS], &given[PRICES], &given[START], &given[CODES], &given[ERRORS]))
        return NULL;
    if (factor == Py_None || PyObject_GetBuffer(factor, &given[FACTOR], PyBUF_SIMPLE) == 0)
        run_search(given);
    for (int which = 0; which < SEARCHED; which++)
        PyBuffer_Release(&given[which]);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *native_dequantise(PyObject *self, PyObject *args)
{
    Py_buffer out, rows, columns, codes;
    if (!PyArg_ParseTuple(args, "w*y*y*y*", &out, &rows, &columns, &codes))
        return NULL;
    const size_t height = rows.len / 8, width = columns.len / 8;
    if ((size_t)codes.len != height * width || (size_t)out.len != 4 * height * width)
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the matrix has");
    else {
        Py_BEGIN_ALLOW_THREADS
        for (size_t row = 0; row < height; row++)
            dequantise_row((float *)out.buf + row * width, ((const double *)rows.buf)[row], columns.buf,
                           (const int8_t *)codes.buf + row * width, width);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out), PyBuffer_Release(&rows), PyBuffer_Release(&columns), PyBuffer_Release(&codes);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"search", native_search, METH_VARARGS,
     "search(weight, target, factor, steps, pivots, table, states, codes, errors)"},
    {"dequantise", native_dequantise, METH_VARARGS, "dequantise(out, rows, columns, codes)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_search", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__search(void)
{
    return module_with(&definition, Py_BuildValue("{s:i,s:y#,s:i,s:i}", "STATES", STATES, "NEXT", NEXT,
                                                  (Py_ssize_t)sizeof NEXT, "LEVELS", LEVELS, "LARGEST", LARGEST));
}
