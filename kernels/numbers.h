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
