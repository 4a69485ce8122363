/* What the compiled modules of mmriem share: checked memory, and the trellis that integers follow. */

#ifndef MMRIEM_NATIVE_H
#define MMRIEM_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

enum { STATES = 8 };

/* The state after an index that is even, and odd: see trellis.py. */
static const uint8_t NEXT[STATES][2] = {{0, 2}, {7, 5}, {1, 3}, {6, 4}, {2, 0}, {5, 7}, {3, 1}, {4, 6}};

/* ---- memory */

typedef struct Block {
    struct Block *before;
    double aligned;
} Block;

/* All that one call takes, and gives back at its end. */
typedef struct {
    Block *last;
    int failed; /* something could not be had: what was asked for since the start must not be used */
} Memory;

static void *take(Memory *memory, size_t count, size_t size)
{
    Block *block = NULL;
    if (count <= (PY_SSIZE_T_MAX - sizeof *block) / size)
        block = malloc(sizeof *block + count * size);
    if (!block) {
        memory->failed = 1;
        return NULL;
    }
    block->before = memory->last;
    memory->last = block;
    return block + 1;
}

static inline void *take_zeros(Memory *memory, size_t count, size_t size)
{
    void *taken = take(memory, count, size);
    return taken ? memset(taken, 0, count * size) : NULL;
}

static void release(Memory *memory)
{
    while (memory->last) {
        Block *block = memory->last;
        memory->last = block->before;
        free(block);
    }
}

/* ---- Python */

/* The module with the constants of the format that it was compiled with, which takes the reference to them. */
static PyObject *module_with(struct PyModuleDef *definition, PyObject *constants)
{
    PyObject *module = constants ? PyModule_Create(definition) : NULL;
    if (module && PyModule_AddObject(module, "FORMAT", constants) == 0)
        return module;
    Py_XDECREF(constants);
    Py_XDECREF(module);
    return NULL;
}

#endif
