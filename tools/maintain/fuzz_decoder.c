/* The target of libFuzzer for the compiled decoder, which it includes; fuzz_decoder.py builds and runs it.

An input is a head of 12 bytes and streams: kind (matrix of int8, matrix of int32, vector), whether along the trellis,
rows, channels, taps, whether in lanes, and the lengths of the first three lanes. tables.h has what Python passes. */

#include "native.h"
#undef PyMODINIT_FUNC /* so that what is for Python is left out, which needs its library */
#define PyMODINIT_FUNC __attribute__((unused)) static PyObject *
#include "_decoder.c"
#include "tables.h"

enum { HEAD = 12, ROWS = 64, CHANNELS = 32, MOST_TAPS = 12 };

static size_t open_lanes(Decoder *decoder, const uint8_t *head, const uint8_t *streams, size_t size)
{
    decoder->count_of_lanes = head[5] & 1 ? LANES : 1;
    for (int lane = 0; lane < decoder->count_of_lanes; lane++) {
        size_t count = size;
        if (lane + 1 < decoder->count_of_lanes)
            count = smaller(size, head[6 + 2 * lane] | head[7 + 2 * lane] << 8);
        uint8_t *own = malloc(count ? count : 1); /* of just this size, so that no byte beside it is readable */
        memcpy(own, streams, count);
        lane_open(decoder->lanes + lane, &decoder->memory, own, count);
        free(own);
        streams += count, size -= count;
    }
    return size;
}

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count, (void)arguments;
    fill_bits_of_byte();
    fill_next();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    const int kind = data[0] % 3;
    const size_t taps = 1 + data[4] % MOST_TAPS;
    const Matrix matrix = {data[2] % ROWS, data[3] % CHANNELS * taps, taps, data[1] & 1};
    const size_t count = kind == 2 ? (size_t)data[2] << 4 | (data[3] & 15) : matrix.rows * matrix.columns;
    Decoder decoder = {{NULL, 0}};
    decoder.prior = PRIOR_TABLE;
    decoder.shrinkages = SHRINKAGES_TABLE;
    open_lanes(&decoder, data, data + HEAD, size - HEAD);
    void *out = malloc(count ? count * (kind ? 4 : 1) : 1);
    if (kind == 0)
        decode_matrix(&decoder, &matrix, out);
    else if (kind == 1)
        decode_wide_matrix(&decoder, &matrix, out);
    else
        decode_vector(&decoder, out, count, WINDOWS_TABLE);
    free(out);
    release(&decoder.memory);
    return 0;
}
