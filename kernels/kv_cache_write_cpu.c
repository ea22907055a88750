/* Rows of keys or values into their slots of the paged KV cache: see kv_cache_write.py. */
#include <stdint.h>
#include <string.h>

/* All sizes and strides in bytes; a row's heads lie next to each other in the cache. */
void write_rows(const char *rows, char *cache, const int64_t *slots, int64_t num_rows,
                int64_t num_heads, int64_t size, int64_t row_stride, int64_t head_stride) {
    for (int64_t row = 0; row < num_rows; row++) {
        char *target = cache + slots[row] * num_heads * size;
        const char *source = rows + row * row_stride;
        if (head_stride == size) memcpy(target, source, num_heads * size);
        else
            for (int64_t head = 0; head < num_heads; head++)
                memcpy(target + head * size, source + head * head_stride, size);
    }
}
