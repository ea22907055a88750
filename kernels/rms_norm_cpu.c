/* Root-mean-square norms of rows on a CPU, in one pass: see rms_norm.py. */
#include <math.h>
#include <stdint.h>

#include "numbers.h"

#define DEFINE(NAME, TYPE)                                                                        \
    void rms_norm_##NAME(const TYPE *restrict x, const TYPE *restrict weight, TYPE *restrict out, \
                         int64_t rows, int64_t size, float epsilon, int is_gemma) {               \
        for (int64_t r = 0; r < rows; r++, x += size, out += size) {                              \
            float sum = 0.0f;                                                                     \
            for (int64_t i = 0; i < size; i++) sum += of_##NAME(x[i]) * of_##NAME(x[i]);          \
            float scale = 1.0f / sqrtf(sum / (float)size + epsilon);                              \
            if (is_gemma)                                                                         \
                for (int64_t i = 0; i < size; i++)                                                \
                    out[i] = to_##NAME(of_##NAME(x[i]) * scale * (1.0f + of_##NAME(weight[i])));  \
            else                                                                                  \
                for (int64_t i = 0; i < size; i++)                                                \
                    out[i] = to_##NAME(of_##NAME(to_##NAME(of_##NAME(x[i]) * scale)) *            \
                                       of_##NAME(weight[i]));                                     \
        }                                                                                         \
    }

DEFINE(f32, float)
DEFINE(bf16, uint16_t)
