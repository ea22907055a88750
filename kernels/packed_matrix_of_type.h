/* Products of one type; part of packed_matrix.h. */

static inline void OF_TYPE(finish_part)(const Product *p, int64_t row, int64_t column,
                                        int64_t count, v16 value) {
    float *floats = (float *)p->result + row * p->result_stride + column;
    TYPE *numbers = (TYPE *)p->result + row * p->result_stride + column;
    int64_t i = 0;
    if (p->finish == FINISH_ADD) {
        if (count >= LANES) v16_to_f32(floats, v16_of_f32(floats) + value);
        else
            for (; i < count; i++) floats[i] += value[i];
    } else if (p->finish == FINISH_FLOAT) {
        if (count >= LANES) v16_to_f32(floats, value);
        else
            for (; i < count; i++) floats[i] = value[i];
    } else {
        if (count >= LANES) OF_TYPE(v16_to)(numbers, value);
        else
            for (; i < count; i++) numbers[i] = OF_TYPE(to)(value[i]);
    }
}

static inline void OF_TYPE(finish)(const PackedMatrix *m, const Product *p, int64_t row,
                                   int64_t panel, v16 first, v16 second) {
    int64_t in_half = m->is_paired ? m->outputs / 2 : m->outputs;
    int64_t column = panel * (m->is_paired ? LANES : PANEL), left = in_half - column;
    if (p->finish >= FINISH_SILU) {
        OF_TYPE(finish_part)(p, row, column, left, activate(p->finish, first) * second);
        return;
    }
    OF_TYPE(finish_part)(p, row, column, left, first);
    if (m->is_paired) OF_TYPE(finish_part)(p, row, in_half + column, left, second);
    else OF_TYPE(finish_part)(p, row, column + LANES, left - LANES, second);
}

/* `count` rows by `width` panels that lie next to each other. */
static inline __attribute__((always_inline)) void OF_TYPE(multiply_tile)(
    const int count, const int width, const PackedMatrix *m, const Product *p, int64_t row,
    int64_t panel) {
    int64_t depth = m->depth, steps = (depth + OF_TYPE(STEP) - 1) / OF_TYPE(STEP);
    int64_t size = steps * OF_TYPE(STEP) * PANEL, stride = p->row_stride;
    const TYPE *weights = (const TYPE *)m->panels + panel * size;
    const TYPE *rows = (const TYPE *)p->rows + row * stride;
    v16 sum[TILE_ROWS][4];
    for (int w = 0; w < 2 * width; w++) {
        v16 start = {};
        if (m->bias) start = v16_of_f32(m->bias + panel * PANEL + w * LANES);
        for (int r = 0; r < count; r++) sum[r][w] = start;
    }
    for (int64_t k = 0; k < steps; k++) {
        const TYPE *here = weights + k * OF_TYPE(STEP) * PANEL;
        OF_TYPE(Line) line[4];
        for (int w = 0; w < 2 * width; w++) {
            const TYPE *own = here + (w / 2) * size + (w % 2) * OF_TYPE(STEP) * LANES;
            if (count > 1) __builtin_prefetch(own + STEPS_AHEAD / width * OF_TYPE(STEP) * PANEL);
            line[w] = OF_TYPE(line)(own);
        }
        for (int r = 0; r < count; r++) {
            OF_TYPE(Line) x = OF_TYPE(spread)(rows + r * stride + k * OF_TYPE(STEP));
            for (int w = 0; w < 2 * width; w++)
                sum[r][w] = OF_TYPE(add_product)(sum[r][w], x, line[w]);
        }
    }
    for (int r = 0; r < count; r++)
        for (int w = 0; w < width; w++)
            OF_TYPE(finish)(m, p, row + r, panel + w, sum[r][2 * w], sum[r][2 * w + 1]);
}

static void OF_TYPE(multiply_rows)(const int count, const int width, const PackedMatrix *m,
                                   const Product *p, int64_t row, int64_t panel) {
#define ROWS(COUNT, WIDTH) OF_TYPE(multiply_tile)(COUNT, WIDTH, m, p, row, panel)
    CALL_TILE(ROWS, count, width, 2);
#undef ROWS
}

/* Round rows [begin, end), each to 16 bits of its largest number. */
static void OF_TYPE(round_rows)(const PackedMatrix *m, const Product *p, const Rounded *rounded,
                                int64_t begin, int64_t end) {
    int64_t depth = m->depth, stride = depth + depth % 2;
    for (int64_t row = begin; row < end; row++) {
        const TYPE *restrict x = (const TYPE *)p->rows + row * p->row_stride;
        int16_t *restrict numbers = rounded->numbers + row * stride;
        int32_t most = 0;
        for (int64_t i = 0; i < depth; i++) {
            float value = OF_TYPE(of)(x[i]);
            int32_t bits;
            memcpy(&bits, &value, sizeof bits);
            bits &= 0x7fffffff;
            most = bits > most ? bits : most;
        }
        float largest;
        memcpy(&largest, &most, sizeof largest);
        int is_finite = most < 0x7f800000;
        /* A row with an infinite number or none at all makes all of its outputs none. */
        rounded->steps[row] = is_finite ? largest / LARGEST_ROUNDED : largest - largest;
        numbers[stride - 1] = 0;
        if (is_finite && largest >= SMALLEST_ROUNDED) {
            float steps = LARGEST_ROUNDED / largest;
            for (int64_t i = 0; i < depth; i++) {
                float scaled = OF_TYPE(of)(x[i]) * steps;
                numbers[i] = (int16_t)(int32_t)(scaled + (scaled < 0.0f ? -0.5f : 0.5f));
            }
        } else memset(numbers, 0, sizeof *numbers * stride);
    }
}

static void OF_TYPE(multiply_int8)(int count, int width, const PackedMatrix *m, const Product *p,
                                   const Rounded *rounded, int64_t row, int64_t panel) {
    int64_t pairs = (m->depth + 1) / 2;
    v16 totals[2 * TILE_ROWS * MOST_WIDTH], *next = totals;
    sum_int8(count, width, (const int8_t *)m->panels + panel * pairs * 2 * PANEL,
             rounded->numbers + row * pairs * 2, pairs, totals);
    for (int r = 0; r < count; r++)
        for (int w = 0; w < width; w++, next += 2) {
            for (int i = 0; i < 2; i++)
                scale_totals(m, rounded->steps[row + r], (panel + w) * PANEL + i * LANES, next + i);
            OF_TYPE(finish)(m, p, row + r, panel + w, next[0], next[1]);
        }
}

/* A product's outputs of panels [begin, end); where weights are int8, of the rows as rounded. */
static inline void OF_TYPE(multiply)(const PackedMatrix *m, const Product *p,
                                     const Rounded *rounded, int64_t begin, int64_t end) {
    for (int64_t start = 0; start < p->num_rows; start += BLOCK_ROWS) {
        int64_t stop = start + BLOCK_ROWS < p->num_rows ? start + BLOCK_ROWS : p->num_rows;
        int width = panels_of_tile(m, p->num_rows);
        for (int64_t panel = begin; panel < end; panel += width) {
            if (panel + width > end) width = 1;
            /* Tiles of about one size: one row takes nearly as long as four. */
            int64_t tiles = (stop - start + TILE_ROWS - 1) / TILE_ROWS;
            for (int64_t row = start, left = tiles; left; left--) {
                int count = (int)((stop - row + left - 1) / left);
                if (m->scales) OF_TYPE(multiply_int8)(count, width, m, p, rounded, row, panel);
                else OF_TYPE(multiply_rows)(count, width, m, p, row, panel);
                row += count;
            }
        }
    }
}

/* A member's panels of a product; before, where weights are int8, its rows are rounded. */
static void OF_TYPE(multiply_share)(const PackedMatrix *m, const Product *p, const Rounded *rounded,
                                    Team *team, int64_t member) {
    int64_t begin, end;
    if (m->scales) {
        team_share(team, member, p->num_rows, &begin, &end);
        OF_TYPE(round_rows)(m, p, rounded, begin, end);
        team_meet(team);
    }
    team_share(team, member, num_panels(m), &begin, &end);
    OF_TYPE(multiply)(m, p, rounded, begin, end);
}
