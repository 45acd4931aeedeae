/* Pillow's two-pass resampling, bit for bit, of the part of a picture that a crop needs.
 *
 * C with the vectors of GCC and Clang and no intrinsics: they become SSE, AVX2 or NEON. Sums are int32 as in Pillow: 22
 * fraction bits, rounded, shifted and clipped to a byte after each pass. Build with -ffp-contract=off: a fused
 * multiply-add would round the weights differently from Pillow on x86 and from the pure path.
 */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI_VERSION 1

#define EXPORT __attribute__((visibility("default")))

/* Inlined into every clone, or it would be compiled once, for the oldest CPU. */
#define INLINE static inline __attribute__((always_inline))

/* SSE2 cannot multiply four int32 at once. The loader picks the clone, which needs glibc; ARM64 always has NEON. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define CLONES __attribute__((target_clones("avx2", "sse4.1", "default")))
#else
#define CLONES
#endif

#define PRECISION_BITS 22
#define HALF (1 << (PRECISION_BITS - 1))

/* Weights of one block of columns, 16 MiB: a line of 100 million pixels takes several blocks. */
#define MAX_WEIGHTS (1 << 22)

enum { OK = 0, NO_MEMORY = 1, BAD_ARGUMENT = 2 };

#if FLT_EVAL_METHOD != 0
#error "weights would be computed in more than double precision: on 32-bit x86 build with -msse2 -mfpmath=sse"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the pixels of a vector are taken to begin at its lowest byte"
#endif

/* The four sums of a pixel, and the same as 16 bytes. */
typedef int32_t Sums __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLE(one, two, ...) __builtin_shufflevector(one, two, __VA_ARGS__)
#else
#define SHUFFLE(one, two, ...) __builtin_shuffle(one, two, (Bytes){__VA_ARGS__})
#endif

/* The wanted part of one axis of a resized picture, pixels: `length` of `resized`, from `first`. */
typedef struct {
    int64_t source, resized, first, length;
} Window;

/* Of every resized pixel: the first source pixel, and `taps` weights (zeros where Pillow reads fewer pixels). */
typedef struct {
    int64_t taps;
    int64_t *begins;
    int32_t *weights;
} Filter;

/* `lines` lines of pixels, `stride` bytes from one to the next. */
typedef struct {
    const uint8_t *pixels;
    int64_t stride;
    int pixel_bytes;
} Source;

static double bilinear(double x) { return x < 1.0 ? 1.0 - x : 0.0; }

static double bicubic(double x) {
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

/* Pillow keeps the source's size in a float. */
static double scale_of(const Window *window) { return (double)(float)window->source / (double)window->resized; }

/* First and one past the last source pixel that make the resized pixel `index`; returns its centre. */
static double reads(const Window *window, int64_t index, int cubic, int64_t *first, int64_t *last) {
    double scale = scale_of(window), centre = ((double)index + 0.5) * scale;
    double reach = (cubic ? 2.0 : 1.0) * fmax(scale, 1.0);
    int64_t low = (int64_t)(centre - reach + 0.5), high = (int64_t)(centre + reach + 0.5);
    *first = low < 0 ? 0 : low;
    *last = high > window->source ? window->source : high;
    return centre;
}

static void free_filter(Filter *filter) {
    free(filter->begins);
    free(filter->weights);
}

/* `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's Resample.c: the same operations in the same order. */
static int make_filter(const Window *window, int cubic, Filter *filter) {
    double inverse = 1.0 / fmax(scale_of(window), 1.0);
    int64_t first, last, taps = 1;
    for (int64_t i = 0; i < window->length; i++) {
        reads(window, window->first + i, cubic, &first, &last);
        if (last - first > taps) taps = last - first;
    }
    filter->taps = taps;
    filter->begins = malloc((size_t)window->length * sizeof *filter->begins);
    filter->weights = calloc((size_t)(window->length * taps), sizeof *filter->weights);
    double *exact = malloc((size_t)taps * sizeof *exact);
    if (!filter->begins || !filter->weights || !exact) {
        free_filter(filter);
        free(exact);
        return NO_MEMORY;
    }
    for (int64_t i = 0; i < window->length; i++) {
        double total = 0.0, centre = reads(window, window->first + i, cubic, &first, &last);
        for (int64_t k = 0; k < last - first; k++) {
            double x = fabs(((double)(first + k) - centre + 0.5) * inverse);
            exact[k] = cubic ? bicubic(x) : bilinear(x);
            total += exact[k];
        }
        /* Every pixel gets as many weights as any, for a branch that depends on the pixel is often predicted wrongly. */
        int64_t begin = first + taps > window->source ? window->source - taps : first;
        int32_t *weights = filter->weights + i * taps + (first - begin);
        filter->begins[i] = begin;
        for (int64_t k = 0; k < last - first; k++) {
            double weight = total != 0.0 ? exact[k] / total : exact[k];
            weights[k] = (int32_t)(weight * (1 << PRECISION_BITS) + (signbit(weight) ? -0.5 : 0.5));
        }
    }
    free(exact);
    return OK;
}

/* Four adjacent bytes, widened. `__builtin_convertvector` does it byte by byte in GCC 12. */
INLINE Sums widened(const uint8_t *pixel) {
    uint32_t word;
    memcpy(&word, pixel, sizeof word);
    const Bytes none = {0}, bytes = (Bytes)(Words){word, 0, 0, 0};
    return (Sums)SHUFFLE(bytes, none, 0, 16, 16, 16, 1, 16, 16, 16, 2, 16, 16, 16, 3, 16, 16, 16);
}

/* Four sums rounded down and clipped to adjacent bytes. */
INLINE uint32_t clipped(Sums sums) {
    const Sums none = {0}, most = {255, 255, 255, 255};
    sums >>= PRECISION_BITS;
    sums &= sums > none; /* a comparison gives -1 or 0 */
    sums = (sums & (sums < most)) | (most & ~(sums < most));
    const Bytes bytes = (Bytes)sums;
    return ((Words)SHUFFLE(bytes, bytes, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12))[0];
}

/* One line across: pixels of `from` bytes to pixels of `to` bytes. Reads a byte past the line where `from` is 3. */
INLINE void line_across(const uint8_t *line, int64_t offset, const Filter *filter, int64_t taps, int64_t length, int from,
                        int to, uint8_t *restrict out) {
    for (int64_t x = 0; x < length; x++) {
        const uint8_t *pixel = line + (filter->begins[x] - offset) * from;
        const int32_t *weights = filter->weights + x * taps;
        Sums sums = {HALF, HALF, HALF, HALF};
        for (int64_t k = 0; k < taps; k++) sums += widened(pixel + k * from) * weights[k];
        uint32_t word = clipped(sums);
        if (x + 1 < length) memcpy(out + x * to, &word, sizeof word); /* the next pixel paints over the fourth byte */
        else memcpy(out + x * to, &word, (size_t)to);
    }
}

INLINE void line_across_any(const uint8_t *line, int64_t offset, const Filter *filter, int64_t length, int from, int to,
                            uint8_t *restrict out) {
    switch (filter->taps) { /* an unrolled loop for the sizes of everyday pictures */
        case 3: line_across(line, offset, filter, 3, length, from, to, out); break;
        case 4: line_across(line, offset, filter, 4, length, from, to, out); break;
        case 5: line_across(line, offset, filter, 5, length, from, to, out); break;
        case 6: line_across(line, offset, filter, 6, length, from, to, out); break;
        default: line_across(line, offset, filter, filter->taps, length, from, to, out);
    }
}

CLONES static void resample_across(const uint8_t *line, int64_t offset, const Filter *filter, int64_t length, int from,
                                   int to, uint8_t *restrict out) {
    if (from == 4 && to == 4) line_across_any(line, offset, filter, length, 4, 4, out);
    else if (from == 4) line_across_any(line, offset, filter, length, 4, 3, out);
    else if (to == 4) line_across_any(line, offset, filter, length, 3, 4, out);
    else line_across_any(line, offset, filter, length, 3, 3, out);
}

/* One line of bytes out of `taps` lines above each other. */
CLONES static void resample_down(const uint8_t *const *lines, const int32_t *weights, int64_t taps, int64_t bytes,
                                 int32_t *restrict sums, uint8_t *restrict out) {
    int64_t k = taps % 2;
    for (int64_t i = 0; i < bytes; i++) sums[i] = k ? HALF + weights[0] * lines[0][i] : HALF;
    for (; k < taps; k += 2) {
        const uint8_t *one = lines[k], *two = lines[k + 1];
        int32_t first = weights[k], second = weights[k + 1];
        for (int64_t i = 0; i < bytes; i++) sums[i] += first * one[i] + second * two[i];
    }
    for (int64_t i = 0; i < bytes; i++) {
        int32_t sum = sums[i] >> PRECISION_BITS;
        out[i] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
}

/* A block of columns. The lines between the passes are few: those that one line of the result is made of. */
static int resample_block(const Source *source, const Window *across, const Window *down, int cubic, int height_first,
                          uint8_t *out, int64_t out_stride, int out_bytes) {
    Filter columns = {0}, rows = {0};
    if (make_filter(across, cubic, &columns)) return NO_MEMORY;
    if (make_filter(down, cubic, &rows)) {
        free_filter(&columns);
        return NO_MEMORY;
    }
    int from = source->pixel_bytes;
    int64_t left = columns.begins[0], right = columns.begins[across->length - 1] + columns.taps;
    int64_t line_bytes = height_first ? (right - left) * from : across->length * out_bytes;
    int64_t held = height_first ? 1 : rows.taps;
    int64_t next = rows.begins[0]; /* the first line of the source that was not resampled across */
    uint8_t *between = malloc((size_t)(held * line_bytes + 1));
    int32_t *sums = malloc((size_t)line_bytes * sizeof *sums);
    const uint8_t **lines = malloc((size_t)rows.taps * sizeof *lines);
    uint8_t *last = malloc((size_t)((right - left) * from + 1));
    int status = between && sums && lines && last ? OK : NO_MEMORY;
    for (int64_t y = 0; status == OK && y < down->length; y++, out += out_stride) {
        const int32_t *weights = rows.weights + y * rows.taps;
        int64_t begin = rows.begins[y], end = begin + rows.taps;
        if (height_first) {
            for (int64_t k = 0; k < rows.taps; k++)
                lines[k] = source->pixels + (begin + k) * source->stride + left * from;
            resample_down(lines, weights, rows.taps, line_bytes, sums, between);
            resample_across(between, left, &columns, across->length, from, out_bytes, out);
            continue;
        }
        for (next = next < begin ? begin : next; next < end; next++) {
            const uint8_t *line = source->pixels + next * source->stride + left * from;
            if (next + 1 == down->source) /* nothing may lie behind its last byte */
                line = memcpy(last, line, (size_t)((right - left) * from));
            resample_across(line, left, &columns, across->length, from, out_bytes, between + next % held * line_bytes);
        }
        for (int64_t k = 0; k < rows.taps; k++) lines[k] = between + (begin + k) % held * line_bytes;
        resample_down(lines, weights, rows.taps, line_bytes, sums, out);
    }
    free(last);
    free(lines);
    free(sums);
    free(between);
    free_filter(&rows);
    free_filter(&columns);
    return status;
}

EXPORT int edgecls_abi_version(void) { return ABI_VERSION; }

/* Resamples a window of a picture into `out`.
 *
 * pixels, stride, pixel_bytes: the whole source, `across[0]` × `down[0]` pixels of 3 or 4 bytes, lines `stride` apart.
 * across, down: source, resized, first, length; as `Window`.
 * out, out_stride, out_bytes: `across[3]` × `down[3]` pixels of 3 or 4 bytes; the fourth gets any value.
 */
EXPORT int edgecls_resample(const uint8_t *pixels, int64_t stride, int pixel_bytes, const int64_t across[4],
                            const int64_t down[4], int cubic, int height_first, uint8_t *out, int64_t out_stride,
                            int out_bytes) {
    Source source = {pixels, stride, pixel_bytes};
    Window columns = {across[0], across[1], across[2], across[3]}, rows = {down[0], down[1], down[2], down[3]};
    const Window *both[2] = {&columns, &rows};
    for (int i = 0; i < 2; i++)
        if (both[i]->source < 1 || both[i]->source > INT32_MAX || both[i]->first < 0 || both[i]->length < 1 ||
            both[i]->length > INT32_MAX || both[i]->first > both[i]->resized - both[i]->length)
            return BAD_ARGUMENT;
    if (pixel_bytes < 3 || pixel_bytes > 4 || out_bytes < 3 || out_bytes > 4 || stride < columns.source * pixel_bytes)
        return BAD_ARGUMENT;
    double taps = (cubic ? 4.0 : 2.0) * fmax(scale_of(&columns), 1.0) + 2.0;
    int64_t block = (int64_t)fmax(MAX_WEIGHTS / taps, 1.0), end = columns.first + columns.length;
    for (; columns.first < end; columns.first += block) {
        columns.length = end - columns.first < block ? end - columns.first : block;
        int status = resample_block(&source, &columns, &rows, cubic, height_first,
                                    out + (columns.first - across[2]) * out_bytes, out_stride, out_bytes);
        if (status) return status;
    }
    return OK;
}
