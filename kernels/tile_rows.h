/* The rows of a tile, and its function called with their number spelled out.
 *
 * Compilers keep a tile's sums in registers only where they know how many there are.
 */
#pragma once

/* Sums of all outputs of a tile, one line of weights and one number fit the registers. */
#ifdef __AVX512F__
#define TILE_ROWS 12
#define MORE_TILE_ROWS(TILE)     \
    case 3: TILE(3, 1); break;   \
    case 4: TILE(4, 1); break;   \
    case 5: TILE(5, 1); break;   \
    case 6: TILE(6, 1); break;   \
    case 7: TILE(7, 1); break;   \
    case 8: TILE(8, 1); break;   \
    case 9: TILE(9, 1); break;   \
    case 10: TILE(10, 1); break; \
    case 11: TILE(11, 1); break; \
    case 12: TILE(12, 1); break;
#else
#define TILE_ROWS 2
#define MORE_TILE_ROWS(TILE)
#endif

/* TILE(count, width), `count` at most TILE_ROWS; `width` is 1, or WIDE with one row or two. */
#define CALL_TILE(TILE, count, width, WIDE)  \
    do {                                     \
        if ((width) > 1) {                   \
            if ((count) == 2) TILE(2, WIDE); \
            else TILE(1, WIDE);              \
            break;                           \
        }                                    \
        switch (count) {                     \
            case 1: TILE(1, 1); break;       \
            case 2:                          \
                TILE(2, 1);                  \
                break;                       \
                MORE_TILE_ROWS(TILE)         \
        }                                    \
    } while (0)
