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
        weigh(r, entry, r->scores + entry * CHUNK, begin, end);
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

/* The part of a call that is some KV heads'. */
static AttentionCall OF_TYPE(call_of_heads)(const AttentionCall *c, int64_t first, int64_t last) {
    int64_t group = c->num_heads / c->num_kv_heads;
    AttentionCall own = *c;
    own.query = (const TYPE *)c->query + first * group * c->query_head_stride;
    own.output = (TYPE *)c->output + first * group * c->value_dim;
    own.key_cache = (const TYPE *)c->key_cache + first * c->head_dim;
    own.value_cache = (const TYPE *)c->value_cache + first * c->value_dim;
    own.sinks = c->sinks ? c->sinks + first * group : 0;
    own.num_kv_heads = last - first;
    own.num_heads = own.num_kv_heads * group;
    return own;
}

/* Pack keys and values [begin, end) of the call's one KV head. */
static void OF_TYPE(pack_chunk)(const AttendedRequest *r, int64_t begin, int64_t end) {
    const AttentionCall *c = r->call;
    int64_t dim = c->head_dim, value_dim = c->value_dim, number = end - begin;
    if (number % PANEL)
        memset(r->keys + number / PANEL * dim * PANEL, 0, sizeof(float) * dim * PANEL);
    if (value_dim % PANEL)
        memset(r->values + value_dim / PANEL * number * PANEL, 0, sizeof(float) * number * PANEL);
    for (int64_t k = 0; k < number; k++) {
        int64_t slot = slot_of(r, begin + k);
        const TYPE *key = (const TYPE *)c->key_cache + slot * c->key_stride;
        const TYPE *value = (const TYPE *)c->value_cache + slot * c->value_stride;
        float *column = r->keys + k / PANEL * dim * PANEL + k % PANEL;
        for (int64_t d = 0; d < dim; d++) column[d * PANEL] = OF_TYPE(of)(key[d]);
        for (int64_t start = 0; start < value_dim; start += PANEL) {
            float *line = r->values + (start / PANEL * number + k) * PANEL;
            int64_t size = value_dim - start < PANEL ? value_dim - start : PANEL;
            for (int64_t d = 0; d < size; d++) line[d] = OF_TYPE(of)(value[start + d]);
        }
    }
}

/* One chunk for many entries of one KV head. */
static void OF_TYPE(attend_packed)(const AttendedRequest *r, int64_t begin, int64_t end) {
    const AttentionCall *c = r->call;
    int64_t dim = c->head_dim, value_dim = c->value_dim, number = end - begin;
    OF_TYPE(pack_chunk)(r, begin, end);
    for (int64_t start = 0, stop; start < r->count; start = stop) {
        stop = start + BLOCK_ENTRIES < r->count ? start + BLOCK_ENTRIES : r->count;
        /* Keys that any of these entries sees. */
        int64_t seen = r->visible[row_of(r, stop - 1)] - begin;
        seen = seen < number ? seen : number;
        if (seen <= 0 || first_key(c, r->visible[row_of(r, start)]) >= end) continue;
        PackedMatrix keys = {.panels = r->keys, .outputs = seen, .depth = dim};
        Product scores = {
            r->query + start * dim, stop - start, dim, r->scores, CHUNK, FINISH_FLOAT};
        multiply_f32(&keys, &scores, 0, 0, num_panels(&keys));
        for (int64_t entry = start; entry < stop; entry++)
            weigh(r, entry, r->scores + (entry - start) * CHUNK, begin, begin + seen);
        for (int64_t d = 0; d < value_dim; d += PANEL) {
            int64_t width = value_dim - d < PANEL ? value_dim - d : PANEL;
            PackedMatrix values = {
                .panels = r->values + d * number, .outputs = width, .depth = seen};
            Product sums = {r->scores, stop - start, CHUNK, r->sum + start * value_dim + d,
                            value_dim, FINISH_ADD};
            multiply_f32(&values, &sums, 0, 0, 1);
        }
    }
}

static void OF_TYPE(begin_entries)(const AttendedRequest *r) {
    const AttentionCall *c = r->call;
    int64_t dim = c->head_dim, entries = c->num_kv_heads * r->count;
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
    memset(r->sum, 0, sizeof(float) * entries * c->value_dim);
}

static void OF_TYPE(end_entries)(const AttendedRequest *r) {
    const AttentionCall *c = r->call;
    int64_t value_dim = c->value_dim, entries = c->num_kv_heads * r->count;
    for (int64_t entry = 0; entry < entries; entry++) {
        TYPE *result = (TYPE *)c->output + r->rows[row_of(r, entry)] * c->output_stride +
                       head_of(r, entry) * value_dim;
        float share = 1.0f / r->total[entry];
        for (int64_t d = 0; d < value_dim; d++)
            result[d] = OF_TYPE(to)(r->sum[entry * value_dim + d] * share);
    }
}

static void OF_TYPE(attend_chunks)(const AttendedRequest *r, int is_packed) {
    /* The last row sees the most, the first the oldest. */
    int64_t key = first_key(r->call, r->visible[0]), last = r->visible[r->num_rows - 1];
    OF_TYPE(begin_entries)(r);
    for (int64_t stop; key < last; key = stop) {
        stop = (key / CHUNK + 1) * CHUNK;
        stop = stop < last ? stop : last;
        if (is_packed) OF_TYPE(attend_packed)(r, key, stop);
        else OF_TYPE(attend_chunk)(r, key, stop, last);
    }
    OF_TYPE(end_entries)(r);
}

static void OF_TYPE(attend)(const AttendedRequest *r) {
    if (r->count < MANY_ENTRIES) {
        OF_TYPE(attend_chunks)(r, 0);
        return;
    }
    for (int64_t head = 0; head < r->call->num_kv_heads; head++) {
        AttentionCall own = OF_TYPE(call_of_heads)(r->call, head, head + 1);
        AttendedRequest one = *r;
        one.call = &own;
        OF_TYPE(attend_chunks)(&one, 1);
    }
}

/* A member's part of all requests and KV heads. */
static void OF_TYPE(attend_part)(const AttentionCall *all, int64_t num_rows, const Team *team,
                                 int64_t member, float *scratch) {
    if (!num_rows) return;
    int64_t heads = all->num_kv_heads, begin, end;
    team_share(team, member, (all->requests[num_rows - 1] + 1) * heads, &begin, &end);
    for (int64_t row = 0, stop, request = 0; row < num_rows; row = stop, request++) {
        stop = row + rows_of_request(all, row, num_rows);
        int64_t first = begin - request * heads, last = end - request * heads;
        first = first < 0 ? 0 : first;
        last = last > heads ? heads : last;
        if (first >= last) continue;
        AttentionCall own = OF_TYPE(call_of_heads)(all, first, last);
        AttendedRequest attended = next_request(&own, row, stop, scratch);
        OF_TYPE(attend)(&attended);
    }
}
