/* Numbers in memory as float32, and back: rounded to the nearest, ties to even. */
#pragma once

#include <stdint.h>
#include <string.h>

static inline float of_f32(float x) { return x; }
static inline float to_f32(float x) { return x; }

static inline float of_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : rounded);
}

/* Sixteen numbers at once; no better aligned than one of them. */
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16_int __attribute__((vector_size(64)));

static inline v16 v16_of_f32(const float *x) {
    v16 value;
    memcpy(&value, x, sizeof value);
    return value;
}

static inline void v16_to_f32(float *x, v16 value) { memcpy(x, &value, sizeof value); }

static inline v16 v16_of_bf16(const uint16_t *x) {
    typedef uint16_t half16 __attribute__((vector_size(32)));
    typedef uint32_t bits16 __attribute__((vector_size(64)));
    half16 halves;
    memcpy(&halves, x, sizeof halves);
    return (v16)(__builtin_convertvector(halves, bits16) << 16);
}

static inline float total_of(v16 x) {
    float sum = 0.0f;
    for (int i = 0; i < 16; i++) sum += x[i];
    return sum;
}

static inline void v16_to_bf16(uint16_t *x, v16 value) {
    for (int i = 0; i < 16; i++) x[i] = to_bf16(value[i]);
}
