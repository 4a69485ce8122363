/* What entropy.py and context.py do to decode integers, compiled: the same numbers and errors, many times as fast.

They are the specification. Every float here is one IEEE operation of its own, in the order that it has there, so it must
be compiled without contraction of products and sums (-ffp-contract=off).

From the top: streams, the tokens of one tile, what tokens are expected to be, what tokens leave open, matrices and
vectors, Python. */

#include "native.h"

enum { DIRECT = 16, TOKENS = DIRECT + 2 * 28, STEPS = 4, LOWEST = -8, HIGHEST = 6, CLASSES = STEPS * (HIGHEST - LOWEST) };
enum { UNIT = 4096, TILE = 4, MOST_ROWS = 128, MOST_CHANNELS = 512, SINGLE = 8, MOST_SINGLE = 64, POSITION_PRIOR = 32 };
enum { LANES = 4, SHRINKAGES = 8, WINDOWS = 5, PRECISION = 24 };
static const size_t KERNEL_GROUPS[] = {1, 3};
static const double FIXED = 16777216.0;

enum { OK, NO_MEMORY, ENDS_ELSEWHERE, OTHER_LARGEST, TOO_LARGE, WIDE };

static inline size_t smaller(size_t left, size_t right)
{
    return left < right ? left : right;
}

/* ---- streams of asymmetric numeral systems, read from their ends to their starts */

static const uint32_t WHOLE = 1u << PRECISION;

typedef struct {
    uint64_t state;
    const uint32_t *words;
    size_t left;
} Lane;

/* The part of ``WHOLE`` that a symbol has. */
typedef struct {
    uint32_t from, size;
} Share;

static void lane_open(Lane *lane, Memory *memory, const uint8_t *bytes, size_t count)
{
    uint32_t *words = take_zeros(memory, (count + 3) / 4 + 1, 4);
    if (!words)
        return;
    for (size_t at = 0; at < count; at++)
        words[at / 4] |= (uint32_t)bytes[at] << 8 * (at % 4);
    lane->words = words;
    lane->left = (count + 3) / 4;
    lane->state = 0;
    while (lane->left && lane->state < (uint64_t)1 << 32)
        lane->state = lane->state << 32 | words[--lane->left];
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
    lane_step(lane, (Share){symbol * each, symbol == count - 1 ? WHOLE - symbol * each : each});
    return symbol;
}

static int lane_ends(Lane *lane)
{
    const int marked = quantile(lane->state) == 1;
    if (marked)
        lane_step(lane, (Share){1, 1});
    return marked && lane->state == 0 && lane->left == 0;
}

/* ---- symbols of one distribution */

enum { TABLE_BITS = 9, TABLE = 1 << TABLE_BITS, FEW = 48 };

typedef struct {
    Share share[TOKENS + 1];
    uint8_t first[TABLE]; /* least symbol for the leading bits of a quantile */
} Model;

static void model_of(Model *model, const double *frequencies, int symbols)
{
    double sum = 0, before = 0;
    for (int symbol = 0; symbol < symbols; symbol++)
        sum += frequencies[symbol];
    const double scale = (WHOLE - symbols) / sum;
    for (int symbol = 0; symbol < symbols; symbol++) {
        model->share[symbol].from = (uint32_t)(before * scale) + symbol;
        before += frequencies[symbol];
    }
    model->share[symbols].from = WHOLE;
    for (int symbol = 0; symbol < symbols; symbol++)
        model->share[symbol].size = model->share[symbol + 1].from - model->share[symbol].from;
}

static inline int model_find(const Model *model, uint32_t quantile, int symbol)
{
    while (model->share[symbol + 1].from <= quantile)
        symbol++;
    return symbol;
}

static void model_table(Model *model)
{
    int symbol = 0;
    for (uint32_t at = 0; at < TABLE; at++)
        model->first[at] = symbol = model_find(model, at << (PRECISION - TABLE_BITS), symbol);
}

/* The next symbol of a lane that has words enough, of which ``word`` is behind the next. */
static inline uint8_t step(uint64_t *state, const uint32_t **word, const Model *model)
{
    const uint32_t part = quantile(*state);
    const int symbol = model_find(model, part, model->first[part >> (PRECISION - TABLE_BITS)]);
    const Share share = model->share[symbol];
    const uint64_t next = (*state >> PRECISION) * share.size + (part - share.from), more = next << 32 | (*word)[-1];
    const int is_short = next < (uint64_t)1 << 32;
    *state = is_short ? more : next;
    *word -= is_short;
    return symbol;
}

/* As many symbols as there are words for, however unlikely they are, in turn from LANES lanes; returns how many. */
static size_t decode_rounds(Lane *lanes, const Model *model, uint8_t *symbols, size_t count)
{
    size_t done = 0;
    for (;;) {
        size_t rounds = (count - done) / LANES;
        for (int lane = 0; lane < LANES; lane++)
            rounds = smaller(rounds, lanes[lane].left);
        if (rounds < 8)
            return done;
        uint64_t a = lanes[0].state, b = lanes[1].state, c = lanes[2].state, d = lanes[3].state;
        const uint32_t *of_a = lanes[0].words + lanes[0].left, *of_b = lanes[1].words + lanes[1].left;
        const uint32_t *of_c = lanes[2].words + lanes[2].left, *of_d = lanes[3].words + lanes[3].left;
        for (const size_t stop = done + LANES * rounds; done < stop; done += LANES) {
            symbols[done] = step(&a, &of_a, model);
            symbols[done + 1] = step(&b, &of_b, model);
            symbols[done + 2] = step(&c, &of_c, model);
            symbols[done + 3] = step(&d, &of_d, model);
        }
        lanes[0] = (Lane){a, lanes[0].words, of_a - lanes[0].words};
        lanes[1] = (Lane){b, lanes[1].words, of_b - lanes[1].words};
        lanes[2] = (Lane){c, lanes[2].words, of_c - lanes[2].words};
        lanes[3] = (Lane){d, lanes[3].words, of_d - lanes[3].words};
    }
}

/* Symbols of one model; the lanes take turns. */
static void decode_dealt(Lane *lanes, int count_of_lanes, Model *model, uint8_t *symbols, size_t count)
{
    size_t done = 0;
    if (count >= FEW)
        model_table(model);
    if (count >= FEW && count_of_lanes == LANES)
        done = decode_rounds(lanes, model, symbols, count);
    for (; done < count; done++) {
        Lane *lane = lanes + done % count_of_lanes;
        const uint32_t part = quantile(lane->state);
        const int symbol = model_find(model, part, count >= FEW ? model->first[part >> (PRECISION - TABLE_BITS)] : 0);
        lane_step(lane, model->share[symbol]);
        symbols[done] = symbol;
    }
}

/* ---- the tokens of one tile, by their classes */

enum { PARTS = 4 }; /* of a tile, and of symbols to count: each has counters of its own, which need not wait */

typedef struct {
    Lane *lanes;
    int count_of_lanes, alphabet;
    const double *prior; /* (CLASSES, TOKENS) */
    int64_t counts[CLASSES + 2][TOKENS];
    uint8_t *classes, *ordered, *symbols; /* of a tile: by place, by class, by place */
} Coder;

/* Where the symbols of each part of a tile and of each class begin when they are in order of their class. */
typedef struct {
    size_t place[PARTS][CLASSES], amount[CLASSES];
} Order;

static void order_by_class(Order *order, const uint8_t *classes, size_t count)
{
    const size_t each = count / PARTS;
    uint32_t found[PARTS][CLASSES] = {{0}};
    for (size_t at = 0; at < each; at++)
        for (int part = 0; part < PARTS; part++)
            found[part][classes[each * part + at]]++;
    for (size_t at = PARTS * each; at < count; at++)
        found[PARTS - 1][classes[at]]++;
    size_t before = 0;
    for (int number = 0; number < CLASSES; number++) {
        const size_t start = before;
        for (int part = 0; part < PARTS; part++) {
            order->place[part][number] = before;
            before += found[part][number];
        }
        order->amount[number] = before - start;
    }
}

/* From their order by class back to their places. */
static void put_back(Order *order, const uint8_t *classes, const uint8_t *ordered, uint8_t *symbols, size_t count)
{
    const size_t each = count / PARTS;
    for (size_t at = 0; at < each; at++)
        for (int part = 0; part < PARTS; part++)
            symbols[each * part + at] = ordered[order->place[part][classes[each * part + at]]++];
    for (size_t at = PARTS * each; at < count; at++)
        symbols[at] = ordered[order->place[PARTS - 1][classes[at]]++];
}

/* The distribution of a class: its symbols so far, a quarter of those of the classes beside it, and the prior. */
static void model_of_class(Model *model, const Coder *coder, int number)
{
    const int64_t *below = coder->counts[number], *here = coder->counts[number + 1], *above = coder->counts[number + 2];
    const double *prior = coder->prior + number * TOKENS;
    double frequencies[TOKENS];
    for (int token = 0; token < coder->alphabet; token++)
        frequencies[token] = (double)(UNIT * here[token] + UNIT / 4 * (below[token] + above[token])) + prior[token];
    model_of(model, frequencies, coder->alphabet);
}

static void count_symbols(int64_t *more, const uint8_t *symbols, size_t count, int alphabet)
{
    uint32_t seen[PARTS][TOKENS] = {{0}};
    size_t at = 0;
    for (; at + PARTS <= count; at += PARTS)
        for (int part = 0; part < PARTS; part++)
            seen[part][symbols[at + part]]++;
    for (; at < count; at++)
        seen[0][symbols[at]]++;
    for (int token = 0; token < alphabet; token++)
        more[token] = (int64_t)seen[0][token] + seen[1][token] + seen[2][token] + seen[3][token];
}

/* Decodes the symbols of a tile by their classes, in ``coder->classes``, into ``coder->symbols``. */
static void decode_tile(Coder *coder, size_t count)
{
    int64_t more[CLASSES][TOKENS]; /* counts only once the tile is done */
    Order order;
    Model model;
    order_by_class(&order, coder->classes, count);
    for (int number = 0; number < CLASSES; number++) {
        const size_t amount = order.amount[number];
        uint8_t *symbols = coder->ordered + order.place[0][number];
        if (!amount)
            continue;
        model_of_class(&model, coder, number);
        decode_dealt(coder->lanes, coder->count_of_lanes, &model, symbols, amount);
        count_symbols(more[number], symbols, amount, coder->alphabet);
    }
    for (int number = 0; number < CLASSES; number++)
        for (int token = 0; order.amount[number] && token < coder->alphabet; token++)
            coder->counts[number + 1][token] += more[number][token];
    put_back(&order, coder->classes, coder->ordered, coder->symbols, count);
}

/* ---- what tokens are expected to be, from those before */

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
    *block = (Span){start, stop};
    return 1;
}

/* The most that a block can have. */
static size_t widest(size_t count, size_t largest)
{
    return smaller(count, largest * 3 / 2 + 1);
}

/* The tokens of a matrix (rows, channels * kernel_size), strip by strip, each tile by tile, each a group of positions
   of the kernel at a time. */
typedef struct {
    Coder coder;
    size_t rows, channels, kernel_size, wide; /* wide: the most channels of a tile */
    double by_row, by_column, by_channel, by_kernel;
    double *column_sums; /* (kernel_size, channels) */
    int64_t *position_sums, *position_counts;
    Span down, across, group; /* the rows of the strip, the channels of the tile, the kernel positions */
    uint8_t *planes, *room;   /* (kernel_size, rows of the strip, channels): where they are, and room for them */
    double *row_sums, strip_sum, strip_count;
    float *kernel_sums; /* (rows of the strip, channels of the tile) */
    double *scales, *channel;
    float *row, *column, *usual, *ratio; /* column: (kernel_size, wide), as expected */
    uint32_t *fresh;
} Context;

static inline int uses_kernels(const Context *all)
{
    return all->by_kernel != FIXED;
}

static inline size_t height_of(const Context *all)
{
    return all->down.stop - all->down.start;
}

static inline size_t width_of(const Context *all)
{
    return all->across.stop - all->across.start;
}

static int context_open(Context *all, Memory *memory)
{
    const size_t tall = widest(all->rows, MOST_ROWS), wide = widest(all->channels, MOST_CHANNELS);
    const size_t kernel_size = all->kernel_size;
    all->wide = wide;
    all->column_sums = take_zeros(memory, kernel_size * all->channels, 8);
    all->position_sums = take_zeros(memory, kernel_size, 8);
    all->position_counts = take_zeros(memory, kernel_size, 8);
    all->room = take(memory, kernel_size > 1 ? kernel_size * tall : 0, all->channels);
    all->row_sums = take(memory, tall, 8);
    all->kernel_sums = take(memory, tall * wide, 4);
    all->scales = take(memory, kernel_size, 8);
    all->channel = take(memory, wide, 8);
    all->row = take(memory, tall, 4);
    all->column = take(memory, kernel_size * wide, 4);
    all->usual = take(memory, wide, 4);
    all->ratio = take(memory, wide, 4);
    all->fresh = take(memory, wide, 4);
    all->coder.classes = take(memory, kernel_size * tall, wide);
    all->coder.ordered = take(memory, kernel_size * tall, wide);
    all->coder.symbols = take(memory, kernel_size * tall, wide);
    return memory->failed ? NO_MEMORY : OK;
}

/* The next positions of a kernel that are coded together. */
static int next_group(Context *all, size_t turn)
{
    size_t size = turn < sizeof KERNEL_GROUPS / sizeof *KERNEL_GROUPS ? KERNEL_GROUPS[turn] : all->kernel_size;
    if (all->down.start == 0 && all->across.start < SINGLE)
        size = turn < MOST_SINGLE ? 1 : all->kernel_size;
    else if (all->down.start && !uses_kernels(all))
        size = all->kernel_size;
    all->group.start = all->group.stop;
    all->group.stop = smaller(all->group.start + size, all->kernel_size);
    return all->group.start < all->kernel_size;
}

/* How many rows of a position are known. */
static inline double rows_seen(const Context *all, size_t position)
{
    return (double)(position < all->group.start ? all->down.stop : all->down.start);
}

/* What a token of each channel is expected to be, all positions together, and how positions differ from their mean. */
static void expect_channels(Context *all)
{
    const size_t width = width_of(all);
    int64_t sum = 0, number = 0;
    for (size_t position = 0; position < all->kernel_size; position++) {
        sum += all->position_sums[position];
        number += all->position_counts[position];
    }
    const double mean = (double)(sum + 1) / (double)(number + 2), prior = all->by_channel * mean;
    double weight = 0, *channel = all->channel;
    memset(channel, 0, width * sizeof *channel);
    for (size_t position = 0; position < all->kernel_size; position++) {
        const double *sums = all->column_sums + position * all->channels + all->across.start;
        all->scales[position] = ((double)all->position_sums[position] / mean + POSITION_PRIOR) /
                                (double)(all->position_counts[position] + POSITION_PRIOR);
        weight += rows_seen(all, position) * all->scales[position];
        for (size_t at = 0; at < width; at++)
            channel[at] += sums[at];
    }
    weight += all->by_channel;
    for (size_t at = 0; at < width; at++)
        channel[at] = (channel[at] + prior) / weight;
}

/* Of each column, for the positions of the group, and for those before where kernels count. */
static void expect_columns(Context *all)
{
    const size_t width = width_of(all);
    for (size_t position = uses_kernels(all) ? 0 : all->group.start; position < all->group.stop; position++) {
        const double *sums = all->column_sums + position * all->channels + all->across.start, *channel = all->channel;
        const double scale = all->by_column * all->scales[position], count = rows_seen(all, position) + all->by_column;
        float *column = all->column + position * all->wide;
        for (size_t at = 0; at < width; at++)
            column[at] = (float)((sums[at] + scale * channel[at]) / count);
    }
}

/* Of each row, relative to what the columns say. */
static void expect_rows(Context *all)
{
    const double by_row = all->by_row, count = all->strip_count + by_row;
    const double factor = all->strip_sum ? (double)all->down.stop * all->strip_count / all->strip_sum : 0;
    for (size_t at = 0; at < height_of(all); at++)
        all->row[at] = all->strip_sum ? (float)((all->row_sums[at] * factor + by_row) / count) : 1;
}

/* What a kernel is expected to have in the positions before. */
static void expect_kernels(Context *all)
{
    const size_t width = width_of(all);
    float *usual = all->usual;
    memset(usual, 0, width * sizeof *usual);
    for (size_t position = 0; position < all->group.start; position++)
        for (size_t at = 0; at < width; at++)
            usual[at] += all->column[position * all->wide + at];
}

/* How the kernels of a row differ from that. */
VECTORISED static void ratios(float *ratio, const float *kernels, float row, const float *columns, float by, size_t n)
{
    for (size_t at = 0; at < n; at++) {
        float usual = row * columns[at];
        usual += by;
        ratio[at] = (kernels[at] + by) / usual;
    }
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

static void classify_group(Context *all)
{
    const size_t height = height_of(all), width = width_of(all);
    const int by_kernels = all->group.start && uses_kernels(all);
    if (by_kernels)
        expect_kernels(all);
    for (size_t line = 0; line < height; line++) {
        const float row = all->row[line];
        if (by_kernels)
            ratios(all->ratio, all->kernel_sums + line * width, row, all->usual, (float)all->by_kernel, width);
        for (size_t position = all->group.start; position < all->group.stop; position++)
            classify(all->coder.classes + ((position - all->group.start) * height + line) * width, row,
                     all->column + position * all->wide, by_kernels ? all->ratio : NULL, width);
    }
}

/* ---- what the tokens of a tile tell of the next ones */

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

VECTORISED static void add_to_kernels(float *sums, const uint8_t *tokens, size_t count)
{
    for (size_t at = 0; at < count; at++)
        sums[at] += tokens[at];
}

/* Counts the symbols of one position, (height, width), and puts them in its plane. */
static void add_position(Context *all, size_t position, const uint8_t *symbols)
{
    const size_t height = height_of(all), width = width_of(all);
    double *sums = all->column_sums + position * all->channels + all->across.start;
    uint8_t *plane = all->planes + position * height * all->channels + all->across.start;
    memset(all->fresh, 0, width * sizeof *all->fresh);
    for (size_t line = 0; line < height; line++, symbols += width) {
        all->row_sums[line] += total_of(symbols, width);
        add_tokens(all->fresh, symbols, width);
        if (uses_kernels(all))
            add_to_kernels(all->kernel_sums + line * width, symbols, width);
        memcpy(plane + line * all->channels, symbols, width);
    }
    for (size_t at = 0; at < width; at++) {
        sums[at] += all->fresh[at];
        all->position_sums[position] += all->fresh[at];
        all->strip_sum += sums[at]; /* of the columns that this strip has, all rows down to its end */
    }
    all->position_counts[position] += height * width;
    all->strip_count += width;
}

static void decode_group(Context *all)
{
    const size_t size = height_of(all) * width_of(all);
    expect_channels(all);
    expect_columns(all);
    expect_rows(all);
    classify_group(all);
    decode_tile(&all->coder, (all->group.stop - all->group.start) * size);
    for (size_t position = all->group.start; position < all->group.stop; position++)
        add_position(all, position, all->coder.symbols + (position - all->group.start) * size);
}

/* Planes (kernel_size, rows, channels) to (rows, channels, kernel_size). */
static void transpose(uint8_t *tokens, const uint8_t *planes, size_t rows, size_t channels, size_t kernel_size)
{
    for (size_t row = 0; row < rows; row++, tokens += channels * kernel_size)
        for (size_t position = 0; position < kernel_size; position++) {
            const uint8_t *plane = planes + (position * rows + row) * channels;
            for (size_t channel = 0; channel < channels; channel++)
                tokens[channel * kernel_size + position] = plane[channel];
        }
}

/* Fills in the tokens of the next rows, of which there are ``height_of(all)`` then; 0 after the last ones. */
static int decode_strip(Context *all, uint8_t *tokens)
{
    if (!next_block(&all->down, all->rows, MOST_ROWS, 2))
        return 0;
    all->planes = all->kernel_size > 1 ? all->room : tokens;
    memset(all->row_sums, 0, height_of(all) * sizeof *all->row_sums);
    all->strip_sum = all->strip_count = 0;
    all->across = (Span){0, 0};
    while (next_block(&all->across, all->channels, MOST_CHANNELS, all->down.start ? 4 : 2)) {
        memset(all->kernel_sums, 0, height_of(all) * width_of(all) * sizeof *all->kernel_sums);
        all->group = (Span){0, 0};
        for (size_t turn = 0; next_group(all, turn); turn++)
            decode_group(all);
    }
    if (all->kernel_size > 1)
        transpose(tokens, all->planes, height_of(all), all->channels, all->kernel_size);
    return 1;
}

/* ---- bits as they are, which the stream has 24 at a time; a byte each */

enum { CHUNK = 24, SPAN = 4096 };

typedef struct {
    Lane *lane;
    size_t coming, ready, taken; /* bits in the stream, bytes in the buffer, of these */
    uint8_t buffer[SPAN + CHUNK];
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

static void bits_refill(Bits *bits)
{
    const int width = bits->coming % CHUNK ? bits->coming % CHUNK : CHUNK;
    uint32_t chunk = lane_uniform(bits->lane, 1u << width);
    uint8_t *out = bits->buffer + bits->ready;
    if (width == CHUNK)
        for (int byte = 0; byte < 3; byte++)
            memcpy(out + 8 * byte, bits_of_byte + (chunk >> (16 - 8 * byte) & 255), 8);
    else
        for (int place = width; place--; chunk >>= 1)
            out[place] = chunk & 1;
    bits->ready += width;
    bits->coming -= width;
}

/* The next ``count`` bits, at most SPAN; they are there until the next call. */
static const uint8_t *bits_take(Bits *bits, size_t count)
{
    if (bits->ready - bits->taken < count) {
        memmove(bits->buffer, bits->buffer + bits->taken, bits->ready - bits->taken);
        bits->ready -= bits->taken;
        bits->taken = 0;
    }
    while (bits->ready < bits->taken + count)
        bits_refill(bits);
    bits->taken += count;
    return bits->buffer + bits->taken - count;
}

/* ---- what the tokens leave open: lower bits, the paths of a trellis, signs */

static inline uint32_t low_of(int token)
{
    return token < DIRECT ? (uint32_t)token : (uint32_t)(2 + (token & 1)) << ((token - DIRECT) / 2 + 3);
}

static inline int extra_of(int token)
{
    return token < DIRECT ? 0 : (token - DIRECT) / 2 + 3;
}

/* Magnitudes of tokens, with their lower bits. */
static void lower_bits(Bits *bits, Lane *lane, const uint8_t *tokens, int64_t *wide, size_t count, int largest)
{
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
}

static uint64_t next_packed; /* NEXT, four bits each */

static void fill_next(void)
{
    for (int state = 0; state < STATES; state++)
        for (int parity = 0; parity < 2; parity++)
            next_packed |= (uint64_t)NEXT[state][parity] << (8 * state + 4 * parity);
}

static inline int state_after(int state, int parity)
{
    return next_packed >> (8 * state + 4 * parity) & 7;
}

/* Magnitudes from their indices, along each row: see trellis.py. */
static void magnitudes_of_indices(uint8_t *indices, size_t rows, size_t columns)
{
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) { /* side by side: each waits for its own state */
        uint8_t *one = indices + row * columns, *two = one + columns, *three = two + columns, *four = three + columns;
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
            const int index = indices[row * columns + at];
            indices[row * columns + at] = 2 * index + (state & 1);
            state = state_after(state, index & 1);
        }
}

static void wide_magnitudes_of_indices(int64_t *indices, size_t rows, size_t columns)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t at = 0, state = 0; at < columns; at++) {
            const int64_t index = indices[row * columns + at];
            indices[row * columns + at] = 2 * index + (state & 1);
            state = state_after(state, index & 1);
        }
}

VECTORISED static size_t count_nonzero(const uint8_t *sizes, size_t count)
{
    size_t total = 0;
    for (size_t at = 0; at < count; at++)
        total += sizes[at] != 0;
    return total;
}

/* Gives signs to magnitudes, of which all that are above 0 have one. */
static void sign(Bits *bits, Lane *lane, uint8_t *sizes, size_t count)
{
    bits_start(bits, lane, count_nonzero(sizes, count));
    for (size_t start = 0; start < count; start += SPAN) {
        const size_t stop = smaller(start + SPAN, count);
        const uint8_t *signs = bits_take(bits, count_nonzero(sizes + start, stop - start));
        for (size_t at = start; at < stop; at++) {
            const uint8_t size = sizes[at], minus = -*signs;
            sizes[at] = (size ^ minus) - minus; /* 0 of 0 by either sign */
            signs += size != 0;
        }
    }
}

static void wide_sign(Bits *bits, Lane *lane, int64_t *sizes, size_t count)
{
    size_t some = 0;
    for (size_t at = 0; at < count; at++)
        some += sizes[at] != 0;
    bits_start(bits, lane, some);
    for (size_t at = 0; at < count; at++)
        if (sizes[at] && *bits_take(bits, 1))
            sizes[at] = -sizes[at];
}

/* ---- matrices and vectors */

typedef struct {
    Memory memory;
    Lane lanes[LANES];
    int count_of_lanes;
    const double *prior;      /* (CLASSES, TOKENS) */
    const double *shrinkages; /* (SHRINKAGES,) */
    int expected, found;      /* the largest token */
    Bits bits;
} Decoder;

typedef struct {
    size_t rows, columns, kernel_size;
    int along_trellis;
} Matrix;

static int lanes_end(Decoder *decoder)
{
    int all = 1;
    for (int lane = 0; lane < decoder->count_of_lanes; lane++)
        all &= lane_ends(decoder->lanes + lane);
    return all;
}

/* Tokens (rows, columns), of which the largest is known. */
static int decode_tokens(Decoder *decoder, const Matrix *matrix, uint8_t *tokens)
{
    const int choices = matrix->kernel_size > 1 ? 4 : matrix->rows > 1 ? 2 : 0;
    double by[4] = {FIXED, FIXED, FIXED, FIXED};
    Context *all = take_zeros(&decoder->memory, 1, sizeof *all);
    if (!all)
        return NO_MEMORY;
    for (int choice = 0; choice < choices; choice++)
        by[choice] = decoder->shrinkages[lane_uniform(decoder->lanes, SHRINKAGES)];
    all->by_row = by[0], all->by_column = by[1], all->by_channel = by[2], all->by_kernel = by[3];
    all->rows = matrix->rows, all->kernel_size = matrix->kernel_size;
    all->channels = matrix->columns / matrix->kernel_size;
    all->coder.lanes = decoder->lanes, all->coder.count_of_lanes = decoder->count_of_lanes;
    all->coder.alphabet = decoder->expected + 1;
    all->coder.prior = decoder->prior;
    if (context_open(all, &decoder->memory) != OK)
        return NO_MEMORY;
    while (decode_strip(all, tokens))
        tokens += height_of(all) * matrix->columns;
    return OK;
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
static int decode_integers(Decoder *decoder, const Matrix *matrix, uint8_t *narrow, int64_t *wide)
{
    const size_t count = matrix->rows * matrix->columns;
    Bits *bits = &decoder->bits;
    int status = OK;
    decoder->expected = lane_uniform(decoder->lanes, TOKENS);
    if (!wide && decoder->expected >= DIRECT)
        return WIDE;
    if (decoder->expected && count)
        status = decode_tokens(decoder, matrix, narrow);
    else
        memset(narrow, 0, count);
    if (status != OK)
        return status;
    decoder->found = largest_of(narrow, count);
    if (decoder->found != decoder->expected)
        return OTHER_LARGEST;
    if (wide) {
        lower_bits(bits, decoder->lanes, narrow, wide, count, decoder->found);
        if (matrix->along_trellis)
            wide_magnitudes_of_indices(wide, matrix->rows, matrix->columns);
        wide_sign(bits, decoder->lanes, wide, count);
    } else {
        if (matrix->along_trellis)
            magnitudes_of_indices(narrow, matrix->rows, matrix->columns);
        sign(bits, decoder->lanes, narrow, count);
    }
    return OK;
}

static int decode_matrix(Decoder *decoder, const Matrix *matrix, uint8_t *out)
{
    const int status = decode_integers(decoder, matrix, out, NULL);
    return status == OK && !lanes_end(decoder) ? ENDS_ELSEWHERE : status;
}

static int decode_wide_matrix(Decoder *decoder, const Matrix *matrix, int32_t *out)
{
    const size_t count = matrix->rows * matrix->columns;
    uint8_t *tokens = take(&decoder->memory, count, 1);
    int64_t *values = take(&decoder->memory, count, 8);
    if (decoder->memory.failed)
        return NO_MEMORY;
    const int status = decode_integers(decoder, matrix, tokens, values);
    int fits = 1;
    if (status != OK)
        return status;
    for (size_t at = 0; at < count; at++) {
        fits &= values[at] >= INT32_MIN && values[at] <= INT32_MAX;
        out[at] = (int32_t)values[at];
    }
    return !lanes_end(decoder) ? ENDS_ELSEWHERE : fits ? OK : TOO_LARGE;
}

/* Adds to each difference the mean of the ``window`` values before it. */
static int add_means(int32_t *out, int64_t *values, size_t count, size_t window)
{
    int64_t sum = 0, number = 0;
    for (size_t at = 0; at < count; at++) {
        const int64_t twice = 2 * sum + number; /* rounded to the nearest, a half up */
        if (number)
            values[at] += twice >= 0 ? twice / (2 * number) : -((2 * number - 1 - twice) / (2 * number));
        if (values[at] < INT32_MIN || values[at] > INT32_MAX)
            return TOO_LARGE;
        out[at] = (int32_t)values[at];
        sum += values[at];
        if (at >= window)
            sum -= values[at - window];
        else
            number++;
    }
    return OK;
}

/* A vector, each element of which is predicted by the mean of those before it. */
static int decode_vector(Decoder *decoder, int32_t *out, size_t count, const int64_t *windows)
{
    uint8_t *tokens = take(&decoder->memory, count + 1, 1);
    int64_t *values = take(&decoder->memory, count + 1, 8);
    if (decoder->memory.failed)
        return NO_MEMORY;
    const size_t window = windows[lane_uniform(decoder->lanes, WINDOWS)];
    if (count) { /* the first says nothing of the others */
        tokens[0] = lane_uniform(decoder->lanes, TOKENS);
        lower_bits(&decoder->bits, decoder->lanes, tokens, values, 1, tokens[0]);
        wide_sign(&decoder->bits, decoder->lanes, values, 1);
    }
    const Matrix others = {1, count ? count - 1 : 0, 1, 0};
    const int status = decode_integers(decoder, &others, tokens, values + 1);
    if (status != OK)
        return status;
    return lanes_end(decoder) ? add_means(out, values, count, window) : ENDS_ELSEWHERE;
}

/* ---- Python */

/* Opens the streams of a tuple of bytes; 0 and an error where they, or the tables, are not what they are to be. */
static int decoder_open(Decoder *decoder, PyObject *streams, const Py_buffer *prior, const Py_buffer *shrinkages)
{
    const Py_ssize_t count = PyTuple_GET_SIZE(streams);
    if ((count != 1 && count != LANES) || prior->len != CLASSES * TOKENS * 8 || shrinkages->len != SHRINKAGES * 8) {
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the tables have, or so many streams");
        return 0;
    }
    decoder->count_of_lanes = (int)count;
    decoder->prior = prior->buf;
    decoder->shrinkages = shrinkages->buf;
    for (Py_ssize_t number = 0; number < count; number++) {
        Py_buffer stream;
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(streams, number), &stream, PyBUF_SIMPLE) < 0)
            return 0;
        lane_open(decoder->lanes + number, &decoder->memory, stream.buf, stream.len);
        PyBuffer_Release(&stream);
    }
    if (decoder->memory.failed)
        PyErr_NoMemory();
    return !decoder->memory.failed;
}

/* What Python gets; the decoder gives its memory back. */
static PyObject *result_of(Decoder *decoder, int status)
{
    release(&decoder->memory);
    if (status == NO_MEMORY)
        PyErr_NoMemory();
    return PyErr_Occurred() ? NULL : Py_BuildValue("iii", status, decoder->expected, decoder->found);
}

static int fits_matrix(const Matrix *matrix, const Py_buffer *out)
{
    const size_t most = PY_SSIZE_T_MAX / 8; /* less than a negative number is as one without a sign */
    const int fits = matrix->kernel_size >= 1 && matrix->columns % matrix->kernel_size == 0 && matrix->rows <= most &&
                     matrix->columns <= most && (matrix->columns == 0 || matrix->rows <= most / matrix->columns) &&
                     (out->itemsize == 1 || out->itemsize == 4) &&
                     (size_t)out->len == matrix->rows * matrix->columns * out->itemsize;
    if (!fits)
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the matrix has");
    return fits;
}

static PyObject *native_matrix(PyObject *self, PyObject *args)
{
    PyObject *streams;
    Py_buffer out, prior, shrinkages;
    Py_ssize_t rows, columns, kernel_size;
    int along_trellis, status = OK;
    if (!PyArg_ParseTuple(args, "O!w*nnnpy*y*", &PyTuple_Type, &streams, &out, &rows, &columns, &kernel_size,
                          &along_trellis, &prior, &shrinkages))
        return NULL;
    const Matrix matrix = {rows, columns, kernel_size, along_trellis};
    Decoder decoder = {{NULL, 0}};
    if (fits_matrix(&matrix, &out) && decoder_open(&decoder, streams, &prior, &shrinkages)) {
        Py_BEGIN_ALLOW_THREADS
        status = out.itemsize == 4 ? decode_wide_matrix(&decoder, &matrix, out.buf)
                                   : decode_matrix(&decoder, &matrix, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyObject *result = result_of(&decoder, status);
    PyBuffer_Release(&out), PyBuffer_Release(&prior), PyBuffer_Release(&shrinkages);
    return result;
}

static PyObject *native_vector(PyObject *self, PyObject *args)
{
    PyObject *streams;
    Py_buffer out, windows, prior, shrinkages;
    if (!PyArg_ParseTuple(args, "O!w*y*y*y*", &PyTuple_Type, &streams, &out, &windows, &prior, &shrinkages))
        return NULL;
    Decoder decoder = {{NULL, 0}};
    int status = OK;
    if (windows.len != WINDOWS * 8 || out.itemsize != 4)
        PyErr_SetString(PyExc_ValueError, "buffers of other sizes than the vector has");
    else if (decoder_open(&decoder, streams, &prior, &shrinkages))
        status = decode_vector(&decoder, out.buf, out.len / 4, windows.buf);
    PyObject *result = result_of(&decoder, status);
    PyBuffer_Release(&out), PyBuffer_Release(&windows), PyBuffer_Release(&prior), PyBuffer_Release(&shrinkages);
    return result;
}

static PyMethodDef methods[] = {
    {"matrix", native_matrix, METH_VARARGS,
     "matrix(streams, out, rows, columns, kernel_size, along_trellis, prior, shrinkages) -> "
     "(status, largest token, found)"},
    {"vector", native_vector, METH_VARARGS,
     "vector(streams, out, windows, prior, shrinkages) -> (status, largest token, found)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_decoder", NULL, -1, methods, NULL, NULL, NULL, NULL};

/* Under the names that they have in Python, where tests compare them. */
static PyObject *format(void)
{
    return Py_BuildValue(
        "{s:i,s:i,s:i,s:(ii),s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:(nn),s:d,s:i,s:i,s:i,s:y#}", "DIRECT", DIRECT, "TOKENS",
        TOKENS, "STEPS", STEPS, "OCTAVES", LOWEST, HIGHEST, "CLASSES", CLASSES, "UNIT", UNIT, "TILE", TILE, "MOST_ROWS",
        MOST_ROWS, "MOST_CHANNELS", MOST_CHANNELS, "SINGLE", SINGLE, "MOST_SINGLE", MOST_SINGLE, "POSITION_PRIOR",
        POSITION_PRIOR, "KERNEL_GROUPS", (Py_ssize_t)KERNEL_GROUPS[0], (Py_ssize_t)KERNEL_GROUPS[1], "FIXED", FIXED,
        "LANES", LANES, "SHRINKAGES", SHRINKAGES, "WINDOWS", WINDOWS, "NEXT", NEXT, (Py_ssize_t)sizeof NEXT);
}

PyMODINIT_FUNC PyInit__decoder(void)
{
    fill_bits_of_byte();
    fill_next();
    PyObject *module = module_with(&definition, format());
    if (module && (PyModule_AddIntMacro(module, ENDS_ELSEWHERE) || PyModule_AddIntMacro(module, OTHER_LARGEST) ||
                   PyModule_AddIntMacro(module, TOO_LARGE) || PyModule_AddIntMacro(module, WIDE)))
        Py_CLEAR(module);
    return module;
}
