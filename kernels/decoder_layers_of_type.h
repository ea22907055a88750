/* A pass of one type; part of decoder_layers_cpu.c. */

/* Normalise the rows that `which` lists, or all. */
static void OF_TYPE(normalise)(const PassWork *w, const Team *team, int64_t member,
                               const float *weight, const int64_t *which, int64_t num_rows) {
    int64_t size = w->decoder->hidden, begin, end;
    team_share(team, member, num_rows, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        const float *x = w->pass->hidden + (which ? which[row] : row) * size;
        TYPE *normed = (TYPE *)w->normed + row * size;
        float scale = scale_of(x, size, w->decoder->epsilon);
        for (int64_t i = 0; i < size; i++) normed[i] = OF_TYPE(to)(x[i] * scale * weight[i]);
    }
}

static void OF_TYPE(apply)(const PassWork *w, Team *team, int64_t member, const PackedMatrix *m,
                           const void *rows, void *result, int64_t stride, enum Finish finish) {
    const Pass *p = w->pass;
    int64_t num_rows = p->ends && m == &p->ends->head ? p->num_logits : p->num_rows;
    Product product = {rows, num_rows, m->depth, result, stride, finish};
    OF_TYPE(multiply_share)(m, &product, &w->rounded, team, member);
}

/* Queries turned, keys turned and values into their slots. */
static void OF_TYPE(turn)(const PassWork *w, const Team *team, int64_t member, const Layer *layer) {
    const Decoder *d = w->decoder;
    const Pass *p = w->pass;
    int64_t dim = d->head_dim, own = d->num_heads * dim, others = d->num_kv_heads * dim;
    int64_t begin, end;
    team_share(team, member, p->num_rows, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        float *x = w->projected + row * (own + 2 * others);
        int64_t place = p->positions[row] * d->rotary_dim;
        const float *cos = p->cos + place, *sin = p->sin + place;
        TYPE *query = (TYPE *)w->query + row * own;
        TYPE *key = (TYPE *)layer->key_cache + p->slots[row] * others;
        TYPE *value = (TYPE *)layer->value_cache + p->slots[row] * others;
        for (int64_t head = 0; head < d->num_heads; head++)
            turn_head(w, layer->query_norm, cos, sin, x + head * dim);
        for (int64_t head = 0; head < d->num_kv_heads; head++)
            turn_head(w, layer->key_norm, cos, sin, x + own + head * dim);
        for (int64_t i = 0; i < own; i++) query[i] = OF_TYPE(to)(x[i]);
        for (int64_t i = 0; i < others; i++) key[i] = OF_TYPE(to)(x[own + i]);
        for (int64_t i = 0; i < others; i++) value[i] = OF_TYPE(to)(x[own + others + i]);
    }
}

/* Attention of the member's share of requests and KV heads. */
static void OF_TYPE(attend_share)(const PassWork *w, const Team *team, int64_t member,
                                  const Layer *layer) {
    const Decoder *d = w->decoder;
    const Pass *p = w->pass;
    int64_t dim = d->head_dim, heads = d->num_kv_heads;
    AttentionCall all = {.query = w->query,
                         .output = w->attended,
                         .rows = p->rows,
                         .visible = p->visible,
                         .key_cache = layer->key_cache,
                         .value_cache = layer->value_cache,
                         .requests = p->requests,
                         .tables = p->tables,
                         .num_heads = d->num_heads,
                         .num_kv_heads = heads,
                         .query_row_stride = d->num_heads * dim,
                         .query_head_stride = dim,
                         .table_width = p->table_width,
                         .key_stride = heads * dim,
                         .value_stride = heads * dim,
                         .output_stride = d->num_heads * dim,
                         .head_dim = dim,
                         .value_dim = dim,
                         .block_size = d->block_size,
                         .window = layer->window,
                         .scaling = d->scaling,
                         .softcap = d->softcap};
    OF_TYPE(attend_part)(&all, p->num_rows, team, member, w->scratch + member * w->scratch_floats);
}

static void OF_TYPE(embed)(const PassWork *w, Team *team, int64_t member) {
    const Pass *p = w->pass;
    int64_t size = w->decoder->hidden, begin, end;
    team_share(team, member, p->num_rows, &begin, &end);
    for (int64_t row = begin; row < end; row++) {
        const TYPE *line = (const TYPE *)p->ends->embedding + p->token_ids[row] * size;
        for (int64_t i = 0; i < size; i++) p->hidden[row * size + i] = OF_TYPE(of)(line[i]);
    }
    team_meet(team);
}

static void OF_TYPE(work)(void *given, Team *team, int64_t member) {
    const PassWork *w = given;
    const Decoder *d = w->decoder;
    const Pass *p = w->pass;
    float *hidden = p->hidden;
    int64_t width = (d->num_heads + 2 * d->num_kv_heads) * d->head_dim;
    if (p->ends) OF_TYPE(embed)(w, team, member);
    for (const Layer *l = d->layers; l < d->layers + d->num_layers; l++) {
        OF_TYPE(normalise)(w, team, member, l->input_norm, 0, p->num_rows);
        team_meet(team);
        OF_TYPE(apply)(w, team, member, &l->projections, w->normed, w->projected, width,
                       FINISH_FLOAT);
        team_meet(team);
        OF_TYPE(turn)(w, team, member, l);
        team_meet(team);
        OF_TYPE(attend_share)(w, team, member, l);
        team_meet(team);
        OF_TYPE(apply)(w, team, member, &l->output, w->attended, hidden, d->hidden, FINISH_ADD);
        team_meet(team);
        OF_TYPE(normalise)(w, team, member, l->inner_norm, 0, p->num_rows);
        team_meet(team);
        OF_TYPE(apply)(w, team, member, &l->gate_and_up, w->normed, w->gated, d->inner,
                       (enum Finish)d->activation);
        team_meet(team);
        OF_TYPE(apply)(w, team, member, &l->down, w->gated, hidden, d->hidden, FINISH_ADD);
        team_meet(team);
    }
    if (!p->ends) return;
    OF_TYPE(normalise)(w, team, member, p->ends->norm, p->logits_rows, p->num_logits);
    team_meet(team);
    OF_TYPE(apply)(w, team, member, &p->ends->head, w->normed, p->logits, p->ends->head.outputs,
                   FINISH_FLOAT);
}

/* Run one pass. Nothing was done where it returns 1, as there is no memory for it, or 2, as a token
 * is unknown. */
int OF_TYPE(run_layers)(const Decoder *d, const Pass *p) {
    int64_t rows = p->num_rows, heads = d->num_heads * d->head_dim;
    for (int64_t row = 0; p->ends && row < rows; row++)
        if (p->token_ids[row] < 0 || p->token_ids[row] >= p->ends->num_tokens) return 2;
    int64_t projected = rows * (heads + 2 * d->num_kv_heads * d->head_dim);
    AttentionCall call = {.requests = p->requests,
                          .num_heads = d->num_heads,
                          .num_kv_heads = d->num_kv_heads,
                          .head_dim = d->head_dim,
                          .value_dim = d->head_dim};
    int64_t most = scratch_size(&call, 0, rows);
    int64_t threads = least(greatest(p->num_threads, 1), MOST_MEMBERS);
    int64_t floats = projected + threads * most;
    int64_t lines = greatest(rows, p->ends ? p->num_logits : 0);
    int64_t numbers = lines * d->hidden + rows * (2 * heads + d->inner);
    int64_t deepest = greatest(d->hidden, greatest(heads, d->inner)) + 1;
    float *room = malloc(sizeof(float) * (floats + lines) + sizeof(TYPE) * numbers +
                         sizeof(int16_t) * lines * deepest);
    if (!room) return 1;
    TYPE *normed = (TYPE *)(room + floats + lines);
    TYPE *query = normed + lines * d->hidden, *attended = query + rows * heads;
    Rounded rounded = {(int16_t *)(normed + numbers), room + floats};
    PassWork work = {.decoder = d,
                     .pass = p,
                     .projected = room,
                     .normed = normed,
                     .query = query,
                     .attended = attended,
                     .gated = attended + rows * heads,
                     .rounded = rounded,
                     .scratch = room + projected,
                     .scratch_floats = most};
    team_run(OF_TYPE(work), &work, threads);
    free(room);
    return 0;
}

static void OF_TYPE(multiply_alone)(void *given, Team *team, int64_t member) {
    const ProductWork *w = given;
    OF_TYPE(multiply_share)(w->matrix, w->product, &w->rounded, team, member);
}

/* One product of its own; returns 1, and does nothing, where there is no memory for it. */
int OF_TYPE(multiply_matrix)(const PackedMatrix *m, const Product *p, int64_t num_threads) {
    int64_t size = m->outputs * m->depth * greatest(p->num_rows, LEAST_ROWS);
    ProductWork work = {m, p, {0, 0}};
    if (m->scales && p->num_rows) {
        work.rounded.steps =
            malloc(p->num_rows * (sizeof(float) + sizeof(int16_t) * (m->depth + 1)));
        if (!work.rounded.steps) return 1;
        work.rounded.numbers = (int16_t *)(work.rounded.steps + p->num_rows);
    }
    team_run(OF_TYPE(multiply_alone), &work, least(num_threads, 1 + size / WORTH_A_MEMBER));
    free(work.rounded.steps);
    return 0;
}

typedef struct {
    const AttentionCall *call;
    int64_t num_rows, scratch_floats;
    float *scratch;
} OF_TYPE(AttentionWork);

static void OF_TYPE(attention_work)(void *given, Team *team, int64_t member) {
    const OF_TYPE(AttentionWork) *w = given;
    float *scratch = w->scratch + member * w->scratch_floats;
    OF_TYPE(attend_part)(w->call, w->num_rows, team, member, scratch);
}

/* Attention of its own; 1 = there is no memory for it, and nothing was done. */
int OF_TYPE(attend_rows)(const AttentionCall *c, int64_t num_rows, int64_t num_threads) {
    int64_t num_keys = 0;
    for (int64_t row = 0; row < num_rows; row++) num_keys += c->visible[row];
    int64_t threads = least(least(num_threads, 1 + num_keys / KEYS_WORTH_A_MEMBER), MOST_MEMBERS);
    OF_TYPE(AttentionWork) work = {c, num_rows, scratch_size(c, 0, num_rows), 0};
    work.scratch = malloc(sizeof(float) * work.scratch_floats * threads);
    if (!work.scratch) return 1;
    team_run(OF_TYPE(attention_work), &work, threads);
    free(work.scratch);
    return 0;
}
