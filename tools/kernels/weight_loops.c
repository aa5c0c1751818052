/* The inner loops of shimmy/engine/layouts: what numpy does at less than the speed of copying.

   shimmy/engine/layouts/loops.py calls them, checks all sizes and indices before, and has each of them in numpy as well,
   with the same bits as a result. Nothing here allocates, fails or knows of files. Arrays are dense and do not overlap;
   machines are little-endian, as both formats are. Plain C that compilers vectorise: it runs on any processor, so no
   product may be fused with a sum (-ffp-contract=off). */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define TILE 16 /* columns or rows that are done together */
#define LINES 64 /* words of a line that are done together, which are four cache lines */

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

/* Below, codes of 4 bits become blocks of GGUF or halves without being unpacked to arrays between. Compilers know these
   vectors on any processor. */

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint16_t halves8 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));
#define INLINE static inline __attribute__((always_inline))

/* The first (or last) halves of two vectors, in turns. */
#ifdef __clang__
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define ZIP_LOW_WORDS(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define ZIP_HIGH_WORDS(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define SWAP_HALVES(a) __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP_QUARTERS(a) __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#else
#define ZIP_LOW(a, b) __builtin_shuffle(a, b, (bytes16) {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23})
#define ZIP_HIGH(a, b)                                                                                                 \
    __builtin_shuffle(a, b, (bytes16) {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31})
#define ZIP_LOW_WORDS(a, b) __builtin_shuffle(a, b, (words4) {0, 4, 1, 5})
#define ZIP_HIGH_WORDS(a, b) __builtin_shuffle(a, b, (words4) {2, 6, 3, 7})
#define SWAP_HALVES(a) __builtin_shuffle(a, (bytes16) {8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7})
#define SWAP_QUARTERS(a) __builtin_shuffle(a, (bytes16) {4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11})
#endif

INLINE bytes16 load(const void * from) {
    bytes16 found;
    memcpy(&found, from, sizeof(found));
    return found;
}

INLINE void store(void * to, bytes16 bytes) {
    memcpy(to, &bytes, sizeof(bytes));
}

/* The order of a block out of nibbles in their own order: byte j has nibble j, and nibble j + 16 in its high half. */
INLINE bytes16 split(bytes16 nibbles) {
    const bytes16 behind = SWAP_HALVES(nibbles);
    return ZIP_LOW((nibbles & 15) | behind << 4, nibbles >> 4 | (behind & 0xF0));
}

/* The same of two runs: byte j of each half has nibble j of a run, and nibble j + 8 in its high half. */
INLINE bytes16 split_runs(bytes16 nibbles) {
    const bytes16 behind = SWAP_QUARTERS(nibbles);
    const bytes16 even = (nibbles & 15) | behind << 4, odd = nibbles >> 4 | (behind & 0xF0);
    const bytes16 low = ZIP_LOW(even, odd), high = ZIP_HIGH(even, odd);
    uint64_t runs[2];
    memcpy(runs, &low, 8);
    memcpy(runs + 1, &high, 8);
    return load(runs);
}

/* Each header is that of as many blocks. */
INLINE void repack(
    uint8_t * restrict to, const uint8_t * restrict headers, const uint8_t * restrict from, size_t n_headers,
    size_t n_blocks, const size_t header_bytes, const size_t has_runs) {
    for (size_t h = 0; h < n_headers; h++) {
        for (size_t b = 0; b < n_blocks; b++) {
            memcpy(to, headers + h * header_bytes, header_bytes);
            to += header_bytes;
            if (has_runs) {
                store(to, split_runs(load(from)));
                store(to + 16, split_runs(load(from + 16)));
            } else {
                store(to, split(load(from)));
            }
            to += has_runs ? 32 : 16;
            from += has_runs ? 32 : 16;
        }
    }
}

/* Codes from 0 to 15, which mean -8 to 7 in Q4_0. */
EXPORT void repack_q4_0(
    uint8_t * to, const uint8_t * scales, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales, from, n_scales, n_blocks, 2, 0);
}

EXPORT void repack_q4_1(
    uint8_t * to, const uint8_t * scales_and_biases, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales_and_biases, from, n_scales, n_blocks, 4, 0);
}

EXPORT void repack_mxfp4(
    uint8_t * to, const uint8_t * scales, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales, from, n_scales, n_blocks, 1, 0);
}

EXPORT void repack_nvfp4(
    uint8_t * to, const uint8_t * scales, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales, from, n_scales, n_blocks, 4, 1);
}

/* A block of Q5_0 but for its scale, out of nibbles in their own order, to each of which `more` is added. */
INLINE void block_q5_0(uint8_t * restrict to, bytes16 nibbles, const uint8_t more) {
    const bytes16 even = (nibbles & 15) + more, odd = (nibbles >> 4) + more;
    const bytes16 codes[2] = {ZIP_LOW(even, odd), ZIP_HIGH(even, odd)};
    uint64_t eights[4];
    memcpy(eights, codes, sizeof(eights));
    for (size_t i = 0; i < 4; i++) {
        to[i] = (uint8_t) ((eights[i] >> 4 & 0x0101010101010101) * 0x0102040810204080 >> 56);
    }
    store(to + 4, (codes[0] & 15) | codes[1] << 4);
}

/* As `repack_q4_0`, with as many numbers `more` as scales. */
EXPORT void repack_q5_0(
    uint8_t * restrict to, const uint8_t * restrict scales, const uint8_t * restrict more,
    const uint8_t * restrict from, size_t n_scales, size_t n_blocks) {
    for (size_t s = 0; s < n_scales; s++) {
        for (size_t b = 0; b < n_blocks; b++) {
            memcpy(to, scales + 2 * s, 2);
            block_q5_0(to + 2, load(from), more[s]);
            to += 22;
            from += 16;
        }
    }
}

/* 4 or fewer rows of one block; `lines` are its four words, one below the other. */
INLINE void gptq_rows(
    uint8_t * restrict to, const uint16_t * restrict scales, const uint8_t * restrict more,
    const uint32_t * restrict lines, size_t pitch, const size_t n, const size_t block_bytes, size_t row_bytes) {
    words4 line[4] = {{0}};
    for (size_t i = 0; i < 4; i++) {
        memcpy(line + i, lines + i * pitch, 4 * n);
    }
    const words4 even[2] = {ZIP_LOW_WORDS(line[0], line[2]), ZIP_HIGH_WORDS(line[0], line[2])};
    const words4 odd[2] = {ZIP_LOW_WORDS(line[1], line[3]), ZIP_HIGH_WORDS(line[1], line[3])};
    const words4 rows[4] = {
        ZIP_LOW_WORDS(even[0], odd[0]), ZIP_HIGH_WORDS(even[0], odd[0]),
        ZIP_LOW_WORDS(even[1], odd[1]), ZIP_HIGH_WORDS(even[1], odd[1])};
    for (size_t r = 0; r < n; r++) {
        uint8_t * const block = to + r * row_bytes;
        memcpy(block, scales + r, 2);
        if (block_bytes == 18) {
            store(block + 2, split((bytes16) rows[r]));
        } else {
            block_q5_0(block + 2, (bytes16) rows[r], more[r]);
        }
    }
}

/* GPTQ: a word has eight columns of one row, the rows lie side by side, and lines of them `pitch` words apart. `groups`
   has the group of each block; `scales` (halves) and `more` (16 less the zero point, and unused by Q4_0) are
   [groups][rows]. Of a cache line, all rows are done for one block and then for the next. */
INLINE void gptq_blocks(
    uint8_t * restrict to, const uint16_t * restrict scales, const uint8_t * restrict more,
    const uint32_t * restrict words, const uint32_t * restrict groups, size_t n_rows, size_t n_blocks, size_t pitch,
    const size_t block_bytes) {
    const size_t row_bytes = n_blocks * block_bytes;
    for (size_t tile = 0; tile < n_rows; tile += LINES) {
        const size_t tile_end = tile + LINES < n_rows ? tile + LINES : n_rows;
        for (size_t b = 0; b < n_blocks; b++) {
            const uint32_t * const lines = words + 4 * b * pitch;
            const size_t first = groups[b] * n_rows;
            size_t row = tile;
            for (; row + 4 <= tile_end; row += 4) {
                gptq_rows(to + row * row_bytes + b * block_bytes, scales + first + row, more + first + row,
                          lines + row, pitch, 4, block_bytes, row_bytes);
            }
            if (row < tile_end) {
                gptq_rows(to + row * row_bytes + b * block_bytes, scales + first + row, more + first + row,
                          lines + row, pitch, tile_end - row, block_bytes, row_bytes);
            }
        }
    }
}

EXPORT void gptq_q4_0(
    uint8_t * to, const uint16_t * scales, const uint8_t * more, const uint32_t * words, const uint32_t * groups,
    size_t n_rows, size_t n_blocks, size_t pitch) {
    gptq_blocks(to, scales, more, words, groups, n_rows, n_blocks, pitch, 18);
}

EXPORT void gptq_q5_0(
    uint8_t * to, const uint16_t * scales, const uint8_t * more, const uint32_t * words, const uint32_t * groups,
    size_t n_rows, size_t n_blocks, size_t pitch) {
    gptq_blocks(to, scales, more, words, groups, n_rows, n_blocks, pitch, 22);
}

/* The same as halves: `tables` has what each code of a group means in each row, [rows][groups][16], and `places` 16
   times the group of each column. */
EXPORT void gptq_halves(
    uint16_t * restrict to, const uint16_t * restrict tables, const uint32_t * restrict words,
    const uint16_t * restrict places, size_t n_rows, size_t n_lines, size_t n_groups, size_t pitch) {
    for (size_t row = 0; row < n_rows; row += TILE) {
        const size_t n = n_rows - row < TILE ? n_rows - row : TILE;
        for (size_t line = 0; line < n_lines; line += TILE) {
            const size_t n_words = n_lines - line < TILE ? n_lines - line : TILE;
            uint32_t tile[TILE][TILE] = {{0}};
            for (size_t i = 0; i < n_words; i++) {
                for (size_t r = 0; r < n; r++) {
                    tile[r][i] = words[(line + i) * pitch + row + r];
                }
            }
            uint16_t own[8 * TILE] = {0};
            memcpy(own, places + 8 * line, 16 * n_words);
            for (size_t r = 0; r < n; r++) {
                const uint16_t * const table = tables + (row + r) * n_groups * 16;
                uint16_t * const run = to + ((row + r) * n_lines + line) * 8;
                uint16_t at[8 * TILE];
                for (size_t i = 0; i < TILE; i += 4) {
                    const bytes16 nibbles = load(tile[r] + i), even = nibbles & 15, odd = nibbles >> 4, none = {0};
                    const bytes16 codes[2] = {ZIP_LOW(even, odd), ZIP_HIGH(even, odd)};
                    for (size_t j = 0; j < 2; j++) {
                        uint16_t * const eight = at + 8 * i + 16 * j;
                        const uint16_t * const from = own + 8 * i + 16 * j;
                        store(eight, (bytes16) ((halves8) ZIP_LOW(codes[j], none) + (halves8) load(from)));
                        store(eight + 8, (bytes16) ((halves8) ZIP_HIGH(codes[j], none) + (halves8) load(from + 8)));
                    }
                }
                for (size_t i = 0; i < 8 * n_words; i += 4) {
                    uint64_t four;
                    memcpy(&four, at + i, 8);
                    for (size_t j = 0; j < 4; j++, four >>= 16) {
                        run[i + j] = table[four & 0xFFFF];
                    }
                }
            }
        }
    }
}

/* Rows become columns. Each of the four steps takes the halves of the flat array in turns. */
INLINE void transpose_bytes(bytes16 rows[16]) {
    bytes16 other[16];
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < 8; i++) {
            other[2 * i] = ZIP_LOW(rows[i], rows[i + 8]);
            other[2 * i + 1] = ZIP_HIGH(rows[i], rows[i + 8]);
        }
        for (size_t i = 0; i < 8; i++) {
            rows[2 * i] = ZIP_LOW(other[i], other[i + 8]);
            rows[2 * i + 1] = ZIP_HIGH(other[i], other[i + 8]);
        }
    }
}

/* 32 columns of 16 rows, one code a byte, as blocks of Q5_0; `row_bytes` are a row of blocks, and byte x belongs to row
   low_rows[x % 4] of the eight rows x / 4. */
INLINE void awq_rows_q5_0(
    uint8_t * restrict to, const uint16_t * restrict scales, const bytes16 codes[32], size_t n_words,
    size_t row_bytes) {
    static const size_t low_rows[4] = {0, 4, 1, 5}; /* the high halves of bytes are two behind them */
    bytes16 packed[16], fifths[4];
    for (size_t c = 0; c < 16; c++) {
        packed[c] = (codes[c] & 15) | codes[c + 16] << 4;
    }
    for (size_t i = 0; i < 4; i++) {
        bytes16 bits = codes[8 * i + 7] >> 4;
        for (size_t c = 7; c-- > 0;) {
            bits = (bits + bits) | codes[8 * i + c] >> 4;
        }
        fifths[i] = bits;
    }
    transpose_bytes(packed);
    const bytes16 even[2] = {ZIP_LOW(fifths[0], fifths[2]), ZIP_HIGH(fifths[0], fifths[2])};
    const bytes16 odd[2] = {ZIP_LOW(fifths[1], fifths[3]), ZIP_HIGH(fifths[1], fifths[3])};
    const bytes16 words[4] = {
        ZIP_LOW(even[0], odd[0]), ZIP_HIGH(even[0], odd[0]), ZIP_LOW(even[1], odd[1]), ZIP_HIGH(even[1], odd[1])};
    for (size_t x = 0; x < 4 * n_words; x++) {
        const size_t row = x / 4 * 8 + low_rows[x % 4];
        uint8_t * const block = to + row * row_bytes;
        memcpy(block, scales + row, 2);
        memcpy(block + 2, (const uint8_t *) words + 4 * x, 4);
        store(block + 6, packed[x]);
    }
}

/* AWQ: a word has eight rows of one column, the columns lie one below the other. `zeros` are packed as the codes are,
   [groups][words], and `groups` and `scales` as GPTQ's. */
EXPORT void awq_q5_0(
    uint8_t * restrict to, const uint16_t * restrict scales, const uint32_t * restrict zeros,
    const uint32_t * restrict words, const uint32_t * restrict groups, size_t n_words, size_t n_blocks, size_t pitch) {
    for (size_t tile = 0; tile < n_words; tile += LINES) {
        const size_t tile_end = tile + LINES < n_words ? tile + LINES : n_words;
        for (size_t b = 0; b < n_blocks; b++) {
            for (size_t word = tile; word < tile_end; word += 4) {
                const size_t n = tile_end - word < 4 ? tile_end - word : 4;
                const uint32_t * const column = words + 32 * b * pitch + word;
                uint8_t * const block = to + (8 * word * n_blocks + b) * 22;
                const uint16_t * const scale = scales + (groups[b] * n_words + word) * 8;
                bytes16 zero = {0}, low[32], high[32];
                memcpy(&zero, zeros + groups[b] * n_words + word, 4 * n);
                const bytes16 more_low = 16 - (zero & 15), more_high = 16 - (zero >> 4);
                for (size_t c = 0; c < 32; c++) {
                    bytes16 line = {0};
                    if (n == 4) {
                        line = load(column + c * pitch);
                    } else {
                        memcpy(&line, column + c * pitch, 4 * n);
                    }
                    low[c] = (line & 15) + more_low;
                    high[c] = (line >> 4) + more_high;
                }
                awq_rows_q5_0(block, scale, low, n, 22 * n_blocks);
                awq_rows_q5_0(block + 2 * 22 * n_blocks, scale + 2, high, n, 22 * n_blocks);
            }
        }
    }
}

static inline uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof(bits));
    return bits;
}

static inline float float_of(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

/* The nearest number in F16, of two the even one. Where none is finite, `excess` becomes 1 and the result is none.

   A sum with a power of two rounds: one that is 2^15 times as large as the number, or as 2^-14 if that is more, leaves
   10 bits behind the first one of four times the number. The exponent of the sum ends in that of the half, less 1. */
static inline uint16_t half(float number, int32_t * excess) {
    const uint32_t bits = bits_of(number);
    const int32_t size = (int32_t) (bits & 0x7FFFFFFF), exponent = size & 0x7F800000;
    const uint32_t power = (uint32_t) (exponent > 0x38800000 ? exponent : 0x38800000) + (15u << 23);
    const uint32_t sum = bits_of(float_of((uint32_t) size) * 4 + float_of(power));
    *excess |= size >= 0x477FF000;
    return (uint16_t) ((bits >> 16 & 0x8000) | ((sum >> 13 & 0x7C00) + (sum & 0x0FFF)));
}

/* The functions below return whether something is not finite in F16. */

EXPORT int32_t to_halves(uint16_t * restrict to, const float * restrict from, size_t n) {
    int32_t excess = 0;
    for (size_t i = 0; i < n; i++) {
        to[i] = half(from[i], &excess);
    }
    return excess;
}

/* codes * scale + bias, both of the group. */
#define AFFINE(NAME, TYPE)                                                                                             \
    EXPORT int32_t NAME(uint16_t * restrict to, const TYPE * restrict codes, const float * restrict scales,            \
                        const float * restrict biases, size_t n_groups, size_t length) {                               \
        int32_t excess = 0;                                                                                            \
        for (size_t g = 0; g < n_groups; g++) {                                                                        \
            const float scale = scales[g], bias = biases[g];                                                           \
            for (size_t i = 0; i < length; i++) {                                                                      \
                to[g * length + i] = half((float) codes[g * length + i] * scale + bias, &excess);                      \
            }                                                                                                          \
        }                                                                                                              \
        return excess;                                                                                                 \
    }
AFFINE(affine_8, int8_t)
AFFINE(affine_16, int16_t)

/* codes * scale, where `groups` has the group of each column. */
#define SCALED(NAME, TYPE)                                                                                             \
    EXPORT int32_t NAME(uint16_t * restrict to, const TYPE * restrict codes, const float * restrict scales,            \
                        const uint32_t * restrict groups, size_t n_rows, size_t n_columns, size_t n_groups) {          \
        int32_t excess = 0;                                                                                            \
        for (size_t r = 0; r < n_rows; r++) {                                                                          \
            for (size_t column = 0; column < n_columns; column += TILE) {                                              \
                const size_t n = n_columns - column < TILE ? n_columns - column : TILE;                                \
                float wide[TILE] = {0};                                                                                \
                for (size_t i = 0; i < n; i++) {                                                                       \
                    wide[i] = scales[r * n_groups + groups[column + i]];                                               \
                }                                                                                                      \
                for (size_t i = 0; i < n; i++) {                                                                       \
                    const size_t place = r * n_columns + column + i;                                                   \
                    to[place] = half((float) codes[place] * wide[i], &excess);                                         \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        return excess;                                                                                                 \
    }
SCALED(scaled_8, int8_t)
SCALED(scaled_16, int16_t)

/* What each code of 4 bits means: (code - zero) * scale. */
EXPORT int32_t code_tables(uint16_t * restrict to, const float * restrict scales, const int8_t * restrict zeros, size_t n) {
    int32_t excess = 0;
    for (size_t i = 0; i < n; i++) {
        for (int j = 0; j < 16; j++) {
            to[16 * i + (size_t) j] = half((float) (j - zeros[i]) * scales[i], &excess);
        }
    }
    return excess;
}

/* What each code of a table means in a block of as many bytes, the high half of each first: a product of both. */
EXPORT int32_t table_halves(
    uint16_t * restrict to, const uint8_t * restrict packed, const float * restrict table,
    const float * restrict sizes, size_t n_bytes, size_t block_bytes) {
    int32_t excess = 0;
    for (size_t start = 0; start < n_bytes; start += block_bytes) {
        const size_t n = n_bytes - start < block_bytes ? n_bytes - start : block_bytes;
        const float size = *sizes++;
        uint16_t own[16];
        for (size_t i = 0; i < 16; i++) {
            own[i] = half(table[i] * size, &excess);
        }
        size_t i = start;
        for (; i + 8 <= start + n; i += 8) {
            uint64_t bytes;
            memcpy(&bytes, packed + i, 8);
            for (size_t j = 0; j < 8; j++, bytes >>= 8) {
                to[2 * (i + j)] = own[bytes >> 4 & 15];
                to[2 * (i + j) + 1] = own[bytes & 15];
            }
        }
        for (; i < start + n; i++) {
            to[2 * i] = own[packed[i] >> 4];
            to[2 * i + 1] = own[packed[i] & 15];
        }
    }
    return excess;
}

/* Halves as F32, exactly. A difference makes the subnormal ones: their bits behind those of 2^-14, less 2^-14. */
EXPORT void to_floats(float * restrict to, const uint16_t * restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t sign = (uint32_t) (from[i] & 0x8000) << 16, bits = (uint32_t) (from[i] & 0x7FFF) << 13;
        const uint32_t normal = bits + (bits < 0x0F800000 ? 112u << 23 : 224u << 23);
        const uint32_t small = bits_of(float_of(bits + (113u << 23)) - float_of(113u << 23));
        to[i] = float_of((bits < 1u << 23 ? small : normal) | sign);
    }
}
