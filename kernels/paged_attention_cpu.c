/* Attention of few query rows over a paged KV cache on a CPU, as a function of its own. */
#include "paged_attention_cpu.h"

#define DEFINE(NAME)                                                                             \
    /* Attend from rows [begin, end) of the call, which must hold all rows of their requests. */ \
    int attend_rows_##NAME(const AttentionCall *c, int64_t begin, int64_t end) {                 \
        float *scratch = malloc(sizeof(float) * scratch_size(c, begin, end));                    \
        if (!scratch) return 1;                                                                  \
        for (int64_t i = begin, stop; i < end; i = stop) {                                       \
            AttendedRequest r = next_request(c, i, end, scratch);                                \
            stop = i + r.num_rows;                                                               \
            attend_##NAME(&r);                                                                   \
        }                                                                                        \
        free(scratch);                                                                           \
        return 0;                                                                                \
    }

DEFINE(f32)
DEFINE(bf16)
