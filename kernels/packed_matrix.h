/* Rows times a packed weight: see packed_matrix.py for the order of its numbers.
 *
 * A panel holds PANEL outputs. For each tile of rows its weights are read once, in the order in
 * which they lie, and sums stay in registers; so few rows cost what reading the weight costs. An
 * output is summed in one order whatever the number of rows.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#include "numbers.h"
#include "team.h"
#include "tile_rows.h"

#define PANEL 32
#define LANES 16
/* How far ahead of a product its weights are asked for: processors' own guesses come too late. */
#define STEPS_AHEAD 64
/* Rows whose inputs stay in a core's cache while all panels pass. */
#define BLOCK_ROWS 128

typedef struct {
    const void *panels; /* [panels, depth / step, PANEL, step]; step 1 in f32, 2 in bf16 */
    const float *bias;  /* [panels * PANEL] in the panels' order, or null */
    int64_t outputs, depth;
    /* Whether outputs are two halves of one length, and each panel holds LANES of either. */
    int64_t is_paired;
    /* As bias: what one step of each output's weights is worth, where these are int8, in steps of
     * 2; null elsewhere. */
    const float *scales;
} PackedMatrix;

enum Finish {
    FINISH_STORE, /* as TYPE */
    FINISH_FLOAT,
    FINISH_ADD,  /* to floats */
    FINISH_SILU, /* activation(first half) * second half, as TYPE */
    FINISH_GELU, /* with tanh */
};

typedef struct {
    const void *rows; /* of TYPE */
    int64_t num_rows, row_stride;
    void *result;
    int64_t result_stride;
    enum Finish finish;
} Product;

static inline int64_t num_panels(const PackedMatrix *m) {
    int64_t in_half = m->is_paired ? m->outputs / 2 : m->outputs,
            size = m->is_paired ? LANES : PANEL;
    return (in_half + size - 1) / size;
}

/* exp, to about two units in the last place where it is neither 0 nor infinite in float32. */
static inline v16 v16_exp(v16 x) {
    for (int i = 0; i < LANES; i++) x[i] = x[i] < -87.0f ? -87.0f : x[i] > 88.0f ? 88.0f : x[i];
    v16 whole;
    for (int i = 0; i < LANES; i++) whole[i] = __builtin_nearbyintf(x[i] * 1.44269504f);
    v16 rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    v16 sum = 1.9875691500e-4f * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    return sum * (v16)((__builtin_convertvector(whole, v16_int) + 127) << 23);
}

static inline v16 activate(enum Finish finish, v16 x) {
    if (finish == FINISH_SILU) return x / (1.0f + v16_exp(-x));
    v16 inner = 1.5957691216f * (x + 0.044715f * x * x * x); /* 2 sqrt(2 / pi) */
    return x / (1.0f + v16_exp(-inner));                     /* x * (1 + tanh(inner / 2)) / 2 */
}

/* Lines of weights, a row's number for all lanes, and their product added to sums. */
typedef v16 Line_f32;
#define STEP_f32 1
static inline Line_f32 line_f32(const float *x) { return v16_of_f32(x); }
static inline Line_f32 spread_f32(const float *x) { return (v16){} + *x; }
static inline v16 add_product_f32(v16 sum, Line_f32 x, Line_f32 w) { return sum + x * w; }

#define STEP_bf16 2
#ifdef __AVX512BF16__
#include <immintrin.h>
typedef __m512i Line_bf16;
static inline Line_bf16 line_bf16(const uint16_t *x) { return _mm512_loadu_si512(x); }
static inline Line_bf16 spread_bf16(const uint16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return _mm512_set1_epi32(pair);
}
static inline v16 add_product_bf16(v16 sum, Line_bf16 x, Line_bf16 w) {
    return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
}
#else
typedef uint32_t Line_bf16 __attribute__((vector_size(64)));
static inline Line_bf16 line_bf16(const uint16_t *x) {
    Line_bf16 line;
    memcpy(&line, x, sizeof line);
    return line;
}
static inline Line_bf16 spread_bf16(const uint16_t *x) {
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
    return (Line_bf16){} + pair;
}
static inline v16 add_product_bf16(v16 sum, Line_bf16 x, Line_bf16 w) {
    sum += (v16)(x << 16) * (v16)(w << 16);
    return sum + (v16)(x & 0xffff0000u) * (v16)(w & 0xffff0000u);
}
#endif

#include "int8_product.h"

/* What totals of LANES outputs from `place` are worth, with their bias. Never inlined: compilers
 * would multiply in another order here and there. */
static __attribute__((noinline)) void scale_totals(const PackedMatrix *m, float step, int64_t place,
                                                   v16 *totals) {
    *totals = *totals * v16_of_f32(m->scales + place) * step;
    if (m->bias) *totals += v16_of_f32(m->bias + place);
}

/* Panels side by side in a tile: with few rows, one alone would wait for its own sums. */
static inline int panels_of_tile(const PackedMatrix *m, int64_t num_rows) {
    return num_rows > 2 ? 1 : m->scales ? MOST_WIDTH : 2;
}

#define TYPE float
#define OF_TYPE(name) name##_f32
#include "packed_matrix_of_type.h"
#undef TYPE
#undef OF_TYPE

#define TYPE uint16_t
#define OF_TYPE(name) name##_bf16
#include "packed_matrix_of_type.h"
#undef TYPE
#undef OF_TYPE
