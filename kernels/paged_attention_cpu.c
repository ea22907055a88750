/* Attention of few query rows over a paged KV cache on a CPU: see paged_attention.py.
 *
 * Keys and values are read where they lie, once for up to four rows and heads that share them: two
 * passes, scores first and then weighted values, in float32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

typedef struct {
    const void *query, *key_cache, *value_cache;
    void *output;
    const int32_t *rows, *visible, *requests, *tables;
    const float *sinks; /* one per head, or null */
    int64_t query_row_stride, query_head_stride, table_width;
    int64_t num_heads, num_kv_heads, head_dim, value_dim, block_size;
    int64_t window; /* 0 = none */
    float scaling, softcap; /* 0 = none */
} Call;

/* exp for x <= 0, to about two units in the last place; what is not a number stays none. */
static inline float exp_below_zero(float x) {
    x = x < -87.0f ? -87.0f : x;
    float whole = nearbyintf(x * 1.44269504f);
    float rest = x - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* What is computed at once: entries are (row, head) pairs that read the same keys. */
#define MOST_ENTRIES 4

typedef struct {
    int64_t row, head, visible;
} Entry;

static inline int64_t first_key(const Call *c, int64_t visible) {
    return c->window && visible > c->window ? visible - c->window : 0;
}

/* Turn the scores of one entry into weights, zero outside of what it sees; returns their sum. */
static float weigh(const Call *c, const Entry *e, int64_t begin, int64_t end, float *scores) {
    int64_t first = first_key(c, e->visible) - begin, last = e->visible - begin;
    if (c->softcap > 0.0f)
        for (int64_t i = first; i < last; i++)
            scores[i] = c->softcap * tanhf(scores[i] / c->softcap);
    float most = scores[first], total = 0.0f;
    for (int64_t i = first + 1; i < last; i++) most = scores[i] > most ? scores[i] : most;
    if (c->sinks) {
        float sink = c->sinks[e->head];
        most = sink > most ? sink : most;
        total = exp_below_zero(sink - most);
    }
    for (int64_t i = first; i < last; i++) {
        scores[i] = exp_below_zero(scores[i] - most);
        total += scores[i];
    }
    for (int64_t i = 0; i < first; i++) scores[i] = 0.0f;
    for (int64_t i = last; i < end - begin; i++) scores[i] = 0.0f;
    return total;
}

#define DEFINE(NAME, TYPE)                                                                        \
    static inline __attribute__((always_inline)) void attend_##NAME(                              \
        const Call *c, const int count, const Entry *entries, const int32_t *table,               \
        int64_t kv_head, float *restrict scratch) {                                               \
        int64_t dim = c->head_dim, value_dim = c->value_dim, size = c->block_size;                \
        int64_t begin = first_key(c, entries[0].visible), end = entries[0].visible;               \
        for (int e = 1; e < count; e++) {                                                         \
            int64_t own = first_key(c, entries[e].visible);                                       \
            begin = own < begin ? own : begin;                                                    \
            end = entries[e].visible > end ? entries[e].visible : end;                            \
        }                                                                                         \
        int64_t span = end - begin;                                                               \
        float *restrict query = scratch, *restrict sum = query + count * dim;                     \
        float *restrict scores = sum + count * value_dim;                                         \
        for (int e = 0; e < count; e++) {                                                         \
            const TYPE *given = (const TYPE *)c->query + entries[e].row * c->query_row_stride     \
                                + entries[e].head * c->query_head_stride;                         \
            for (int64_t d = 0; d < dim; d++)                                                     \
                query[e * dim + d] = of_##NAME(given[d]) * c->scaling;                            \
        }                                                                                         \
        for (int64_t key = begin; key < end;) {                                                   \
            int64_t stop = (key / size + 1) * size < end ? (key / size + 1) * size : end;         \
            int64_t slot = (int64_t)table[key / size] * size + key % size;                        \
            const TYPE *keys =                                                                    \
                (const TYPE *)c->key_cache + (slot * c->num_kv_heads + kv_head) * dim;            \
            for (; key < stop; key++, keys += c->num_kv_heads * dim) {                            \
                for (int e = 0; e < count; e++) {                                                 \
                    float dot = 0.0f;                                                             \
                    for (int64_t d = 0; d < dim; d++)                                             \
                        dot += query[e * dim + d] * of_##NAME(keys[d]);                           \
                    scores[e * span + key - begin] = dot;                                         \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
        float totals[MOST_ENTRIES];                                                               \
        for (int e = 0; e < count; e++)                                                           \
            totals[e] = weigh(c, entries + e, begin, end, scores + e * span);                     \
        for (int64_t d = 0; d < count * value_dim; d++) sum[d] = 0.0f;                            \
        for (int64_t key = begin; key < end;) {                                                   \
            int64_t stop = (key / size + 1) * size < end ? (key / size + 1) * size : end;         \
            int64_t slot = (int64_t)table[key / size] * size + key % size;                        \
            const TYPE *values =                                                                  \
                (const TYPE *)c->value_cache + (slot * c->num_kv_heads + kv_head) * value_dim;    \
            for (; key < stop; key++, values += c->num_kv_heads * value_dim) {                    \
                for (int e = 0; e < count; e++) {                                                 \
                    float weight = scores[e * span + key - begin];                                \
                    for (int64_t d = 0; d < value_dim; d++)                                       \
                        sum[e * value_dim + d] += weight * of_##NAME(values[d]);                  \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
        for (int e = 0; e < count; e++) {                                                         \
            TYPE *result = (TYPE *)c->output                                                      \
                           + (entries[e].row * c->num_heads + entries[e].head) * value_dim;       \
            float share = 1.0f / totals[e];                                                       \
            for (int64_t d = 0; d < value_dim; d++)                                               \
                result[d] = to_##NAME(sum[e * value_dim + d] * share);                            \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    /* Attend from rows [begin, end) of the call, which must hold all rows of their requests. */  \
    int attend_rows_##NAME(const Call *c, int64_t begin, int64_t end) {                           \
        int64_t most = 0, group = c->num_heads / c->num_kv_heads;                                 \
        for (int64_t i = begin; i < end; i++) most = c->visible[i] > most ? c->visible[i] : most; \
        float *scratch =                                                                          \
            malloc(sizeof(float) * MOST_ENTRIES * (most + c->head_dim + c->value_dim));           \
        if (!scratch) return 1;                                                                   \
        for (int64_t i = begin; i < end;) {                                                       \
            int64_t stop = i;                                                                     \
            while (stop < end && c->requests[stop] == c->requests[i]) stop++;                     \
            const int32_t *table = c->tables + c->requests[i] * c->table_width;                   \
            int64_t count = (stop - i) * group;                                                   \
            for (int64_t kv_head = 0; kv_head < c->num_kv_heads; kv_head++)                       \
                for (int64_t place = 0; place < count;) {                                         \
                    Entry entries[MOST_ENTRIES];                                                  \
                    int taken = 0;                                                                \
                    for (; taken < MOST_ENTRIES && place < count; taken++, place++) {             \
                        int64_t own = i + place / group;                                          \
                        entries[taken].row = c->rows[own];                                        \
                        entries[taken].head = kv_head * group + place % group;                    \
                        entries[taken].visible = c->visible[own];                                 \
                    }                                                                             \
                    if (taken == 4) attend_##NAME(c, 4, entries, table, kv_head, scratch);        \
                    else if (taken == 3) attend_##NAME(c, 3, entries, table, kv_head, scratch);   \
                    else if (taken == 2) attend_##NAME(c, 2, entries, table, kv_head, scratch);   \
                    else attend_##NAME(c, 1, entries, table, kv_head, scratch);                   \
                }                                                                                 \
            i = stop;                                                                             \
        }                                                                                         \
        free(scratch);                                                                            \
        return 0;                                                                                 \
    }

DEFINE(f32, float)
DEFINE(bf16, uint16_t)
