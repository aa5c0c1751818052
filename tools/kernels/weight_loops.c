/* The inner loops of shimmy/engine/layouts: what numpy does at less than the speed of copying.

   shimmy/engine/layouts/loops.py calls them, checks all sizes and indices before, and has each of them in numpy as well,
   with the same bits as a result. Nothing here allocates, fails or knows of files. Arrays are dense and do not overlap;
   machines are little-endian, as both formats are. No product may be fused with a sum (-ffp-contract=off): the results are
   the same on all processors. Here is what runs on any processor as fast; wide_loops.c has the rest. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define TILE 16 /* columns or rows that are done together */

/* to[n_columns][n_rows] = from[n_rows][n_columns] */
EXPORT void transpose_words(uint32_t * restrict to, const uint32_t * restrict from, size_t n_rows, size_t n_columns) {
    for (size_t row = 0; row < n_rows; row += TILE) {
        const size_t row_end = row + TILE < n_rows ? row + TILE : n_rows;
        for (size_t column = 0; column < n_columns; column += TILE) {
            const size_t column_end = column + TILE < n_columns ? column + TILE : n_columns;
            for (size_t c = column; c < column_end; c++) {
                for (size_t r = row; r < row_end; r++) {
                    to[c * n_rows + r] = from[r * n_columns + c];
                }
            }
        }
    }
}

/* One of each in turns. */
EXPORT void pair_halves(
    uint16_t * restrict to, const uint16_t * restrict first, const uint16_t * restrict second, size_t n) {
    for (size_t i = 0; i < n; i++) {
        to[2 * i] = first[i];
        to[2 * i + 1] = second[i];
    }
}

/* Two codes of each byte, the low half first. */
EXPORT void unpack_nibbles(uint8_t * restrict to, const uint8_t * restrict from, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        to[2 * i] = from[i] & 15;
        to[2 * i + 1] = from[i] >> 4;
    }
}

/* The same, the high half first. */
EXPORT void unpack_high_nibbles(uint8_t * restrict to, const uint8_t * restrict from, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        to[2 * i] = from[i] >> 4;
        to[2 * i + 1] = from[i] & 15;
    }
}

/* Eights of codes out of a string of bits, 2 to 7 to a code: they take as many bytes. */
static inline void unpack(int8_t * restrict to, const uint8_t * restrict from, size_t n_eights, const size_t n_bits) {
    for (size_t i = 0; i < n_eights; i++) {
        uint64_t eight = 0;
        for (size_t j = 0; j < n_bits; j++) {
            eight |= (uint64_t) from[i * n_bits + j] << 8 * j;
        }
        for (size_t j = 0; j < 8; j++) {
            to[8 * i + j] = (int8_t) (eight >> j * n_bits & ((1u << n_bits) - 1));
        }
    }
}

EXPORT void unpack_bits(int8_t * restrict to, const uint8_t * restrict from, size_t n_eights, size_t n_bits) {
    switch (n_bits) {
        case 2: unpack(to, from, n_eights, 2); break;
        case 3: unpack(to, from, n_eights, 3); break;
        case 5: unpack(to, from, n_eights, 5); break;
        case 6: unpack(to, from, n_eights, 6); break;
        case 7: unpack(to, from, n_eights, 7); break;
    }
}

/* 32 codes out of `n_bits` words: planes with some bits of all of them, of 4 or 2 the first one, in whole words. */
static inline void unpack_plane(
    uint8_t * restrict to, const uint32_t * restrict words, const size_t width, const size_t first) {
    for (size_t i = 0; i < width; i++) {
        for (size_t j = 0; j < 32 / width; j++) {
            const uint8_t bits = (uint8_t) ((words[i] >> width * j & ((1u << width) - 1)) << first);
            to[i * (32 / width) + j] = first == 0 ? bits : to[i * (32 / width) + j] | bits;
        }
    }
}

EXPORT void unpack_planes(
    uint8_t * restrict to, const uint32_t * restrict words, size_t n_blocks, size_t n_bits) {
    for (size_t b = 0; b < n_blocks; b++, to += 32, words += n_bits) {
        if (n_bits == 3) {
            unpack_plane(to, words, 2, 0);
            unpack_plane(to, words + 2, 1, 2);
            continue;
        }
        unpack_plane(to, words, 4, 0);
        if (n_bits >= 6) {
            unpack_plane(to, words + 4, 2, 4);
        }
        if (n_bits != 6) {
            unpack_plane(to, words + n_bits - 1, 1, n_bits - 1);
        }
    }
}

/* AWQ: each word has eight rows of one column; `words` is [n_words][n_columns], `to` [8 n_words][n_columns]. */
EXPORT void unpack_awq(int8_t * restrict to, const uint32_t * restrict words, size_t n_words, size_t n_columns) {
    static const size_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (size_t w = 0; w < n_words; w++) {
        const uint32_t * const from = words + w * n_columns;
        for (int i = 0; i < 8; i++) {
            int8_t * const row = to + (8 * w + order[i]) * n_columns;
            for (size_t c = 0; c < n_columns; c++) {
                row[c] = (int8_t) (from[c] >> 4 * i & 15);
            }
        }
    }
}

/* Take one number off all codes of a group. */
#define SUBTRACT(NAME, TYPE)                                                                                           \
    EXPORT void NAME(TYPE * restrict codes, const TYPE * restrict zeros, size_t n_groups, size_t length) {             \
        for (size_t g = 0; g < n_groups; g++) {                                                                        \
            for (size_t i = 0; i < length; i++) {                                                                      \
                codes[g * length + i] = (TYPE) (codes[g * length + i] - zeros[g]);                                     \
            }                                                                                                          \
        }                                                                                                              \
    }
SUBTRACT(subtract_8, int8_t)
SUBTRACT(subtract_16, int16_t)

/* The same where `groups` has the group of each column. */
#define SUBTRACT_MIXED(NAME, TYPE)                                                                                     \
    EXPORT void NAME(TYPE * restrict codes, const TYPE * restrict zeros, const uint32_t * restrict groups,             \
                     size_t n_rows, size_t n_columns, size_t n_groups) {                                               \
        for (size_t r = 0; r < n_rows; r++) {                                                                          \
            for (size_t c = 0; c < n_columns; c++) {                                                                   \
                codes[r * n_columns + c] = (TYPE) (codes[r * n_columns + c] - zeros[r * n_groups + groups[c]]);        \
            }                                                                                                          \
        }                                                                                                              \
    }
SUBTRACT_MIXED(subtract_mixed_8, int8_t)
SUBTRACT_MIXED(subtract_mixed_16, int16_t)

/* Blocks of GGUF (ggml-common.h): a header, then runs of codes, in whose byte j element j is the low half and element
   j + half the high one. */
static inline void pack(
    uint8_t * restrict to, const uint8_t * restrict headers, const uint8_t * restrict codes, size_t n_blocks,
    const size_t header_bytes, const size_t n_runs, const size_t half, const uint8_t flipped) {
    const size_t block_bytes = header_bytes + n_runs * half;
    for (size_t b = 0; b < n_blocks; b++) {
        memcpy(to + b * block_bytes, headers + b * header_bytes, header_bytes);
        for (size_t r = 0; r < n_runs; r++) {
            uint8_t * const bytes = to + b * block_bytes + header_bytes + r * half;
            const uint8_t * const run = codes + (b * n_runs + r) * 2 * half;
            for (size_t j = 0; j < half; j++) {
                bytes[j] = (uint8_t) ((run[j] & 15) | run[j + half] << 4) ^ flipped;
            }
        }
    }
}

/* Codes from -8 to 7, which become 0 to 15: their fourth bit is flipped. */
EXPORT void pack_q4_0(uint8_t * to, const uint8_t * scales, const uint8_t * codes, size_t n_blocks) {
    pack(to, scales, codes, n_blocks, 2, 1, 16, 0x88);
}

EXPORT void pack_q4_1(uint8_t * to, const uint8_t * scales_and_biases, const uint8_t * codes, size_t n_blocks) {
    pack(to, scales_and_biases, codes, n_blocks, 4, 1, 16, 0);
}

EXPORT void pack_mxfp4(uint8_t * to, const uint8_t * scales, const uint8_t * codes, size_t n_blocks) {
    pack(to, scales, codes, n_blocks, 1, 1, 16, 0);
}

EXPORT void pack_nvfp4(uint8_t * to, const uint8_t * scales, const uint8_t * codes, size_t n_blocks) {
    pack(to, scales, codes, n_blocks, 4, 4, 8, 0);
}

EXPORT void pack_q8_0(uint8_t * restrict to, const uint8_t * restrict scales, const uint8_t * restrict codes,
                      size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        memcpy(to + 34 * b, scales + 2 * b, 2);
        memcpy(to + 34 * b + 2, codes + 32 * b, 32);
    }
}

/* Codes from -16 to 15, which become 0 to 31: the fifth bit says that a code is not negative. A product moves the lowest
   bits of eight bytes into one byte. */
EXPORT void pack_q5_0(uint8_t * restrict to, const uint8_t * restrict scales, const uint8_t * restrict codes,
                      size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++) {
        uint8_t * const block = to + 22 * b;
        const uint8_t * const run = codes + 32 * b;
        memcpy(block, scales + 2 * b, 2);
        for (int i = 0; i < 4; i++) {
            uint64_t eight;
            memcpy(&eight, run + 8 * i, 8);
            block[2 + i] = (uint8_t) ((~eight >> 7 & 0x0101010101010101) * 0x0102040810204080 >> 56);
        }
        for (int j = 0; j < 16; j++) {
            block[6 + j] = (uint8_t) ((run[j] & 15) | run[j + 16] << 4);
        }
    }
}

/* Each group of codes has a table of its own. */
#define LOOK_UP(NAME, TYPE)                                                                                            \
    EXPORT void NAME(TYPE * restrict to, const uint8_t * restrict codes, const TYPE * restrict tables,                 \
                     const uint32_t * restrict places, size_t n_groups, size_t length, size_t n_codes) {               \
        for (size_t g = 0; g < n_groups; g++) {                                                                        \
            const TYPE * const table = tables + places[g] * n_codes;                                                   \
            for (size_t i = 0; i < length; i++) {                                                                      \
                to[g * length + i] = table[codes[g * length + i]];                                                     \
            }                                                                                                          \
        }                                                                                                              \
    }
LOOK_UP(look_up_16, uint16_t)
LOOK_UP(look_up_32, uint32_t)

/* Whether one of these codes of FP8 is no number. */
EXPORT int32_t has_nan_e4m3(const uint8_t * restrict codes, size_t n) {
    uint8_t found = 0;
    for (size_t i = 0; i < n; i++) {
        found |= (codes[i] & 127) == 127;
    }
    return found;
}

/* Whether this processor and its system have AVX2 and F16C, for which wide_loops.c is compiled as well. */
EXPORT int32_t has_avx2(void) {
#ifdef __x86_64__
    uint32_t a, b, c, d, kept = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE) && (c & bit_AVX) && (c & bit_F16C)) {
        __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
        return (kept & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
    }
#endif
    return 0;
}
