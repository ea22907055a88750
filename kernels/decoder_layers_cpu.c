/* All decoder layers of the usual kind in one call: see decoder_layers.py for what they compute.
 *
 * What is handed from one product of matrices to the next has the weights' type; the residual,
 * sums, norms and rotations are float32.
 */
#include <math.h>
#include <stdlib.h>

#include "decoder_layers_cpu.h"
#include "paged_attention_cpu.h"
#include "team.h"

/* Multiplications that take as long as waking another thread; reading a weight takes as long as
 * LEAST_ROWS rows of it. */
#define WORTH_A_MEMBER (1 << 22)
#define LEAST_ROWS 4
/* Keys, each counted for every row that sees it, of which the same is true. */
#define KEYS_WORTH_A_MEMBER 2048

typedef struct {
    const Decoder *decoder;
    const Pass *pass;
    float *projected; /* [num_rows, (num_heads + 2 num_kv_heads) head_dim] */
    void *normed, *query, *attended, *gated;
    Rounded rounded; /* what is multiplied with int8 weights */
    float *scratch;  /* of attention, for each member */
    int64_t scratch_floats;
} PassWork;

/* One product of its own. */
typedef struct {
    const PackedMatrix *matrix;
    const Product *product;
    Rounded rounded;
} ProductWork;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

/* 1 / root of the mean square. */
static inline float scale_of(const float *x, int64_t size, float epsilon) {
    float sum = 0.0f;
    for (int64_t i = 0; i < size; i++) sum += x[i] * x[i];
    return 1.0f / sqrtf(sum / (float)size + epsilon);
}

/* Normalise a head in place, if it has a norm, and rotate its first `rotary` numbers. */
static inline void turn_head(const PassWork *w, const float *norm, const float *cos,
                             const float *sin, float *x) {
    const Decoder *d = w->decoder;
    if (norm) {
        float scale = scale_of(x, d->head_dim, d->head_epsilon);
        for (int64_t i = 0; i < d->head_dim; i++) x[i] = x[i] * scale * norm[i];
    }
    int64_t half = d->rotary_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

#define TYPE float
#define OF_TYPE(name) name##_f32
#include "decoder_layers_of_type.h"
#undef TYPE
#undef OF_TYPE

#define TYPE uint16_t
#define OF_TYPE(name) name##_bf16
#include "decoder_layers_of_type.h"
#undef TYPE
#undef OF_TYPE
