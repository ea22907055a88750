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
    if (width == 2) {
        if (count == 2) ROWS(2, 2);
        else ROWS(1, 2);
        return;
    }
    switch (count) {
        case 1: ROWS(1, 1); break;
        case 2: ROWS(2, 1); break;
#if TILE_ROWS == 12
        case 3: ROWS(3, 1); break;
        case 4: ROWS(4, 1); break;
        case 5: ROWS(5, 1); break;
        case 6: ROWS(6, 1); break;
        case 7: ROWS(7, 1); break;
        case 8: ROWS(8, 1); break;
        case 9: ROWS(9, 1); break;
        case 10: ROWS(10, 1); break;
        case 11: ROWS(11, 1); break;
        case 12: ROWS(12, 1); break;
#endif
    }
#undef ROWS
}

/* A product's outputs of panels [begin, end). */
static inline void OF_TYPE(multiply)(const PackedMatrix *m, const Product *p, int64_t begin,
                                     int64_t end) {
    for (int64_t start = 0; start < p->num_rows; start += BLOCK_ROWS) {
        int64_t stop = start + BLOCK_ROWS < p->num_rows ? start + BLOCK_ROWS : p->num_rows;
        int width = p->num_rows <= 2 ? 2 : 1;
        for (int64_t panel = begin; panel < end; panel += width) {
            if (panel + width > end) width = 1;
            /* Tiles of about one size: one row takes nearly as long as four. */
            int64_t tiles = (stop - start + TILE_ROWS - 1) / TILE_ROWS;
            for (int64_t row = start, left = tiles; left; left--) {
                int count = (int)((stop - row + left - 1) / left);
                OF_TYPE(multiply_rows)(count, width, m, p, row, panel);
                row += count;
            }
        }
    }
}
