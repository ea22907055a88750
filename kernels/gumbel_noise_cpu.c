/* Gumbel noise on a CPU: see engine/sampling/noise.py for what its numbers are. */
#include <stdint.h>
#include <string.h>

#define LANES 4
#define NUM_ROUNDS 10
/* Counters that are encrypted at once; what they give stays in the nearest cache. */
#define BLOCK 64

/* Natural logarithm of a normal number above 0, to one unit in the last place (fdlibm's e_log.c),
 * without a branch, so that many are taken at once. */
static inline double log_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* From the root of 1/2 on, the exponent is one more. */
    uint64_t shifted = bits - 0x3fe6a09e667f3bcdull;
    double exponent = (double)((int64_t)shifted >> 52);
    bits -= shifted & 0xfff0000000000000ull;
    double f;
    memcpy(&f, &bits, sizeof f);
    f -= 1.0;
    double s = f / (2.0 + f), z = s * s, w = z * z;
    double odd = w * (3.999999999940941908e-01 +
                      w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    double even = z * (6.666666666666735130e-01 +
                       w * (2.857142874366239149e-01 +
                            w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    double half = 0.5 * f * f;
    return exponent * 6.93147180369123816490e-01 -
           ((half - (s * (half + odd + even) + exponent * 1.90821492927058770002e-10)) - f);
}

/* One block of a row: counters (first + i, position, choice, 0). */
static void fill_block(uint64_t seed, uint32_t choice, uint32_t position, uint32_t first,
                       float *noise) {
    uint32_t c0[BLOCK], c1[BLOCK], c2[BLOCK], c3[BLOCK];
    for (uint32_t i = 0; i < BLOCK; i++) {
        c0[i] = first + i;
        c1[i] = position;
        c2[i] = choice;
        c3[i] = 0;
    }
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < NUM_ROUNDS; round++) {
        for (int i = 0; i < BLOCK; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c1[i] = (uint32_t)p1;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const uint32_t *words[LANES] = {c0, c1, c2, c3};
    for (int lane = 0; lane < LANES; lane++) {
        float own[BLOCK];
        for (int i = 0; i < BLOCK; i++) {
            double u = ((double)words[lane][i] + 0.5) * 0x1p-32;
            own[i] = (float)-log_of(-log_of(u));
        }
        for (int i = 0; i < BLOCK; i++) noise[LANES * i + lane] = own[i];
    }
}

/* Fill noise, [num_rows, vocab_size], for each row's seed, choice and position. */
void gumbel_noise(const uint64_t *seeds, const uint64_t *choices, const uint64_t *positions,
                  int64_t num_rows, int64_t vocab_size, float *noise) {
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t start = 0; start < vocab_size; start += LANES * BLOCK) {
            float block[LANES * BLOCK];
            int64_t left = vocab_size - start, size = left < LANES * BLOCK ? left : LANES * BLOCK;
            fill_block(seeds[row], (uint32_t)choices[row], (uint32_t)positions[row],
                       (uint32_t)(start / LANES), block);
            memcpy(noise + row * vocab_size + start, block, sizeof(float) * size);
        }
}
