/* Attention over a cache of one type; part of paged_attention_cpu.h. */

/* Scores of `count` entries for the keys of one part of a block, by one KV head. */
static inline __attribute__((always_inline)) void OF_TYPE(score)(const int count, const TYPE *keys,
                                                                 int64_t stride, int64_t ahead,
                                                                 int64_t num_keys, int64_t dim,
                                                                 const float *query,
                                                                 float *scores) {
    for (int64_t k = 0; k < num_keys; k++, keys += stride) {
        v16 sum[TILE] = {};
        float dot[TILE];
        int64_t d = 0;
        for (; d + 16 <= dim; d += 16) {
            __builtin_prefetch(keys + d + ahead);
            v16 key = OF_TYPE(v16_of)(keys + d);
            for (int e = 0; e < count; e++) sum[e] += v16_of_f32(query + e * dim + d) * key;
        }
        for (int e = 0; e < count; e++) dot[e] = total_of(sum[e]);
        for (; d < dim; d++)
            for (int e = 0; e < count; e++) dot[e] += query[e * dim + d] * OF_TYPE(of)(keys[d]);
        for (int e = 0; e < count; e++) scores[e * CHUNK + k] = dot[e];
    }
}

/* Add the weighted values of one part of a block to `count` sums, for 16 * width numbers. */
static inline __attribute__((always_inline)) void OF_TYPE(add)(const int count, const int width,
                                                               const TYPE *values, int64_t stride,
                                                               int64_t ahead, int64_t num_keys,
                                                               int64_t dim, const float *weights,
                                                               float *sums) {
    v16 sum[TILE][4];
    for (int e = 0; e < count; e++)
        for (int w = 0; w < width; w++) sum[e][w] = v16_of_f32(sums + e * dim + 16 * w);
    for (int64_t k = 0; k < num_keys; k++, values += stride)
        for (int w = 0; w < width; w++) {
            __builtin_prefetch(values + 16 * w + ahead);
            v16 value = OF_TYPE(v16_of)(values + 16 * w);
            for (int e = 0; e < count; e++) sum[e][w] += weights[e * CHUNK + k] * value;
        }
    for (int e = 0; e < count; e++)
        for (int w = 0; w < width; w++) v16_to_f32(sums + e * dim + 16 * w, sum[e][w]);
}

static inline __attribute__((always_inline)) void OF_TYPE(add_all)(
    const int count, const TYPE *values, int64_t stride, int64_t ahead, int64_t num_keys,
    int64_t dim, const float *weights, float *sums) {
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64)
        OF_TYPE(add)(count, 4, values + d, stride, ahead, num_keys, dim, weights, sums + d);
    for (; d + 16 <= dim; d += 16)
        OF_TYPE(add)(count, 1, values + d, stride, ahead, num_keys, dim, weights, sums + d);
    for (; d < dim; d++)
        for (int64_t k = 0; k < num_keys; k++)
            for (int e = 0; e < count; e++)
                sums[e * dim + d] += weights[e * CHUNK + k] * OF_TYPE(of)(values[k * stride + d]);
}

static void OF_TYPE(attend_chunk)(const AttendedRequest *r, int64_t begin, int64_t end,
                                  int64_t last) {
    const AttentionCall *c = r->call;
    int64_t dim = c->head_dim, stride = c->key_stride;
    for (int64_t key = begin, stop; key < end; key = stop) {
        stop = part_end(c, key, end);
        const TYPE *keys = (const TYPE *)c->key_cache + slot_of(r, key) * stride;
        int64_t ahead = distance_to_next(r, key, last) * stride, number = stop - key;
        for (int64_t head = 0; head < c->num_kv_heads; head++, keys += dim)
            BY_TILE(OF_TYPE(score), keys, stride, ahead, number, dim, r->query + entry * dim,
                    r->scores + entry * CHUNK + key - begin)
    }
    for (int64_t entry = 0; entry < c->num_kv_heads * r->count; entry++)
        weigh(r, entry, begin, end);
    dim = c->value_dim;
    stride = c->value_stride;
    for (int64_t key = begin, stop; key < end; key = stop) {
        stop = part_end(c, key, end);
        const TYPE *values = (const TYPE *)c->value_cache + slot_of(r, key) * stride;
        int64_t ahead = distance_to_next(r, key, last) * stride, number = stop - key;
        for (int64_t head = 0; head < c->num_kv_heads; head++, values += dim)
            BY_TILE(OF_TYPE(add_all), values, stride, ahead, number, dim,
                    r->scores + entry * CHUNK + key - begin, r->sum + entry * dim)
    }
}

static void OF_TYPE(attend)(const AttendedRequest *r) {
    const AttentionCall *c = r->call;
    int64_t dim = c->head_dim, value_dim = c->value_dim, entries = c->num_kv_heads * r->count;
    for (int64_t entry = 0; entry < entries; entry++) {
        int64_t head = head_of(r, entry);
        const TYPE *given = (const TYPE *)c->query +
                            r->rows[row_of(r, entry)] * c->query_row_stride +
                            head * c->query_head_stride;
        for (int64_t d = 0; d < dim; d++)
            r->query[entry * dim + d] = OF_TYPE(of)(given[d]) * c->scaling;
        r->most[entry] = c->sinks ? c->sinks[head] : -FLT_MAX;
        r->total[entry] = c->sinks ? 1.0f : 0.0f;
    }
    memset(r->sum, 0, sizeof(float) * entries * value_dim);
    /* The last row sees the most, the first the oldest. */
    int64_t begin = first_key(c, r->visible[0]), last = r->visible[r->num_rows - 1];
    for (int64_t key = begin; key < last;) {
        int64_t stop = (key / CHUNK + 1) * CHUNK;
        stop = stop < last ? stop : last;
        OF_TYPE(attend_chunk)(r, key, stop, last);
        key = stop;
    }
    for (int64_t entry = 0; entry < entries; entry++) {
        TYPE *result = (TYPE *)c->output + r->rows[row_of(r, entry)] * c->output_stride +
                       head_of(r, entry) * value_dim;
        float share = 1.0f / r->total[entry];
        for (int64_t d = 0; d < value_dim; d++)
            result[d] = OF_TYPE(to)(r->sum[entry * value_dim + d] * share);
    }
}
