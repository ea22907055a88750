/* What decoder layers on a CPU are made of; `decoder_layers_cpu.py` mirrors the structures. */
#pragma once

#include <stdint.h>

#include "packed_matrix.h"

typedef struct {
    const float *input_norm, *inner_norm; /* [hidden] */
    const float *query_norm, *key_norm;   /* [head_dim], or null */
    PackedMatrix projections, output, gate_and_up, down;
    void *key_cache, *value_cache; /* [slots, num_kv_heads, head_dim] */
    int64_t window;                /* 0 = none */
} Layer;

typedef struct {
    const Layer *layers;
    int64_t num_layers, hidden, inner, num_heads, num_kv_heads, head_dim, rotary_dim, block_size;
    int64_t activation; /* FINISH_SILU or FINISH_GELU */
    float epsilon, head_epsilon, scaling, softcap;
} Decoder;

/* What stands in front of the layers and behind them. */
typedef struct {
    const void *embedding; /* [num_tokens, hidden] */
    int64_t num_tokens;
    const float *norm; /* [hidden] */
    PackedMatrix head;
} Ends;

/* One pass; rows that are attended from are all rows, see `paged_attention_cpu.py`. */
typedef struct {
    float *hidden;            /* [num_rows, hidden], replaced by what the layers make of it */
    const float *cos, *sin;   /* [positions, rotary_dim] */
    const int64_t *positions; /* [num_rows], lines of these */
    const int64_t *slots;     /* [num_rows] */
    const int32_t *rows, *visible, *requests, *tables;
    int64_t num_rows, table_width, num_threads;
    /* With ends: tokens instead of hidden states, and logits of some rows. */
    const Ends *ends; /* or null */
    const int64_t *token_ids, *logits_rows;
    float *logits; /* [num_logits, head's outputs] */
    int64_t num_logits;
} Pass;
