/* What entropy.py does to decode a matrix and trellis.py to find one, compiled: the same numbers, many times as fast.

They are the specification. Every float here is one IEEE operation of its own, in the order that it has there, so
it must be compiled without contraction of products and sums (-ffp-contract=off). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((target_clones("avx2", "default")))
#else
#define VECTORISED
#endif

enum { DIRECT = 16, TOKENS = DIRECT + 2 * 28, STEPS = 4, LOWEST = -8, CLASSES = STEPS * (6 - LOWEST), UNIT = 4096 };
enum { TILE = 4, MOST_ROWS = 128, MOST_CHANNELS = 512, SINGLE = 8, LANES = 4 };
enum { SPAN = 4096, STATES = 8, LEVELS = 64, LARGEST = 1 << 20 };
enum { TABLE_BITS = 9, TABLE = 1 << TABLE_BITS, PRECISION = 24, FEW = 48 };
static const double FIXED = 16777216.0;
static const uint32_t WHOLE = 1u << PRECISION;

static const uint8_t NEXT[STATES][2] = {{0, 2}, {7, 5}, {1, 3}, {6, 4}, {2, 0}, {5, 7}, {3, 1}, {4, 6}};
static uint64_t next_packed; /* the same, four bits each */

/* One stream of asymmetric numeral systems, read from its end to its start. */
typedef struct {
    uint64_t state;
    uint32_t *words; /* owned */
    size_t left;
} Lane;

typedef struct {
    uint32_t from, size;
} Share;

typedef struct {
    Share share[TOKENS + 1]; /* of the frequencies, 2^24 in all */
    uint8_t first[TABLE];    /* least symbol for the leading bits of a quantile */
} Model;

enum { OK, NO_MEMORY, ENDS_ELSEWHERE, OTHER_LARGEST, TOO_LARGE, WIDE };

static int lane_open(Lane *lane, const uint8_t *bytes, size_t count)
{
    size_t words = (count + 3) / 4;
    lane->state = 0;
    lane->left = words;
    lane->words = calloc(words + 1, 4);
    if (!lane->words)
        return NO_MEMORY;
    for (size_t at = 0; at < count; at++)
        lane->words[at / 4] |= (uint32_t)bytes[at] << 8 * (at % 4);
    while (lane->left && lane->state < (uint64_t)1 << 32)
        lane->state = lane->state << 32 | lane->words[--lane->left];
    return OK;
}

static inline uint32_t quantile(uint64_t state)
{
    return (uint32_t)state & (WHOLE - 1);
}

/* Takes a symbol off whose share the quantile of the state is in. */
static inline void lane_step(Lane *lane, Share share)
{
    uint64_t state = (lane->state >> PRECISION) * share.size + (quantile(lane->state) - share.from);
    if (state < (uint64_t)1 << 32 && lane->left)
        state = state << 32 | lane->words[--lane->left];
    lane->state = state;
}

/* One of 0 .. count - 1, all as likely. */
static uint32_t lane_uniform(Lane *lane, uint32_t count)
{
    uint32_t each = WHOLE / count, symbol = quantile(lane->state) / each;
    if (symbol >= count)
        symbol = count - 1;
    Share share = {symbol * each, symbol == count - 1 ? WHOLE - symbol * each : each};
    lane_step(lane, share);
    return symbol;
}

static int lane_ends(Lane *lane)
{
    int marked = quantile(lane->state) == 1;
    Share one = {1, 1};
    if (marked)
        lane_step(lane, one);
    return marked && lane->state == 0 && lane->left == 0;
}

static void model_of(Model *model, const double *frequencies, int symbols)
{
    double sum = 0, before = 0;
    for (int symbol = 0; symbol < symbols; symbol++)
        sum += frequencies[symbol];
    double scale = (WHOLE - symbols) / sum;
    for (int symbol = 0; symbol < symbols; symbol++) {
        model->share[symbol].from = (uint32_t)(before * scale) + symbol;
        before += frequencies[symbol];
    }
    model->share[symbols].from = WHOLE;
    for (int symbol = 0; symbol < symbols; symbol++)
        model->share[symbol].size = model->share[symbol + 1].from - model->share[symbol].from;
}

static void model_table(Model *model)
{
    const int shift = PRECISION - TABLE_BITS;
    int symbol = 0;
    for (uint32_t at = 0; at < TABLE; at++) {
        while (model->share[symbol + 1].from <= at << shift)
            symbol++;
        model->first[at] = symbol;
    }
}

static inline int model_find(const Model *model, uint32_t quantile, int symbol)
{
    while (model->share[symbol + 1].from <= quantile)
        symbol++;
    return symbol;
}

#define STEP(number, lane)                                                                             \
    do {                                                                                               \
        uint32_t part = (uint32_t)state##lane & (WHOLE - 1);                                           \
        int symbol = model_find(model, part, model->first[part >> (PRECISION - TABLE_BITS)]);          \
        Share share = model->share[symbol];                                                            \
        uint64_t next = (state##lane >> PRECISION) * share.size + (part - share.from);                 \
        uint64_t more = next << 32 | word##lane[-1];                                                   \
        int short_ = next < (uint64_t)1 << 32;                                                         \
        state##lane = short_ ? more : next;                                                            \
        word##lane -= short_;                                                                          \
        symbols[number] = symbol;                                                                      \
    } while (0)

/* Symbols of one model; the lanes take turns. */
static void decode_dealt(Lane *lanes, int count_of_lanes, Model *model, uint8_t *symbols, size_t count)
{
    size_t done = 0;
    if (count >= FEW)
        model_table(model);
    if (count >= FEW && count_of_lanes == LANES) {
        for (;;) {
            size_t rounds = (count - done) / LANES; /* as many as there are words for, however unlikely the symbols */
            for (int lane = 0; lane < LANES; lane++)
                rounds = lanes[lane].left < rounds ? lanes[lane].left : rounds;
            if (rounds < 8)
                break;
            uint64_t state0 = lanes[0].state, state1 = lanes[1].state, state2 = lanes[2].state, state3 = lanes[3].state;
            const uint32_t *word0 = lanes[0].words + lanes[0].left, *word1 = lanes[1].words + lanes[1].left;
            const uint32_t *word2 = lanes[2].words + lanes[2].left, *word3 = lanes[3].words + lanes[3].left;
            for (size_t stop = done + LANES * rounds; done < stop; done += LANES) {
                STEP(done, 0);
                STEP(done + 1, 1);
                STEP(done + 2, 2);
                STEP(done + 3, 3);
            }
            lanes[0].state = state0, lanes[0].left = word0 - lanes[0].words;
            lanes[1].state = state1, lanes[1].left = word1 - lanes[1].words;
            lanes[2].state = state2, lanes[2].left = word2 - lanes[2].words;
            lanes[3].state = state3, lanes[3].left = word3 - lanes[3].words;
        }
    }
    for (; done < count; done++) {
        Lane *lane = lanes + done % count_of_lanes;
        uint32_t part = quantile(lane->state);
        int symbol = model_find(model, part, count >= FEW ? model->first[part >> (PRECISION - TABLE_BITS)] : 0);
        lane_step(lane, model->share[symbol]);
        symbols[done] = symbol;
    }
}

/* ---- tokens */

typedef struct {
    Lane *lanes;
    int count_of_lanes, alphabet;
    const double *prior; /* (CLASSES, TOKENS) */
    int64_t counts[CLASSES + 2][TOKENS];
    uint8_t *classes, *symbols; /* of a tile */
    size_t room;
} Coder;

typedef struct {
    size_t start, stop;
} Span;

static int next_block(Span *block, size_t count, size_t largest, size_t growth)
{
    size_t start = block->stop, stop = start + largest;
    if (start >= count)
        return 0;
    if (growth * start < stop)
        stop = growth * start;
    if (stop < TILE)
        stop = TILE;
    if (stop >= count || count - stop < (stop - start) / 2)
        stop = count;
    block->start = start;
    block->stop = stop;
    return 1;
}

/* Classes of expected magnitudes ``row * column * ratio``, the ratio only where there is one. */
VECTORISED static void classify(uint8_t *classes, float row, const float *column, const float *ratio, size_t count)
{
    const int shift = 23 - 2, lowest = STEPS * (127 + LOWEST);
    for (size_t at = 0; at < count; at++) {
        float expected = row * column[at];
        if (ratio)
            expected *= ratio[at];
        int32_t bits;
        memcpy(&bits, &expected, 4);
        bits = (bits >> shift) - lowest;
        bits = bits < 0 ? 0 : bits;
        classes[at] = bits > CLASSES - 1 ? CLASSES - 1 : bits;
    }
}

enum { PARTS = 4 };

/* Decodes the symbols of a tile by their classes, in ``coder->classes``, into ``coder->symbols``. */
static void decode_tile(Coder *coder, size_t count, uint8_t *ordered)
{
    size_t starts[PARTS + 1], place[PARTS][CLASSES], amount[CLASSES] = {0};
    uint8_t *classes = coder->classes, *out = coder->symbols;
    uint32_t found[PARTS][CLASSES] = {{0}};
    for (int part = 0; part <= PARTS; part++)
        starts[part] = count / PARTS * part;
    starts[PARTS] = count;
    size_t each = count / PARTS;
    for (size_t at = 0; at < each; at++)
        for (int part = 0; part < PARTS; part++)
            found[part][classes[starts[part] + at]]++;
    for (size_t at = PARTS * each; at < count; at++)
        found[PARTS - 1][classes[at]]++;
    size_t before = 0;
    for (int number = 0; number < CLASSES; number++)
        for (int part = 0; part < PARTS; part++) {
            place[part][number] = before;
            before += found[part][number];
            amount[number] += found[part][number];
        }
    int64_t more[CLASSES][TOKENS];
    Model model;
    const int alphabet = coder->alphabet;
    for (int number = 0; number < CLASSES; number++) {
        if (!amount[number])
            continue;
        double frequencies[TOKENS];
        const int64_t *below = coder->counts[number], *here = coder->counts[number + 1],
                      *above = coder->counts[number + 2];
        for (int token = 0; token < alphabet; token++)
            frequencies[token] = (double)(UNIT * here[token] + UNIT / 4 * (below[token] + above[token])) +
                                 coder->prior[number * TOKENS + token];
        model_of(&model, frequencies, alphabet);
        uint8_t *symbols = ordered + place[0][number];
        decode_dealt(coder->lanes, coder->count_of_lanes, &model, symbols, amount[number]);
        uint32_t seen[4][TOKENS] = {{0}};
        size_t at = 0;
        for (; at + 4 <= amount[number]; at += 4)
            for (int lane = 0; lane < 4; lane++)
                seen[lane][symbols[at + lane]]++;
        for (; at < amount[number]; at++)
            seen[0][symbols[at]]++;
        for (int token = 0; token < alphabet; token++)
            more[number][token] = (int64_t)seen[0][token] + seen[1][token] + seen[2][token] + seen[3][token];
    }
    for (int number = 0; number < CLASSES; number++)
        if (amount[number])
            for (int token = 0; token < alphabet; token++)
                coder->counts[number + 1][token] += more[number][token];
    for (size_t at = 0; at < each; at++)
        for (int part = 0; part < PARTS; part++)
            out[starts[part] + at] = ordered[place[part][classes[starts[part] + at]]++];
    for (size_t at = PARTS * each; at < count; at++)
        out[at] = ordered[place[PARTS - 1][classes[at]]++];
}

VECTORISED static uint32_t total_of(const uint8_t *tokens, size_t count)
{
    uint32_t total = 0;
    for (size_t at = 0; at < count; at++)
        total += tokens[at];
    return total;
}

VECTORISED static void add_tokens(uint32_t *sums, const uint8_t *tokens, size_t count)
{
    for (size_t at = 0; at < count; at++)
        sums[at] += tokens[at];
}

VECTORISED static void ratios(float *ratio, const float *kernels, float row, const float *columns, float by, size_t n)
{
    for (size_t at = 0; at < n; at++) {
        float usual = row * columns[at];
        usual += by;
        ratio[at] = (kernels[at] + by) / usual;
    }
}

static size_t smaller(size_t left, size_t right)
{
    return left < right ? left : right;
}

/* Fills in ``planes``, (period, rows, channels). */
static int decode_tokens(Coder *coder, uint8_t *planes, size_t rows, size_t channels, size_t period, const double *by)
{
    const double by_row = by[0], by_column = by[1], by_channel = by[2], by_kernel = by[3];
    const int kernels_count = by_kernel != FIXED;
    size_t tall = smaller(rows, MOST_ROWS * 3 / 2 + 1), wide = smaller(channels, MOST_CHANNELS * 3 / 2 + 1);
    size_t room = tall * wide * period;
    double *column_sums = calloc(period * channels, 8), *channel = malloc(wide * 8), *row_sums = malloc(tall * 8);
    double *scales = malloc(period * 8);
    float *column = malloc(wide * period * 4), *usual_columns = malloc(wide * 4), *row = malloc(tall * 4);
    float *kernel_sums = malloc(tall * wide * 4), *ratio = malloc(wide * 4);
    uint32_t *fresh = malloc(wide * 4);
    int64_t *tap_sums = calloc(period, 8), *tap_counts = calloc(period, 8);
    uint8_t *ordered = malloc(room);
    coder->classes = malloc(room);
    coder->symbols = malloc(room);
    int status = OK;
    if (!(column_sums && channel && row_sums && scales && column && usual_columns && row && kernel_sums && ratio &&
          fresh && tap_sums && tap_counts && ordered && coder->classes && coder->symbols)) {
        status = NO_MEMORY;
        goto done;
    }
    for (Span down = {0, 0}; next_block(&down, rows, MOST_ROWS, 2);) {
        const size_t height = down.stop - down.start;
        double strip_sum = 0, strip_count = 0;
        memset(row_sums, 0, height * 8);
        for (Span across = {0, 0}; next_block(&across, channels, MOST_CHANNELS, down.start ? 4 : 2);) {
            const size_t width = across.stop - across.start;
            memset(kernel_sums, 0, height * width * 4);
            size_t sizes[3] = {1, 3, period}, start = 0;
            int singles = down.start == 0 && across.start < SINGLE;
            for (size_t turn = 0; start < period; turn++) {
                size_t size = singles ? (turn < smaller(period, 64) ? 1 : period)
                              : down.start && !kernels_count ? period
                                                             : sizes[turn];
                const size_t stop = smaller(start + size, period), taps = stop - start;
                int64_t sum = 0, number = 0;
                for (size_t tap = 0; tap < period; tap++) {
                    sum += tap_sums[tap];
                    number += tap_counts[tap];
                }
                const double mean = (double)(sum + 1) / (double)(number + 2);
                double weight = 0;
                for (size_t tap = 0; tap < period; tap++) {
                    scales[tap] = ((double)tap_sums[tap] / mean + 32) / (double)(tap_counts[tap] + 32);
                    weight += (double)(tap < start ? down.stop : down.start) * scales[tap];
                }
                weight += by_channel;
                const double prior = by_channel * mean;
                for (size_t at = 0; at < width; at++) {
                    double all = 0;
                    for (size_t tap = 0; tap < period; tap++)
                        all += column_sums[tap * channels + across.start + at];
                    channel[at] = (all + prior) / weight;
                }
                for (size_t tap = kernels_count ? 0 : start; tap < stop; tap++) {
                    const double *sums = column_sums + tap * channels + across.start;
                    const double scale = by_column * scales[tap];
                    const double count = (double)(tap < start ? down.stop : down.start) + by_column;
                    for (size_t at = 0; at < width; at++)
                        column[tap * wide + at] = (float)((sums[at] + scale * channel[at]) / count);
                }
                if (strip_sum != 0) {
                    const double factor = (double)down.stop * strip_count / strip_sum, count = strip_count + by_row;
                    for (size_t at = 0; at < height; at++)
                        row[at] = (float)((row_sums[at] * factor + by_row) / count);
                } else
                    for (size_t at = 0; at < height; at++)
                        row[at] = 1;
                const int by_kernels = start && kernels_count;
                if (by_kernels) {
                    memset(usual_columns, 0, width * 4);
                    for (size_t tap = 0; tap < start; tap++)
                        for (size_t at = 0; at < width; at++)
                            usual_columns[at] += column[tap * wide + at];
                }
                for (size_t line = 0; line < height; line++) {
                    if (by_kernels)
                        ratios(ratio, kernel_sums + line * width, row[line], usual_columns, (float)by_kernel, width);
                    for (size_t tap = 0; tap < taps; tap++)
                        classify(coder->classes + (tap * height + line) * width, row[line],
                                 column + (start + tap) * wide, by_kernels ? ratio : NULL, width);
                }
                decode_tile(coder, taps * height * width, ordered);
                const uint8_t *symbols = coder->symbols;
                for (size_t tap = start; tap < stop; tap++) {
                    memset(fresh, 0, width * 4);
                    for (size_t line = 0; line < height; line++, symbols += width) {
                        row_sums[line] += total_of(symbols, width);
                        add_tokens(fresh, symbols, width);
                        if (kernels_count)
                            for (size_t at = 0; at < width; at++)
                                kernel_sums[line * width + at] += symbols[at];
                        memcpy(planes + (tap * rows + down.start + line) * channels + across.start, symbols, width);
                    }
                    double *sums = column_sums + tap * channels + across.start;
                    for (size_t at = 0; at < width; at++) {
                        sums[at] += fresh[at];
                        tap_sums[tap] += fresh[at];
                        strip_sum += sums[at];
                    }
                    tap_counts[tap] += height * width;
                    strip_count += width;
                }
                start = stop;
            }
        }
    }
done:
    free(column_sums), free(channel), free(row_sums), free(scales), free(column), free(usual_columns), free(row);
    free(kernel_sums), free(ratio), free(fresh), free(tap_sums), free(tap_counts), free(ordered);
    free(coder->classes), free(coder->symbols);
    return status;
}

/* ---- what the tokens leave open */

static inline uint32_t low_of(int token)
{
    return token < DIRECT ? (uint32_t)token : (uint32_t)(2 + (token & 1)) << ((token - DIRECT) / 2 + 3);
}

static inline int extra_of(int token)
{
    return token < DIRECT ? 0 : (token - DIRECT) / 2 + 3;
}

/* Bits as they are, which the stream has 24 at a time; a byte each. */
typedef struct {
    Lane *lane;
    size_t coming, ready, taken; /* bits in the stream, bytes in the buffer, of these */
    uint8_t buffer[SPAN + 32];
} Bits;

static uint64_t bits_of_byte[256]; /* as eight bytes in memory, the highest first */

static void fill_bits_of_byte(void)
{
    for (int byte = 0; byte < 256; byte++) {
        uint8_t bits[8];
        for (int place = 0; place < 8; place++)
            bits[place] = byte >> (7 - place) & 1;
        memcpy(bits_of_byte + byte, bits, 8);
    }
}

static void bits_start(Bits *bits, Lane *lane, size_t count)
{
    bits->lane = lane;
    bits->coming = count;
    bits->ready = bits->taken = 0;
}

/* The next ``count`` bits, at most SPAN; they are there until the next call. */
static const uint8_t *bits_take(Bits *bits, size_t count)
{
    if (bits->ready - bits->taken < count) {
        memmove(bits->buffer, bits->buffer + bits->taken, bits->ready - bits->taken);
        bits->ready -= bits->taken;
        bits->taken = 0;
    }
    while (bits->ready < bits->taken + count) {
        const int width = bits->coming % 24 ? bits->coming % 24 : 24;
        uint32_t chunk = lane_uniform(bits->lane, 1u << width);
        uint8_t *out = bits->buffer + bits->ready;
        if (width == 24)
            for (int byte = 0; byte < 3; byte++)
                memcpy(out + 8 * byte, bits_of_byte + (chunk >> (16 - 8 * byte) & 255), 8);
        else
            for (int place = width; place--; chunk >>= 1)
                out[place] = chunk & 1;
        bits->ready += width;
        bits->coming -= width;
    }
    bits->taken += count;
    return bits->buffer + bits->taken - count;
}

VECTORISED static size_t count_nonzero(const uint8_t *tokens, size_t count)
{
    size_t total = 0;
    for (size_t at = 0; at < count; at++)
        total += tokens[at] != 0;
    return total;
}

static void negate_some(uint8_t *tokens, const uint8_t *signs, size_t count)
{
    for (size_t at = 0; at < count; at++) {
        const uint8_t token = tokens[at], minus = -*signs;
        tokens[at] = (token ^ minus) - minus; /* 0 of 0 by either sign */
        signs += token != 0;
    }
}

static inline int state_after(int state, int parity)
{
    return next_packed >> (8 * state + 4 * parity) & 7;
}

/* Magnitudes from their halves, along each row: see trellis.py. */
static void sizes_of_halves(uint8_t *halves, size_t rows, size_t columns)
{
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        uint8_t *one = halves + row * columns, *two = one + columns, *three = two + columns, *four = three + columns;
        int a = 0, b = 0, c = 0, d = 0;
        for (size_t at = 0; at < columns; at++) {
            const int first = one[at], second = two[at], third = three[at], fourth = four[at];
            one[at] = 2 * first + (a & 1);
            two[at] = 2 * second + (b & 1);
            three[at] = 2 * third + (c & 1);
            four[at] = 2 * fourth + (d & 1);
            a = state_after(a, first & 1);
            b = state_after(b, second & 1);
            c = state_after(c, third & 1);
            d = state_after(d, fourth & 1);
        }
    }
    for (; row < rows; row++)
        for (size_t at = 0, state = 0; at < columns; at++) {
            const int half = halves[row * columns + at];
            halves[row * columns + at] = 2 * half + (state & 1);
            state = state_after(state, half & 1);
        }
}

/* Gives magnitudes their lower bits and their signs: in place, or in ``wide``, where that is not NULL. With
``columns`` they are halves, of rows of so many. */
static void decode_rest(Bits *bits, Lane *lane, uint8_t *tokens, int64_t *wide, size_t count, int largest,
                        size_t columns)
{
    if (wide) {
        for (size_t at = 0; at < count; at++)
            wide[at] = low_of(tokens[at]);
        for (int place = 0; place < extra_of(largest); place++) {
            size_t some = 0;
            for (size_t at = 0; at < count; at++)
                some += extra_of(tokens[at]) > place;
            bits_start(bits, lane, some);
            for (size_t at = 0; at < count; at++)
                if (extra_of(tokens[at]) > place)
                    wide[at] |= (int64_t)*bits_take(bits, 1) << place;
        }
        for (size_t at = 0, state = 0; columns && at < count; at++) {
            state = at % columns ? state : 0;
            const int parity = wide[at] & 1;
            wide[at] = 2 * wide[at] + (state & 1);
            state = state_after(state, parity);
            tokens[at] = wide[at] != 0;
        }
    } else if (columns)
        sizes_of_halves(tokens, count / columns, columns);
    bits_start(bits, lane, count_nonzero(tokens, count));
    for (size_t start = 0; start < count; start += SPAN) {
        const size_t some = smaller(SPAN, count - start);
        const uint8_t *signs = bits_take(bits, count_nonzero(tokens + start, some));
        if (!wide)
            negate_some(tokens + start, signs, some);
        else
            for (size_t at = start; at < start + some; at++)
                if (tokens[at] && *signs++)
                    wide[at] = -wide[at];
    }
}

/* ---- matrices and vectors */

typedef struct {
    const double *prior;      /* (CLASSES, TOKENS) */
    const double *shrinkages; /* of 8 choices */
} Tables;

/* Planes (period, rows, channels) to (rows, channels, period). */
static void transpose(uint8_t *tokens, const uint8_t *planes, size_t rows, size_t channels, size_t period)
{
    for (size_t row = 0; row < rows; row++, tokens += channels * period)
        for (size_t tap = 0; tap < period; tap++) {
            const uint8_t *plane = planes + (tap * rows + row) * channels;
            for (size_t channel = 0; channel < channels; channel++)
                tokens[channel * period + tap] = plane[channel];
        }
}

VECTORISED static int largest_of(const uint8_t *tokens, size_t count)
{
    uint8_t largest = 0;
    for (size_t at = 0; at < count; at++)
        largest = tokens[at] > largest ? tokens[at] : largest;
    return largest;
}

/* Integers (rows, columns): magnitudes below DIRECT with signs in ``narrow``, or any in ``wide``, in which case
``narrow`` takes the tokens. WIDE where ``wide`` is NULL and would be needed. */
static int decode_integers(Lane *lanes, int count_of_lanes, uint8_t *narrow, int64_t *wide, size_t rows, size_t columns,
                           size_t period, int trellis, Tables tables, int *expected, int *found)
{
    const size_t count = rows * columns;
    const int choices = period > 1 ? 4 : rows > 1 ? 2 : 0;
    const int largest = lane_uniform(lanes, TOKENS);
    *expected = largest;
    if (!wide && largest >= DIRECT)
        return WIDE;
    int status = OK;
    Bits *bits = calloc(1, sizeof *bits);
    Coder *coder = calloc(1, sizeof *coder);
    uint8_t *planes = period > 1 ? malloc(count + 1) : narrow;
    if (!(bits && coder && planes)) {
        status = NO_MEMORY;
        goto done;
    }
    if (largest && count) {
        double by[4] = {FIXED, FIXED, FIXED, FIXED};
        for (int choice = 0; choice < choices; choice++)
            by[choice] = tables.shrinkages[lane_uniform(lanes, 8)];
        coder->lanes = lanes;
        coder->count_of_lanes = count_of_lanes;
        coder->alphabet = largest + 1;
        coder->prior = tables.prior;
        status = decode_tokens(coder, planes, rows, columns / period, period, by);
        if (status != OK)
            goto done;
        if (period > 1)
            transpose(narrow, planes, rows, columns / period, period);
    } else
        memset(narrow, 0, count);
    *found = largest_of(narrow, count);
    if (*found != largest)
        status = OTHER_LARGEST;
    else
        decode_rest(bits, lanes, narrow, wide, count, largest, trellis ? columns : 0);
done:
    free(bits), free(coder);
    if (period > 1)
        free(planes);
    return status;
}

static int decode_matrix(Lane *lanes, int count_of_lanes, void *out, int wide, size_t rows, size_t columns,
                         size_t period, int trellis, Tables tables, int *expected, int *found)
{
    const size_t count = rows * columns;
    int status = OK, fits = 1;
    if (wide) {
        uint8_t *tokens = malloc(count + 1);
        int64_t *values = malloc(8 * count + 1);
        int32_t *narrowed = out;
        status = tokens && values ? decode_integers(lanes, count_of_lanes, tokens, values, rows, columns, period, trellis,
                                                    tables, expected, found)
                                  : NO_MEMORY;
        for (size_t at = 0; status == OK && at < count; at++) {
            fits &= values[at] >= INT32_MIN && values[at] <= INT32_MAX;
            narrowed[at] = (int32_t)values[at];
        }
        free(tokens), free(values);
    } else
        status = decode_integers(lanes, count_of_lanes, out, NULL, rows, columns, period, trellis, tables, expected,
                                 found);
    for (int lane = 0; lane < count_of_lanes && status == OK; lane++)
        if (!lane_ends(lanes + lane))
            status = ENDS_ELSEWHERE;
    return status == OK && !fits ? TOO_LARGE : status;
}

/* A vector, each element of which is predicted by the mean of the ``window`` before it. */
static int decode_vector(Lane *lane, int32_t *out, size_t count, const int64_t *windows, Tables tables, int *expected,
                         int *found)
{
    uint8_t *tokens = malloc(count + 1);
    int64_t *values = malloc(8 * count + 8);
    Bits *bits = calloc(1, sizeof *bits);
    int status = tokens && values && bits ? OK : NO_MEMORY;
    if (status == OK) {
        const size_t window = windows[lane_uniform(lane, 5)];
        if (count) {
            tokens[0] = lane_uniform(lane, TOKENS);
            decode_rest(bits, lane, tokens, values, 1, tokens[0], 0);
        }
        status = decode_integers(lane, 1, tokens, values + 1, 1, count ? count - 1 : 0, 1, 0, tables, expected, found);
        if (status == OK && !lane_ends(lane))
            status = ENDS_ELSEWHERE;
        int64_t sum = 0, number = 0;
        for (size_t at = 0; status == OK && at < count; at++) {
            const int64_t twice = 2 * sum + number; /* rounded to the nearest, a half up */
            if (number)
                values[at] += twice >= 0 ? twice / (2 * number) : -((2 * number - 1 - twice) / (2 * number));
            if (values[at] < INT32_MIN || values[at] > INT32_MAX)
                status = TOO_LARGE;
            out[at] = (int32_t)values[at];
            sum += values[at];
            if (at >= window)
                sum -= values[at - window];
            else
                number++;
        }
    }
    free(tokens), free(values), free(bits);
    return status;
}

/* ---- the search of trellis.py */

typedef struct {
    const float *factor, *steps, *pivots, *table; /* factor may be NULL */
    size_t columns;
} Columns;

VECTORISED static void leave(float *wanted, const float *before, const float *factor, float error, size_t count)
{
    for (size_t at = 0; at < count; at++)
        wanted[at] = before[at] + factor[at] * error;
}

/* The integer of that quantiser and parity that costs least, the nearest or the one below. */
static inline float nearest(float value, int odd, int parity, const float *table, float *cost)
{
    float size = fabsf(value);
    size = size < (float)LARGEST ? size : (float)LARGEST;
    const float first = 2 * parity + odd, rounded = floorf((size - first) * 0.25f + 0.5f);
    const float count = rounded > 0 ? rounded : 0, near = 4 * count + first, below = count > 0 ? near - 4 : near;
    const float highest = LEVELS - 1, level = near * 0.5f, lower = below * 0.5f;
    const float by_near = (size - near) * (size - near) + table[(int)(level < highest ? level : highest)];
    const float by_below = (size - below) * (size - below) + table[(int)(lower < highest ? lower : highest)];
    *cost = by_below < by_near ? by_below : by_near;
    return copysignf(by_below < by_near ? below : near, value);
}

/* One row; ``wanted`` has room for two rows of each state, ``made`` and ``origins`` for one. */
static double search_row(const Columns *all, const float *weight, const float *target, uint8_t *start, float *codes,
                         float *wanted, float *made, uint8_t *origins)
{
    const size_t columns = all->columns;
    double cost[STATES];
    float *now = wanted, *then = wanted + STATES * columns;
    for (int state = 0; state < STATES; state++)
        cost[state] = INFINITY;
    cost[*start] = 0;
    if (all->factor)
        memcpy(now + *start * columns, target, columns * sizeof *now);
    for (size_t column = 0; column < columns; column++) {
        const float step = all->steps[column];
        double unit = (double)step * all->pivots[column], after[STATES];
        float *code = made + column * STATES;
        uint8_t *origin = origins + column * STATES;
        unit *= unit;
        for (int state = 0; state < STATES; state++)
            after[state] = INFINITY;
        for (int state = 0; state < STATES; state++) {
            if (cost[state] == INFINITY)
                continue;
            const float value = (all->factor ? now[state * columns + column] : target[column]) / step;
            for (int parity = 0; parity < 2; parity++) {
                float price;
                const float found = nearest(value, state & 1, parity, all->table + LEVELS * (state & 1), &price);
                const double total = cost[state] + price * unit;
                const int to = NEXT[state][parity];
                if (total < after[to]) {
                    after[to] = total;
                    code[to] = found;
                    origin[to] = state;
                }
            }
        }
        memcpy(cost, after, sizeof cost);
        if (!all->factor)
            continue;
        for (int state = 0; state < STATES; state++)
            if (cost[state] != INFINITY)
                leave(then + state * columns + column + 1, now + origin[state] * columns + column + 1,
                      all->factor + column * columns + column + 1, weight[column] - code[state] * step,
                      columns - column - 1);
        float *other = now;
        now = then;
        then = other;
    }
    int best = 0;
    for (int state = 1; state < STATES; state++)
        if (cost[state] < cost[best])
            best = state;
    *start = best;
    for (size_t column = columns; column--;) {
        codes[column] = made[column * STATES + best];
        best = origins[column * STATES + best];
    }
    double distortion = 0;
    memcpy(now, target, columns * sizeof *now);
    for (size_t column = 0; column < columns; column++) {
        const float rounded = codes[column] * all->steps[column];
        const double error = (double)(now[column] - rounded) * all->pivots[column];
        distortion += error * error;
        if (all->factor)
            leave(now + column + 1, now + column + 1, all->factor + column * columns + column + 1,
                  weight[column] - rounded, columns - column - 1);
    }
    return distortion;
}

static int search(const Columns *all, const float *weight, const float *target, uint8_t *states, float *codes,
                  double *errors, size_t rows)
{
    const size_t columns = all->columns;
    float *wanted = malloc((all->factor ? 2 * STATES : 1) * columns * sizeof *wanted + 1);
    float *made = malloc(columns * STATES * sizeof *made + 1);
    uint8_t *origins = malloc(columns * STATES + 1);
    const int status = wanted && made && origins ? OK : NO_MEMORY;
    for (size_t row = 0; status == OK && row < rows; row++)
        errors[row] += search_row(all, weight + row * columns, target + row * columns, states + row,
                                  codes + row * columns, wanted, made, origins);
    free(wanted), free(made), free(origins);
    return status;
}

/* ``rows[i] * columns[j] * codes[i, j]``, in float64, rounded once. */
VECTORISED static void dequantise_row(float *out, double row, const double *columns, const int8_t *codes, size_t count)
{
    for (size_t at = 0; at < count; at++)
        out[at] = (float)(row * columns[at] * codes[at]);
}

/* ---- Python */

static int tables_of(Tables *tables, const Py_buffer *prior, const Py_buffer *shrinkages)
{
    tables->prior = prior->buf;
    tables->shrinkages = shrinkages->buf;
    return prior->len == CLASSES * TOKENS * 8 && shrinkages->len == 8 * 8;
}

static PyObject *result_of(int status, int expected, int found)
{
    return status == NO_MEMORY ? PyErr_NoMemory() : Py_BuildValue("iii", status, expected, found);
}

static PyObject *native_matrix(PyObject *self, PyObject *args)
{
    PyObject *pieces;
    Py_buffer out, prior, shrinkages;
    Py_ssize_t rows, columns, period;
    int trellis;
    if (!PyArg_ParseTuple(args, "O!w*nnnpy*y*", &PyTuple_Type, &pieces, &out, &rows, &columns, &period, &trellis,
                          &prior, &shrinkages))
        return NULL;
    Lane lanes[LANES] = {{0, NULL, 0}};
    Tables tables;
    const Py_ssize_t count_of_lanes = PyTuple_GET_SIZE(pieces);
    int status = OK, expected = 0, found = 0;
    const int fits = tables_of(&tables, &prior, &shrinkages) && rows >= 0 && columns >= 0 && period >= 1 &&
                     columns % period == 0 && (columns == 0 || rows <= PY_SSIZE_T_MAX / 8 / columns) &&
                     (out.itemsize == 1 || out.itemsize == 4) && out.len == rows * columns * out.itemsize &&
                     (count_of_lanes == 1 || count_of_lanes == LANES);
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the matrix and its tables have");
    for (Py_ssize_t number = 0; fits && number < count_of_lanes && status == OK; number++) {
        Py_buffer piece;
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(pieces, number), &piece, PyBUF_SIMPLE) < 0)
            break;
        status = lane_open(lanes + number, piece.buf, piece.len);
        PyBuffer_Release(&piece);
    }
    if (!PyErr_Occurred() && status == OK) {
        Py_BEGIN_ALLOW_THREADS
        status = decode_matrix(lanes, (int)count_of_lanes, out.buf, out.itemsize == 4, rows, columns, period, trellis,
                               tables, &expected, &found);
        Py_END_ALLOW_THREADS
    }
    for (int lane = 0; lane < LANES; lane++)
        free(lanes[lane].words);
    PyBuffer_Release(&out), PyBuffer_Release(&prior), PyBuffer_Release(&shrinkages);
    return PyErr_Occurred() ? NULL : result_of(status, expected, found);
}

static PyObject *native_vector(PyObject *self, PyObject *args)
{
    Py_buffer piece, out, windows, prior, shrinkages;
    if (!PyArg_ParseTuple(args, "y*w*y*y*y*", &piece, &out, &windows, &prior, &shrinkages))
        return NULL;
    Lane lane = {0, NULL, 0};
    Tables tables;
    int status = OK, expected = 0, found = 0;
    if (!tables_of(&tables, &prior, &shrinkages) || windows.len != 5 * 8 || out.itemsize != 4)
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the vector and its tables have");
    else {
        status = lane_open(&lane, piece.buf, piece.len);
        if (status == OK)
            status = decode_vector(&lane, out.buf, out.len / 4, windows.buf, tables, &expected, &found);
        free(lane.words);
    }
    PyBuffer_Release(&piece), PyBuffer_Release(&out), PyBuffer_Release(&windows);
    PyBuffer_Release(&prior), PyBuffer_Release(&shrinkages);
    return PyErr_Occurred() ? NULL : result_of(status, expected, found);
}

static PyObject *native_search(PyObject *self, PyObject *args)
{
    Py_buffer weight, target, steps, pivots, table, states, codes, errors, factor = {0};
    PyObject *given;
    if (!PyArg_ParseTuple(args, "y*y*Oy*y*y*w*w*w*", &weight, &target, &given, &steps, &pivots, &table, &states, &codes,
                          &errors))
        return NULL;
    const size_t rows = states.len, columns = steps.len / 4, size = 4 * rows * columns;
    int status = OK;
    if (given != Py_None)
        PyObject_GetBuffer(given, &factor, PyBUF_SIMPLE);
    int fits = !PyErr_Occurred() && (size_t)weight.len == size && (size_t)target.len == size &&
               (size_t)codes.len == size && (size_t)pivots.len == 4 * columns &&
               table.len == 2 * LEVELS * 4 && (size_t)errors.len == 8 * rows &&
               (!factor.obj || (size_t)factor.len == 4 * columns * columns);
    for (size_t row = 0; fits && row < rows; row++)
        fits = ((uint8_t *)states.buf)[row] < STATES;
    if (!fits && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the rows and columns have, or no such state");
    if (fits) {
        const Columns all = {factor.obj ? factor.buf : NULL, steps.buf, pivots.buf, table.buf, columns};
        Py_BEGIN_ALLOW_THREADS
        status = search(&all, weight.buf, target.buf, states.buf, codes.buf, errors.buf, rows);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&weight), PyBuffer_Release(&target), PyBuffer_Release(&steps), PyBuffer_Release(&pivots);
    PyBuffer_Release(&table), PyBuffer_Release(&states), PyBuffer_Release(&codes), PyBuffer_Release(&errors);
    if (factor.obj)
        PyBuffer_Release(&factor);
    if (PyErr_Occurred())
        return NULL;
    if (status == NO_MEMORY)
        return PyErr_NoMemory();
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
            dequantise_row((float *)out.buf + row * width, ((double *)rows.buf)[row], columns.buf,
                           (int8_t *)codes.buf + row * width, width);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out), PyBuffer_Release(&rows), PyBuffer_Release(&columns), PyBuffer_Release(&codes);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"matrix", native_matrix, METH_VARARGS,
     "matrix(lanes, out, rows, columns, period, trellis, prior, shrinkages) -> (status, largest token expected, found)"},
    {"vector", native_vector, METH_VARARGS,
     "vector(lane, out, windows, prior, shrinkages) -> (status, largest token expected, found)"},
    {"search", native_search, METH_VARARGS,
     "search(weight, target, factor, steps, pivots, table, states, codes, errors)"},
    {"dequantise", native_dequantise, METH_VARARGS, "dequantise(out, rows, columns, codes)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void)
{
    fill_bits_of_byte();
    for (int state = 0; state < STATES; state++)
        for (int parity = 0; parity < 2; parity++)
            next_packed |= (uint64_t)NEXT[state][parity] << (8 * state + 4 * parity);
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddIntMacro(made, OK) || PyModule_AddIntMacro(made, ENDS_ELSEWHERE) ||
                 PyModule_AddIntMacro(made, OTHER_LARGEST) || PyModule_AddIntMacro(made, TOO_LARGE) ||
                 PyModule_AddIntMacro(made, WIDE)))
        Py_CLEAR(made);
    return made;
}
