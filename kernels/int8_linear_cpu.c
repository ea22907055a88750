/* Products of rows with int8 weights on a CPU: see int8_linear_cpu.py.
 *
 * Weights lie in panels of 16 outputs, two inputs of each output side by side, so that one
 * instruction multiplies and adds both for all 16, and nothing is ever summed across a register.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define LANES 16
/* Inputs whose products, of at most 32767 * 127 each, a sum of 32 bits holds. */
#define BLOCK 512
/* Rows whose largest number is below count as zero: its reciprocal must be finite. */
#define SMALLEST 1e-30f

typedef struct {
    const void *x; /* [rows][depth] */
    const int8_t *panels; /* [num_panels][pairs][LANES][2] */
    const float *scales; /* [num_panels * LANES] */
    const void *bias; /* [width], or null */
    void *output; /* [rows][width] */
    int64_t rows, depth, width;
} Call;

#if defined(__AVX512BW__)
#define MOST_ROWS 6
#define MOST_PANELS 4
typedef __m512i Sums;
typedef __m512i Weights;
static inline Sums nothing(void) { return _mm512_setzero_si512(); }
static inline Weights read_weights(const int8_t *at) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
}
static inline Sums add_products(Sums sums, Weights weights, int32_t pair) {
#if defined(__AVX512VNNI__)
    /* Of the intrinsic, compilers copy the sums. */
    __m512i both = _mm512_set1_epi32(pair);
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(both));
    return sums;
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(weights, _mm512_set1_epi32(pair)));
#endif
}
static inline void add_to(float *total, Sums sums) {
    _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), _mm512_cvtepi32_ps(sums)));
}
#elif defined(__AVX2__)
#define MOST_ROWS 4
#define MOST_PANELS 1
typedef struct {
    __m256i low, high;
} Sums;
typedef Sums Weights;
static inline Sums nothing(void) {
    Sums sums = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    return sums;
}
static inline Weights read_weights(const int8_t *at) {
    const __m128i *halves = (const __m128i *)at;
    Weights weights = {_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)),
                       _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
    return weights;
}
static inline Sums add_products(Sums sums, Weights weights, int32_t pair) {
    __m256i both = _mm256_set1_epi32(pair);
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(weights.low, both));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(weights.high, both));
    return sums;
}
static inline void add_to(float *total, Sums sums) {
    _mm256_storeu_ps(total, _mm256_add_ps(_mm256_loadu_ps(total), _mm256_cvtepi32_ps(sums.low)));
    total += LANES / 2;
    _mm256_storeu_ps(total, _mm256_add_ps(_mm256_loadu_ps(total), _mm256_cvtepi32_ps(sums.high)));
}
#else
#define MOST_ROWS 4
#define MOST_PANELS 1
typedef struct {
    int32_t lane[LANES];
} Sums;
typedef struct {
    int16_t first[LANES], second[LANES];
} Weights;
static inline Sums nothing(void) {
    Sums sums = {{0}};
    return sums;
}
static inline Weights read_weights(const int8_t *at) {
    Weights weights;
    for (int i = 0; i < LANES; i++) {
        weights.first[i] = at[2 * i];
        weights.second[i] = at[2 * i + 1];
    }
    return weights;
}
static inline Sums add_products(Sums sums, Weights weights, int32_t pair) {
    int16_t x[2];
    memcpy(x, &pair, sizeof x);
    for (int i = 0; i < LANES; i++)
        sums.lane[i] += (int32_t)weights.first[i] * x[0] + (int32_t)weights.second[i] * x[1];
    return sums;
}
static inline void add_to(float *total, Sums sums) {
    for (int i = 0; i < LANES; i++) total[i] += (float)sums.lane[i];
}
#endif

typedef float Totals[MOST_PANELS][LANES];

/* Sum up some rows with some panels. The numbers are written out in the function's name, so that
 * compilers keep all sums in registers. */
#define DEFINE_SUM(ROWS, COUNT)                                                                   \
    static inline void sum_block_##ROWS##_##COUNT(const int8_t *panels, const int16_t *x,         \
                                                  int64_t pairs, int64_t begin, int64_t end,      \
                                                  Totals *totals) {                               \
        Sums sums[ROWS][COUNT];                                                                   \
        for (int r = 0; r < ROWS; r++)                                                            \
            for (int p = 0; p < COUNT; p++) sums[r][p] = nothing();                               \
        for (int64_t i = begin; i < end; i++) {                                                   \
            Weights weights[COUNT];                                                               \
            for (int p = 0; p < COUNT; p++)                                                       \
                weights[p] = read_weights(panels + (p * pairs + i) * 2 * LANES);                  \
            for (int r = 0; r < ROWS; r++) {                                                      \
                int32_t pair;                                                                     \
                memcpy(&pair, x + (r * pairs + i) * 2, sizeof pair);                              \
                for (int p = 0; p < COUNT; p++)                                                   \
                    sums[r][p] = add_products(sums[r][p], weights[p], pair);                      \
            }                                                                                     \
        }                                                                                         \
        for (int r = 0; r < ROWS; r++)                                                            \
            for (int p = 0; p < COUNT; p++) add_to(totals[r][p], sums[r][p]);                     \
    }                                                                                             \
    static void sum_##ROWS##_##COUNT(const int8_t *panels, const int16_t *x, int64_t pairs,       \
                                     Totals *totals) {                                            \
        memset(totals, 0, ROWS * sizeof *totals);                                                 \
        for (int64_t begin = 0; begin < pairs; begin += BLOCK / 2) {                              \
            int64_t end = begin + BLOCK / 2 < pairs ? begin + BLOCK / 2 : pairs;                  \
            sum_block_##ROWS##_##COUNT(panels, x, pairs, begin, end, totals);                     \
        }                                                                                         \
    }

typedef void Sum(const int8_t *, const int16_t *, int64_t, Totals *);
DEFINE_SUM(1, 1) DEFINE_SUM(2, 1) DEFINE_SUM(3, 1) DEFINE_SUM(4, 1)
#if MOST_PANELS == 4
DEFINE_SUM(5, 1) DEFINE_SUM(6, 1)
DEFINE_SUM(1, 4) DEFINE_SUM(2, 4) DEFINE_SUM(3, 4) DEFINE_SUM(4, 4) DEFINE_SUM(5, 4) DEFINE_SUM(6, 4)
static Sum *const ONE[] = {sum_1_1, sum_2_1, sum_3_1, sum_4_1, sum_5_1, sum_6_1};
static Sum *const MANY[] = {sum_1_4, sum_2_4, sum_3_4, sum_4_4, sum_5_4, sum_6_4};
#else
static Sum *const ONE[] = {sum_1_1, sum_2_1, sum_3_1, sum_4_1};
#define MANY ONE
#endif

#define DEFINE(NAME, TYPE)                                                                        \
    /* Round a row to 16 bits of its largest number; returns what one step is worth. */           \
    static float round_##NAME(const TYPE *restrict x, int64_t depth, int16_t *restrict rounded) { \
        int32_t most = 0;                                                                         \
        for (int64_t i = 0; i < depth; i++) {                                                     \
            float value = of_##NAME(x[i]);                                                        \
            int32_t bits;                                                                         \
            memcpy(&bits, &value, sizeof bits);                                                   \
            bits &= 0x7fffffff;                                                                   \
            most = bits > most ? bits : most;                                                     \
        }                                                                                         \
        float largest;                                                                            \
        memcpy(&largest, &most, sizeof largest);                                                  \
        int counts = most < 0x7f800000 && largest >= SMALLEST;                                    \
        float steps = counts ? 32767.0f / largest : 0.0f;                                         \
        if (counts)                                                                               \
            for (int64_t i = 0; i < depth; i++) {                                                 \
                float scaled = of_##NAME(x[i]) * steps;                                           \
                rounded[i] = (int16_t)(int32_t)(scaled + (scaled < 0.0f ? -0.5f : 0.5f));         \
            }                                                                                     \
        else                                                                                      \
            memset(rounded, 0, sizeof *rounded * depth);                                          \
        if (depth % 2) rounded[depth] = 0;                                                        \
        /* A row with an infinite number or none at all makes all of its outputs none. */         \
        return most < 0x7f800000 ? largest / 32767.0f : largest - largest;                        \
    }                                                                                             \
                                                                                                  \
    /* Compute outputs of panels [begin, end) for all rows; returns 0, or 1 without memory. */    \
    int int8_linear_##NAME(const Call *c, int64_t begin, int64_t end) {                           \
        int64_t pairs = (c->depth + 1) / 2;                                                       \
        float *steps = malloc(c->rows * (sizeof(float) + 2 * sizeof(int16_t) * pairs) + 1);       \
        if (!steps) return 1;                                                                     \
        int16_t *x = (int16_t *)(steps + c->rows);                                                \
        for (int64_t r = 0; r < c->rows; r++)                                                     \
            steps[r] = round_##NAME((const TYPE *)c->x + r * c->depth, c->depth,                  \
                                    x + r * pairs * 2);                                           \
        for (int64_t panel = begin; panel < end;) {                                               \
            int count = end - panel < MOST_PANELS ? 1 : MOST_PANELS;                              \
            const int8_t *panels = c->panels + panel * pairs * 2 * LANES;                         \
            int64_t first = panel * LANES, last = first + count * LANES;                          \
            last = last < c->width ? last : c->width;                                             \
            for (int64_t row = 0; row < c->rows;) {                                               \
                int rows = c->rows - row < MOST_ROWS ? (int)(c->rows - row) : MOST_ROWS;          \
                Totals totals[MOST_ROWS];                                                         \
                (count == 1 ? ONE : MANY)[rows - 1](panels, x + row * pairs * 2, pairs, totals);  \
                for (int r = 0; r < rows; r++, row++) {                                           \
                    const float *sums = totals[r][0], *scales = c->scales + first;                \
                    TYPE *output = (TYPE *)c->output + row * c->width + first;                    \
                    const TYPE *bias = (const TYPE *)c->bias;                                     \
                    if (bias)                                                                     \
                        for (int64_t i = 0; i < last - first; i++)                                \
                            output[i] = to_##NAME(sums[i] * scales[i] * steps[row]                \
                                                  + of_##NAME(bias[first + i]));                  \
                    else                                                                          \
                        for (int64_t i = 0; i < last - first; i++)                                \
                            output[i] = to_##NAME(sums[i] * scales[i] * steps[row]);              \
                }                                                                                 \
            }                                                                                     \
            panel += count;                                                                       \
        }                                                                                         \
        free(steps);                                                                              \
        return 0;                                                                                 \
    }

DEFINE(f32, float)
DEFINE(bf16, uint16_t)
