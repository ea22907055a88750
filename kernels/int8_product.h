/* Sums of products of int8 weights and rows rounded to 16 bits; part of packed_matrix.h.
 *
 * A line of weights holds two inputs of each output next to each other, so that one instruction
 * multiplies and adds both for LANES outputs, and nothing is ever summed across a register. Sums of
 * at most EXACT inputs are exact; so neither the number of rows nor the order within changes any.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "tile_rows.h"

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* Inputs whose products, of at most 32767 * 127 each, a sum of 32 bits holds. */
#define EXACT 512
/* As STEPS_AHEAD, in lines of two inputs. */
#define LINES_AHEAD 128
#define LARGEST_ROUNDED 32767.0f
/* Rows whose largest number is below count as zero: its reciprocal must be finite. */
#define SMALLEST_ROUNDED 1e-30f
/* Panels of a tile of one row or two. */
#ifdef __AVX512BW__
#define MOST_WIDTH 4
#else
#define MOST_WIDTH 1
#endif

/* Rows rounded to 16 bits, each with what one step of it is worth. */
typedef struct {
    int16_t *numbers; /* [num_rows, depth rounded up to an even number] */
    float *steps;     /* [num_rows] */
} Rounded;

#if defined(__AVX512BW__)
typedef __m512i Whole;
typedef __m512i Pairs;
static inline Whole no_sum(void) { return _mm512_setzero_si512(); }
static inline Pairs pairs_of(const int8_t *at) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)at));
}
static inline Pairs spread_pair(int32_t pair) { return _mm512_set1_epi32(pair); }
static inline Whole add_pairs(Whole sum, Pairs weights, Pairs x) {
#if defined(__AVX512VNNI__)
    /* Of the intrinsic, compilers copy the sums. */
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
    return sum;
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(weights, x));
#endif
}
static inline v16_int ints_of(Whole sum) { return (v16_int)sum; }
#elif defined(__AVX2__)
typedef struct {
    __m256i low, high;
} Whole;
typedef Whole Pairs;
static inline Whole no_sum(void) { return (Whole){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline Pairs pairs_of(const int8_t *at) {
    const __m128i *halves = (const __m128i *)at;
    return (Pairs){_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)),
                   _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
}
static inline Pairs spread_pair(int32_t pair) {
    return (Pairs){_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
static inline Whole add_pairs(Whole sum, Pairs weights, Pairs x) {
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(weights.low, x.low));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(weights.high, x.high));
    return sum;
}
static inline v16_int ints_of(Whole sum) {
    v16_int all;
    memcpy(&all, &sum, sizeof all);
    return all;
}
#else
typedef v16_int Whole;
typedef struct {
    v16_int first, second;
} Pairs;
static inline Whole no_sum(void) { return (Whole){}; }
static inline Pairs pairs_of(const int8_t *at) {
    Pairs pairs;
    for (int i = 0; i < LANES; i++) {
        pairs.first[i] = at[2 * i];
        pairs.second[i] = at[2 * i + 1];
    }
    return pairs;
}
static inline Pairs spread_pair(int32_t pair) {
    int16_t x[2];
    memcpy(x, &pair, sizeof x);
    return (Pairs){(v16_int){} + x[0], (v16_int){} + x[1]};
}
static inline Whole add_pairs(Whole sum, Pairs weights, Pairs x) {
    return sum + weights.first * x.first + weights.second * x.second;
}
static inline v16_int ints_of(Whole sum) { return sum; }
#endif

/* `count` rows by `width` panels that lie next to each other, inputs [begin, end) in pairs. */
static inline __attribute__((always_inline)) void add_exact(const int count, const int width,
                                                            const int8_t *panels,
                                                            const int16_t *rows, int64_t pairs,
                                                            int64_t begin, int64_t end,
                                                            v16 *totals) {
    Whole sum[TILE_ROWS][2 * MOST_WIDTH];
    for (int r = 0; r < count; r++)
        for (int w = 0; w < 2 * width; w++) sum[r][w] = no_sum();
    for (int64_t k = begin; k < end; k++) {
        Pairs line[2 * MOST_WIDTH];
        for (int w = 0; w < 2 * width; w++) {
            const int8_t *own = panels + ((w / 2) * pairs + k) * 2 * PANEL;
            if (count > 1 && w % 2 == 0) __builtin_prefetch(own + LINES_AHEAD / width * 2 * PANEL);
            line[w] = pairs_of(own + (w % 2) * 2 * LANES);
        }
        for (int r = 0; r < count; r++) {
            int32_t pair;
            memcpy(&pair, rows + (r * pairs + k) * 2, sizeof pair);
            Pairs x = spread_pair(pair);
            for (int w = 0; w < 2 * width; w++) sum[r][w] = add_pairs(sum[r][w], line[w], x);
        }
    }
    for (int r = 0; r < count; r++)
        for (int w = 0; w < 2 * width; w++)
            totals[r * 2 * width + w] += __builtin_convertvector(ints_of(sum[r][w]), v16);
}

static inline __attribute__((always_inline)) void sum_tile(const int count, const int width,
                                                           const int8_t *panels,
                                                           const int16_t *rows, int64_t pairs,
                                                           v16 *totals) {
    for (int i = 0; i < count * 2 * width; i++) totals[i] = (v16){};
    for (int64_t begin = 0; begin < pairs; begin += EXACT / 2) {
        int64_t end = begin + EXACT / 2 < pairs ? begin + EXACT / 2 : pairs;
        add_exact(count, width, panels, rows, pairs, begin, end, totals);
    }
}

/* Products summed up, without what steps are worth: totals[count, width, 2]. */
static void sum_int8(const int count, const int width, const int8_t *panels, const int16_t *rows,
                     int64_t pairs, v16 *totals) {
#define ROWS(COUNT, WIDTH) sum_tile(COUNT, WIDTH, panels, rows, pairs, totals)
    CALL_TILE(ROWS, count, width, MOST_WIDTH);
#undef ROWS
}
