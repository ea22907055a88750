/* Attention over a paged KV cache on a CPU: see paged_attention.py.
 *
 * A request's keys are taken CHUNK by CHUNK: scores, then weights (softmax made anew as the
 * greatest score grows, 1805.02867), then weighted values, all in float32. Few rows read keys and
 * values where they lie, all heads of a key one after the other. Many rows have those of a chunk
 * and head packed first, and are two products of matrices.
 */
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "packed_matrix.h"
#include "team.h"

typedef struct {
    const void *query, *key_cache, *value_cache;
    void *output;
    const int32_t *rows, *visible, *requests, *tables;
    const float *sinks; /* one per head, or null */
    int64_t query_row_stride, query_head_stride, table_width;
    int64_t key_stride, value_stride, output_stride; /* from one slot, or row, to the next */
    int64_t num_heads, num_kv_heads, head_dim, value_dim, block_size;
    int64_t window;         /* 0 = none */
    float scaling, softcap; /* 0 = none */
} AttentionCall;

static inline float exp_of(float x) {
    v16 all = v16_exp((v16){} + x);
    return all[0];
}

/* The greatest of some scores and `most`; what is not a number is passed by. */
static inline float greatest_score(const float *x, int64_t size, float most) {
    typedef int32_t i16 __attribute__((vector_size(64)));
    v16 all = (v16){} + most;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        v16 here = v16_of_f32(x + i);
        i16 is_more = here > all;
        all = (v16)((is_more & (i16)here) | (~is_more & (i16)all));
    }
    for (int lane = 0; lane < LANES; lane++) most = all[lane] > most ? all[lane] : most;
    for (; i < size; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Turn scores into exp(score - most), and give their sum. */
static inline float weigh_scores(float *x, int64_t size, float most) {
    v16 sum = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        v16 weight = v16_exp(v16_of_f32(x + i) - most);
        v16_to_f32(x + i, weight);
        sum += weight;
    }
    float total = total_of(sum);
    for (; i < size; i++) total += x[i] = exp_of(x[i] - most);
    return total;
}

#define CHUNK 256
/* Entries of a KV head for which packing its keys pays. */
#define MANY_ENTRIES 48
/* Of these, so many at once: their scores stay in a core's cache. */
#define BLOCK_ENTRIES 96
/* Entries, (row, head) pairs that read the same keys, for which a key or value is read once. */
#define TILE 4

/* One request: its entries stand KV head by KV head, [num_kv_heads, num_rows, group]. */
typedef struct {
    const AttentionCall *call;
    const int32_t *rows, *visible, *table;
    int64_t num_rows, group, count;    /* count: entries of one KV head */
    float *query, *sum, *most, *total; /* by entry; of one KV head at a time, where they are many */
    float *scores;                     /* [entries, CHUNK], or of BLOCK_ENTRIES */
    float *keys, *values;              /* packed */
} AttendedRequest;

static inline int64_t first_key(const AttentionCall *c, int64_t visible) {
    return c->window && visible > c->window ? visible - c->window : 0;
}

static inline int64_t head_of(const AttendedRequest *r, int64_t entry) {
    return entry / r->count * r->group + entry % r->group;
}

static inline int64_t row_of(const AttendedRequest *r, int64_t entry) {
    return entry % r->count / r->group;
}

/* Turn the scores of one entry for keys [begin, end) into weights, zero outside of what it sees. */
static void weigh(const AttendedRequest *r, int64_t entry, float *scores, int64_t begin,
                  int64_t end) {
    const AttentionCall *c = r->call;
    float *sum = r->sum + entry * c->value_dim;
    int64_t visible = r->visible[row_of(r, entry)];
    int64_t first = first_key(c, visible) - begin, last = visible - begin, size = end - begin;
    first = first < 0 ? 0 : first > size ? size : first;
    last = last < first ? first : last > size ? size : last;
    if (c->softcap > 0.0f)
        for (int64_t i = first; i < last; i++)
            scores[i] = c->softcap * tanhf(scores[i] / c->softcap);
    float most = greatest_score(scores + first, last - first, r->most[entry]);
    float total = weigh_scores(scores + first, last - first, most);
    for (int64_t i = 0; i < first; i++) scores[i] = 0.0f;
    for (int64_t i = last; i < size; i++) scores[i] = 0.0f;
    float share = exp_of(r->most[entry] - most);
    if (share != 1.0f)
        for (int64_t d = 0; d < c->value_dim; d++) sum[d] *= share;
    r->total[entry] = r->total[entry] * share + total;
    r->most[entry] = most;
}

/* Where the part of a block that lies in [key, end) ends. */
static inline int64_t part_end(const AttentionCall *c, int64_t key, int64_t end) {
    int64_t stop = (key / c->block_size + 1) * c->block_size;
    return stop < end ? stop : end;
}

static inline int64_t slot_of(const AttendedRequest *r, int64_t key) {
    int64_t size = r->call->block_size;
    return (int64_t)r->table[key / size] * size + key % size;
}

/* How far the block behind the one of `key` lies from it, in slots; 0 where there is none. */
static inline int64_t distance_to_next(const AttendedRequest *r, int64_t key, int64_t last) {
    int64_t size = r->call->block_size, block = key / size;
    if ((block + 1) * size >= last) return 0;
    return ((int64_t)r->table[block + 1] - r->table[block]) * size;
}

/* Call `function(count, ...)` for the entries of KV head `head`, TILE at a time. */
#define BY_TILE(function, ...)                                                         \
    for (int64_t entry = head * r->count, own_end = entry + r->count; entry < own_end; \
         entry += TILE)                                                                \
        switch (own_end - entry) {                                                     \
            case 1: function(1, __VA_ARGS__); break;                                   \
            case 2: function(2, __VA_ARGS__); break;                                   \
            case 3: function(3, __VA_ARGS__); break;                                   \
            default: function(TILE, __VA_ARGS__);                                      \
        }

static int64_t rows_of_request(const AttentionCall *c, int64_t begin, int64_t end) {
    int64_t stop = begin;
    while (stop < end && c->requests[stop] == c->requests[begin]) stop++;
    return stop - begin;
}

/* Floats that one request needs, of whom `num_rows` rows are attended from. */
static int64_t request_size(const AttentionCall *c, int64_t num_rows) {
    int64_t count = num_rows * (c->num_heads / c->num_kv_heads),
            each = c->head_dim + c->value_dim + 2;
    if (count < MANY_ENTRIES) return num_rows * c->num_heads * (each + CHUNK);
    int64_t panels = (c->value_dim + PANEL - 1) / PANEL;
    return count * each + CHUNK * (BLOCK_ENTRIES + c->head_dim + panels * PANEL);
}

/* Floats that any of the requests of some rows needs. */
static int64_t scratch_size(const AttentionCall *c, int64_t begin, int64_t end) {
    int64_t most = 0;
    for (int64_t i = begin, number; i < end; i += number) {
        number = rows_of_request(c, i, end);
        int64_t size = request_size(c, number);
        most = size > most ? size : most;
    }
    return most;
}

static AttendedRequest next_request(const AttentionCall *c, int64_t begin, int64_t end,
                                    float *scratch) {
    AttendedRequest r = {.call = c, .rows = c->rows + begin, .visible = c->visible + begin};
    r.table = c->tables + c->requests[begin] * c->table_width;
    r.num_rows = rows_of_request(c, begin, end);
    r.group = c->num_heads / c->num_kv_heads;
    r.count = r.num_rows * r.group;
    int64_t entries = r.count < MANY_ENTRIES ? r.num_rows * c->num_heads : r.count;
    r.query = scratch;
    r.sum = r.query + entries * c->head_dim;
    r.most = r.sum + entries * c->value_dim;
    r.total = r.most + entries;
    r.scores = r.total + entries;
    r.keys = r.scores + CHUNK * BLOCK_ENTRIES;
    r.values = r.keys + CHUNK * c->head_dim;
    return r;
}

#define TYPE float
#define OF_TYPE(name) name##_f32
#include "paged_attention_of_type.h"
#undef TYPE
#undef OF_TYPE

#define TYPE uint16_t
#define OF_TYPE(name) name##_bf16
#include "paged_attention_of_type.h"
#undef TYPE
#undef OF_TYPE
