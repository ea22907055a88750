/* Each row's largest logit and its lead, on a CPU: see engine/sampling/logits_processors.py. */
#include <math.h>
#include <stdint.h>

/* Largest of x[0 .. size), -inf of none; what is not a number is passed by. */
static inline float largest(const float *x, int64_t size) {
    float most = -INFINITY;
    for (int64_t i = 0; i < size; i++) most = x[i] > most ? x[i] : most;
    return most;
}

static inline int has_none(const float *x, int64_t size) {
    int32_t count = 0;
    for (int64_t i = 0; i < size; i++) count += x[i] != x[i];
    return count != 0;
}

/* The first of the largest; 0, and invalid, where the largest is infinite or one is no number. */
void choose_rows(const float *logits, int64_t num_rows, int64_t vocab_size, int64_t stride,
                 int64_t *token_ids, uint8_t *is_invalid) {
    for (int64_t row = 0; row < num_rows; row++) {
        const float *x = logits + row * stride;
        float most = largest(x, vocab_size);
        is_invalid[row] = !isfinite(most) || has_none(x, vocab_size);
        int64_t id = 0;
        if (!is_invalid[row])
            while (x[id] != most) id++;
        token_ids[row] = id;
    }
}

/* By how much each token's logit leads all others of its row. */
void lead_rows(const float *logits, int64_t num_rows, int64_t vocab_size, int64_t stride,
               const int64_t *token_ids, float *leads) {
    for (int64_t row = 0; row < num_rows; row++) {
        const float *x = logits + row * stride;
        int64_t id = token_ids[row];
        float before = largest(x, id), after = largest(x + id + 1, vocab_size - id - 1);
        float lead = x[id] - (before > after ? before : after);
        leads[row] = has_none(x, vocab_size) ? NAN : lead;
    }
}
