/* Loops over quantised weights that vectors of 32 bytes make faster: compiled for any processor of a machine, and on
   x86-64 for those with AVX2 and F16C as well, whose functions end in SUFFIX. tools/kernels/weight_loops.c has the rest,
   and says what holds of both. The results have the same bits, whatever they are compiled for. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __F16C__
#include <immintrin.h>
#endif
#ifdef __aarch64__
#include <arm_neon.h>
#endif

#ifdef SUFFIX
#define JOINED(name, suffix) name##suffix
#define WITH_SUFFIX(name, suffix) JOINED(name, suffix)
#define NAME(name) WITH_SUFFIX(name, SUFFIX)
#else
#define NAME(name) name
#endif
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define TILE 16 /* columns or rows that are done together */
#define LINES 256 /* words of a line that are done together, which are 16 cache lines */

/* Vectors of 16 bytes, of which processors with AVX2 take two at once: each operation does the same to both lanes. */
#ifdef __AVX2__
#define LANES 2
#else
#define LANES 1
#endif
#define LANES_BYTES (16 * LANES)
typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint8_t lanes __attribute__((vector_size(LANES_BYTES)));
typedef uint16_t halves8 __attribute__((vector_size(16)));
typedef uint16_t lanes_halves __attribute__((vector_size(LANES_BYTES)));
typedef uint32_t lanes_words __attribute__((vector_size(LANES_BYTES)));

/* SHUFFLED(a, b, ...) has the bytes of a and b with these numbers. */
#ifdef __clang__
#define SHUFFLED(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(type, a, b, ...) __builtin_shuffle(a, b, (type) {__VA_ARGS__})
#endif
#if LANES == 2
#define OF_BYTES(a, b, f, s)                                                                                           \
    SHUFFLED(lanes, a, b, f + 0, s + 0, f + 1, s + 1, f + 2, s + 2, f + 3, s + 3, f + 4, s + 4, f + 5, s + 5, f + 6,   \
             s + 6, f + 7, s + 7, f + 16, s + 16, f + 17, s + 17, f + 18, s + 18, f + 19, s + 19, f + 20, s + 20,      \
             f + 21, s + 21, f + 22, s + 22, f + 23, s + 23)
#define ZIP_LOW(a, b) OF_BYTES(a, b, 0, 32)
#define ZIP_HIGH(a, b) OF_BYTES(a, b, 8, 40)
#define ZIP_LOW_WORDS(a, b) SHUFFLED(lanes_words, a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define ZIP_HIGH_WORDS(a, b) SHUFFLED(lanes_words, a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define SWAP_HALVES(a) ((lanes) SHUFFLED(lanes_words, (lanes_words) a, (lanes_words) a, 2, 3, 0, 1, 6, 7, 4, 5))
#define SWAP_QUARTERS(a) ((lanes) SHUFFLED(lanes_words, (lanes_words) a, (lanes_words) a, 1, 0, 3, 2, 5, 4, 7, 6))
#else
#define OF_BYTES(a, b, f, s)                                                                                           \
    SHUFFLED(lanes, a, b, f + 0, s + 0, f + 1, s + 1, f + 2, s + 2, f + 3, s + 3, f + 4, s + 4, f + 5, s + 5, f + 6,   \
             s + 6, f + 7, s + 7)
#define ZIP_LOW(a, b) OF_BYTES(a, b, 0, 16)
#define ZIP_HIGH(a, b) OF_BYTES(a, b, 8, 24)
#define ZIP_LOW_WORDS(a, b) SHUFFLED(lanes_words, a, b, 0, 4, 1, 5)
#define ZIP_HIGH_WORDS(a, b) SHUFFLED(lanes_words, a, b, 2, 6, 3, 7)
#define SWAP_HALVES(a) ((lanes) SHUFFLED(lanes_words, (lanes_words) a, (lanes_words) a, 2, 3, 0, 1))
#define SWAP_QUARTERS(a) ((lanes) SHUFFLED(lanes_words, (lanes_words) a, (lanes_words) a, 1, 0, 3, 2))
#endif

INLINE lanes load(const void * from) {
    lanes found;
    memcpy(&found, from, sizeof(found));
    return found;
}

INLINE lanes load_some(const void * from, size_t n_bytes) {
    lanes found = {0};
    if (n_bytes == sizeof(found)) {
        return load(from);
    }
    memcpy(&found, from, n_bytes == 16 ? 16 : n_bytes); /* the first one without a call */
    return found;
}

/* One lane of a vector. */
INLINE void store_lane(void * to, lanes bytes, size_t lane) {
#ifdef __AVX2__
    const __m128i found = lane ? _mm256_extracti128_si256((__m256i) bytes, 1) : _mm256_castsi256_si128((__m256i) bytes);
    _mm_storeu_si128((__m128i *) to, found);
#else
    (void) lane;
    memcpy(to, &bytes, sizeof(bytes));
#endif
}

/* A number for each lane, in all of its bytes. */
INLINE lanes in_all_bytes(const uint8_t * numbers, size_t distance) {
#ifdef __AVX2__
    return (lanes) _mm256_set_m128i(_mm_set1_epi8((char) numbers[distance]), _mm_set1_epi8((char) numbers[0]));
#else
    (void) distance;
    return (lanes) {0} + numbers[0];
#endif
}

/* The order of a block out of nibbles in their own order: byte j has nibble j, and nibble j + 16 in its high half. */
INLINE lanes split(lanes nibbles) {
    const lanes behind = SWAP_HALVES(nibbles);
    return ZIP_LOW((nibbles & 15) | behind << 4, nibbles >> 4 | (behind & 0xF0));
}

/* The same of two runs: byte j of each half has nibble j of a run, and nibble j + 8 in its high half. */
INLINE lanes split_runs(lanes nibbles) {
    const lanes behind = SWAP_QUARTERS(nibbles);
    const lanes even = (nibbles & 15) | behind << 4, odd = nibbles >> 4 | (behind & 0xF0);
    const lanes_words low = (lanes_words) ZIP_LOW(even, odd), high = (lanes_words) ZIP_HIGH(even, odd);
#if LANES == 2
    return (lanes) SHUFFLED(lanes_words, low, high, 0, 1, 8, 9, 4, 5, 12, 13);
#else
    return (lanes) SHUFFLED(lanes_words, low, high, 0, 1, 4, 5);
#endif
}

/* Each header is that of as many blocks. */
INLINE void repack(
    uint8_t * restrict to, const uint8_t * restrict headers, const uint8_t * restrict from, size_t n_headers,
    size_t n_blocks, const size_t header_bytes, const size_t has_runs) {
    const size_t n_bytes = has_runs ? 32 : 16, block_bytes = header_bytes + n_bytes;
    const size_t n = n_headers * n_blocks, n_together = has_runs ? 1 : LANES;
    size_t of_header = 0;
    for (size_t block = 0; block < n; block += n_together) {
        const size_t n_here = n - block < n_together ? n - block : n_together;
        lanes found[2];
        if (has_runs) {
            for (size_t i = 0; i < 2 / LANES; i++) {
                found[i] = split_runs(load(from + block * 32 + i * LANES_BYTES));
            }
        } else {
            found[0] = split(load_some(from + block * 16, n_here * 16));
        }
        for (size_t b = 0; b < n_here; b++) {
            memcpy(to, headers, header_bytes);
            if (has_runs) {
                memcpy(to + header_bytes, found, 32);
            } else {
                store_lane(to + header_bytes, found[0], b);
            }
            to += block_bytes;
            if (++of_header == n_blocks) {
                of_header = 0;
                headers += header_bytes;
            }
        }
    }
}

/* Codes from 0 to 15, which mean -8 to 7 in Q4_0. */
EXPORT void NAME(repack_q4_0)(
    uint8_t * to, const uint8_t * scales, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales, from, n_scales, n_blocks, 2, 0);
}

EXPORT void NAME(repack_q4_1)(
    uint8_t * to, const uint8_t * scales_and_biases, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales_and_biases, from, n_scales, n_blocks, 4, 0);
}

EXPORT void NAME(repack_mxfp4)(
    uint8_t * to, const uint8_t * scales, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales, from, n_scales, n_blocks, 1, 0);
}

EXPORT void NAME(repack_nvfp4)(
    uint8_t * to, const uint8_t * scales, const uint8_t * from, size_t n_scales, size_t n_blocks) {
    repack(to, scales, from, n_scales, n_blocks, 4, 1);
}

/* The fifth bits of 32 codes of a lane, of which `codes` has the first and the last 16. */
INLINE uint32_t fifth_bits(const lanes codes[2], size_t lane) {
#ifdef __AVX2__
    __m256i both[2];
    memcpy(both, codes, sizeof(both));
    const uint32_t low = (uint32_t) _mm256_movemask_epi8(_mm256_slli_epi16(both[0], 3)) >> 16 * lane & 0xFFFF;
    return low | (uint32_t) _mm256_movemask_epi8(_mm256_slli_epi16(both[1], 3)) >> 16 * lane << 16;
#else
    uint64_t eights[2 * LANES * 2];
    uint32_t found = 0;
    memcpy(eights, codes, sizeof(eights));
    for (size_t i = 0; i < 4; i++) {
        const uint64_t eight = eights[(i / 2 * LANES + lane) * 2 + i % 2];
        found |= (uint32_t) ((eight >> 4 & 0x0101010101010101) * 0x0102040810204080 >> 56) << 8 * i;
    }
    return found;
#endif
}

/* Blocks of Q5_0 but for their scales, out of nibbles in their own order, to each of which `more` is added: that of a
   lane is stored by `store_q5_0`. */
INLINE void codes_q5_0(lanes codes[2], lanes nibbles, lanes more) {
    const lanes even = (nibbles & 15) + more, odd = (nibbles >> 4) + more;
    codes[0] = ZIP_LOW(even, odd);
    codes[1] = ZIP_HIGH(even, odd);
}

INLINE void store_q5_0(uint8_t * restrict to, const lanes codes[2], size_t lane) {
    const uint32_t fifths = fifth_bits(codes, lane);
    memcpy(to, &fifths, 4);
    store_lane(to + 4, (codes[0] & 15) | codes[1] << 4, lane);
}

/* As `repack_q4_0`, with as many numbers `more` as scales. */
EXPORT void NAME(repack_q5_0)(
    uint8_t * restrict to, const uint8_t * restrict scales, const uint8_t * restrict more,
    const uint8_t * restrict from, size_t n_scales, size_t n_blocks) {
    for (size_t s = 0; s < n_scales; s++) {
        const lanes own = in_all_bytes(more + s, 0);
        for (size_t b = 0; b < n_blocks; b += LANES) {
            const size_t n_here = n_blocks - b < LANES ? n_blocks - b : LANES;
            lanes codes[2];
            codes_q5_0(codes, load_some(from, 16 * n_here), own);
            for (size_t lane = 0; lane < LANES && lane < n_here; lane++) {
                memcpy(to, scales + 2 * s, 2);
                store_q5_0(to + 2, codes, lane);
                to += 22;
                from += 16;
            }
        }
    }
}

/* 4 or fewer rows of one block for each lane; `lines` are its four words, one below the other. */
INLINE void gptq_rows(
    uint8_t * restrict to, const uint16_t * restrict scales, const uint8_t * restrict more,
    const uint32_t * restrict lines, size_t pitch, const size_t n, const size_t block_bytes, size_t row_bytes) {
    lanes_words line[4];
    for (size_t i = 0; i < 4; i++) {
        line[i] = (lanes_words) load_some(lines + i * pitch, 4 * n);
        __builtin_prefetch(lines + (i + 4) * pitch); /* of the next block: each line is in a page of its own */
    }
    const lanes_words even[2] = {ZIP_LOW_WORDS(line[0], line[2]), ZIP_HIGH_WORDS(line[0], line[2])};
    const lanes_words odd[2] = {ZIP_LOW_WORDS(line[1], line[3]), ZIP_HIGH_WORDS(line[1], line[3])};
    const lanes_words rows[4] = {
        ZIP_LOW_WORDS(even[0], odd[0]), ZIP_HIGH_WORDS(even[0], odd[0]),
        ZIP_LOW_WORDS(even[1], odd[1]), ZIP_HIGH_WORDS(even[1], odd[1])};
    for (size_t i = 0; i < 4; i++) {
        lanes codes[2] = {{0}, {0}};
        if (block_bytes == 18) {
            codes[0] = split((lanes) rows[i]);
        } else {
            uint8_t own[4 * LANES] = {0};
            memcpy(own, more, n);
            codes_q5_0(codes, (lanes) rows[i], in_all_bytes(n == 4 * LANES ? more + i : own + i, 4));
        }
        for (size_t lane = 0; lane < LANES; lane++) {
            const size_t row = 4 * lane + i;
            uint8_t * const block = to + row * row_bytes;
            if (row >= n) {
                continue;
            }
            memcpy(block, scales + row, 2);
            if (block_bytes == 18) {
                store_lane(block + 2, codes[0], lane);
            } else {
                store_q5_0(block + 2, codes, lane);
            }
        }
    }
}

/* GPTQ: a word has eight columns of one row, the rows lie side by side, and lines of them `pitch` words apart. `groups`
   has the group of each block; `scales` (halves) and `more` (16 less the zero point, and unused by Q4_0) are
   [groups][rows]. Of some cache lines, all rows are done for one block and then for the next. */
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
            for (; row + 4 * LANES <= tile_end; row += 4 * LANES) {
                gptq_rows(to + row * row_bytes + b * block_bytes, scales + first + row, more + first + row,
                          lines + row, pitch, 4 * LANES, block_bytes, row_bytes);
            }
            if (row < tile_end) {
                gptq_rows(to + row * row_bytes + b * block_bytes, scales + first + row, more + first + row,
                          lines + row, pitch, tile_end - row, block_bytes, row_bytes);
            }
        }
    }
}

EXPORT void NAME(gptq_q4_0)(
    uint8_t * to, const uint16_t * scales, const uint8_t * more, const uint32_t * words, const uint32_t * groups,
    size_t n_rows, size_t n_blocks, size_t pitch) {
    gptq_blocks(to, scales, more, words, groups, n_rows, n_blocks, pitch, 18);
}

EXPORT void NAME(gptq_q5_0)(
    uint8_t * to, const uint16_t * scales, const uint8_t * more, const uint32_t * words, const uint32_t * groups,
    size_t n_rows, size_t n_blocks, size_t pitch) {
    gptq_blocks(to, scales, more, words, groups, n_rows, n_blocks, pitch, 22);
}

/* Rows become columns, in each lane. Each of the four steps takes the halves of the flat array in turns. */
INLINE void transpose_bytes(lanes rows[16]) {
    lanes other[16];
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

/* 32 columns of 16 rows for each lane, one code a byte, as blocks of Q5_0; `row_bytes` are a row of blocks, and byte x
   belongs to row low_rows[x % 4] of the eight rows x / 4. */
INLINE void awq_rows_q5_0(
    uint8_t * restrict to, const uint16_t * restrict scales, const lanes codes[32], size_t n_words,
    size_t row_bytes) {
    static const size_t low_rows[4] = {0, 4, 1, 5}; /* the high halves of bytes are two behind them */
    lanes packed[16], fifths[4];
    for (size_t c = 0; c < 16; c++) {
        packed[c] = (codes[c] & 15) | codes[c + 16] << 4;
    }
    for (size_t i = 0; i < 4; i++) {
        lanes bits = codes[8 * i + 7] >> 4;
        for (size_t c = 7; c-- > 0;) {
            bits = (bits + bits) | codes[8 * i + c] >> 4;
        }
        fifths[i] = bits;
    }
    transpose_bytes(packed);
    const lanes even[2] = {ZIP_LOW(fifths[0], fifths[2]), ZIP_HIGH(fifths[0], fifths[2])};
    const lanes odd[2] = {ZIP_LOW(fifths[1], fifths[3]), ZIP_HIGH(fifths[1], fifths[3])};
    const lanes words[4] = {
        ZIP_LOW(even[0], odd[0]), ZIP_HIGH(even[0], odd[0]), ZIP_LOW(even[1], odd[1]), ZIP_HIGH(even[1], odd[1])};
    uint8_t heads[4][LANES_BYTES];
    memcpy(heads, words, sizeof(heads));
    for (size_t lane = 0; lane < LANES; lane++) {
        for (size_t x = 0; x < 16; x++) {
            const size_t word = 4 * lane + x / 4, row = word * 8 + low_rows[x % 4];
            uint8_t * const block = to + row * row_bytes;
            if (word >= n_words) {
                return;
            }
            memcpy(block, scales + row, 2);
            memcpy(block + 2, heads[x / 4] + 16 * lane + x % 4 * 4, 4);
            store_lane(block + 6, packed[x], lane);
        }
    }
}

/* AWQ: a word has eight rows of one column, the columns lie one below the other. `zeros` are packed as the codes are,
   [groups][words], and `groups` and `scales` as GPTQ's. */
EXPORT void NAME(awq_q5_0)(
    uint8_t * restrict to, const uint16_t * restrict scales, const uint32_t * restrict zeros,
    const uint32_t * restrict words, const uint32_t * restrict groups, size_t n_words, size_t n_blocks, size_t pitch) {
    for (size_t tile = 0; tile < n_words; tile += LINES) {
        const size_t tile_end = tile + LINES < n_words ? tile + LINES : n_words;
        for (size_t b = 0; b < n_blocks; b++) {
            for (size_t word = tile; word < tile_end; word += 4 * LANES) {
                const size_t n = tile_end - word < 4 * LANES ? tile_end - word : 4 * LANES;
                const uint32_t * const column = words + 32 * b * pitch + word;
                uint8_t * const block = to + (8 * word * n_blocks + b) * 22;
                const uint16_t * const scale = scales + (groups[b] * n_words + word) * 8;
                lanes low[32], high[32];
                const lanes zero = load_some(zeros + groups[b] * n_words + word, 4 * n);
                const lanes more_low = 16 - (zero & 15), more_high = 16 - (zero >> 4);
                for (size_t c = 0; c < 32; c++) {
                    const lanes line = load_some(column + c * pitch, 4 * n);
                    __builtin_prefetch(column + (c + 32) * pitch, 0, 2); /* of the next block, to the second cache */
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
INLINE uint16_t half(float number, int32_t * excess) {
    const uint32_t bits = bits_of(number);
    const int32_t size = (int32_t) (bits & 0x7FFFFFFF), exponent = size & 0x7F800000;
    const uint32_t power = (uint32_t) (exponent > 0x38800000 ? exponent : 0x38800000) + (15u << 23);
    const uint32_t sum = bits_of(float_of((uint32_t) size) * 4 + float_of(power));
    *excess |= size >= 0x477FF000;
    return (uint16_t) ((bits >> 16 & 0x8000) | ((sum >> 13 & 0x7C00) + (sum & 0x0FFF)));
}

/* TILE of them at once. Processors that have an instruction for it make infinity of what is too large. */
INLINE void tile_of_halves(uint16_t * restrict to, const float * restrict from, int32_t * excess) {
#if defined(__F16C__)
    const __m256i wide = _mm256_set_m128i(
        _mm256_cvtps_ph(_mm256_loadu_ps(from + 8), _MM_FROUND_TO_NEAREST_INT),
        _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
    const __m256i none = _mm256_set1_epi16(0x7C00);
    *excess |= _mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_and_si256(wide, none), none)) != 0;
    _mm256_storeu_si256((__m256i *) to, wide);
#else
    for (size_t i = 0; i < TILE; i++) {
        to[i] = half(from[i], excess);
    }
#endif
}

/* The functions below return whether something is not finite in F16. */

EXPORT int32_t NAME(to_halves)(uint16_t * restrict to, const float * restrict from, size_t n) {
    int32_t excess = 0;
    size_t i = 0;
    for (; i + TILE <= n; i += TILE) {
        tile_of_halves(to + i, from + i, &excess);
    }
    for (; i < n; i++) {
        to[i] = half(from[i], &excess);
    }
    return excess;
}

/* TILE codes as floats. */
#ifdef __AVX2__
#define WIDENED(NAME, TYPE, LOAD, WIDEN)                                                                               \
    INLINE void NAME(float * restrict to, const TYPE * restrict codes) {                                               \
        for (size_t i = 0; i < TILE; i += 8) {                                                                         \
            _mm256_storeu_ps(to + i, _mm256_cvtepi32_ps(WIDEN(LOAD((const __m128i *) (const void *) (codes + i)))));   \
        }                                                                                                              \
    }
WIDENED(widened_8, int8_t, _mm_loadl_epi64, _mm256_cvtepi8_epi32)
WIDENED(widened_u8, uint8_t, _mm_loadl_epi64, _mm256_cvtepu8_epi32)
WIDENED(widened_16, int16_t, _mm_loadu_si128, _mm256_cvtepi16_epi32)
#else
#define WIDENED(NAME, TYPE)                                                                                            \
    INLINE void NAME(float * restrict to, const TYPE * restrict codes) {                                               \
        for (size_t i = 0; i < TILE; i++) {                                                                            \
            to[i] = (float) codes[i];                                                                                  \
        }                                                                                                              \
    }
WIDENED(widened_8, int8_t)
WIDENED(widened_u8, uint8_t)
WIDENED(widened_16, int16_t)
#endif

/* codes * scale + bias, both of the group. */
#define AFFINE(NAME, TYPE, WIDENED)                                                                                    \
    EXPORT int32_t NAME(uint16_t * restrict to, const TYPE * restrict codes, const float * restrict scales,            \
                        const float * restrict biases, size_t n_groups, size_t length) {                               \
        int32_t excess = 0;                                                                                            \
        for (size_t g = 0; g < n_groups; g++, to += length, codes += length) {                                         \
            const float scale = scales[g], bias = biases[g];                                                           \
            size_t i = 0;                                                                                              \
            for (; i + TILE <= length; i += TILE) {                                                                    \
                float wide[TILE];                                                                                      \
                WIDENED(wide, codes + i);                                                                              \
                for (size_t j = 0; j < TILE; j++) {                                                                    \
                    wide[j] = wide[j] * scale + bias;                                                                  \
                }                                                                                                      \
                tile_of_halves(to + i, wide, &excess);                                                                 \
            }                                                                                                          \
            for (; i < length; i++) {                                                                                  \
                to[i] = half((float) codes[i] * scale + bias, &excess);                                                \
            }                                                                                                          \
        }                                                                                                              \
        return excess;                                                                                                 \
    }
AFFINE(NAME(affine_8), int8_t, widened_8)
AFFINE(NAME(affine_u8), uint8_t, widened_u8)
AFFINE(NAME(affine_16), int16_t, widened_16)

/* codes * scale, where `groups` has the group of each column. */
#define SCALED(NAME, TYPE)                                                                                             \
    EXPORT int32_t NAME(uint16_t * restrict to, const TYPE * restrict codes, const float * restrict scales,            \
                        const uint32_t * restrict groups, size_t n_rows, size_t n_columns, size_t n_groups) {          \
        int32_t excess = 0;                                                                                            \
        for (size_t r = 0; r < n_rows; r++, to += n_columns, codes += n_columns, scales += n_groups) {                 \
            size_t i = 0;                                                                                              \
            for (; i + TILE <= n_columns; i += TILE) {                                                                 \
                float wide[TILE];                                                                                      \
                for (size_t j = 0; j < TILE; j++) {                                                                    \
                    wide[j] = (float) codes[i + j] * scales[groups[i + j]];                                            \
                }                                                                                                      \
                tile_of_halves(to + i, wide, &excess);                                                                 \
            }                                                                                                          \
            for (; i < n_columns; i++) {                                                                               \
                to[i] = half((float) codes[i] * scales[groups[i]], &excess);                                           \
            }                                                                                                          \
        }                                                                                                              \
        return excess;                                                                                                 \
    }
SCALED(NAME(scaled_8), int8_t)
SCALED(NAME(scaled_16), int16_t)

/* As transpose_bytes. */
INLINE void transpose_halves(halves8 rows[8]) {
    halves8 other[8];
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < 4; i++) {
            other[2 * i] = SHUFFLED(halves8, rows[i], rows[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            other[2 * i + 1] = SHUFFLED(halves8, rows[i], rows[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(rows, other, sizeof(other));
    }
}

/* Eight columns of `n` rows side by side, and then row by row: these lie `distance` apart. */
INLINE void gptq_columns(
    uint16_t * restrict to, const float * restrict scales, const int32_t * restrict zeros,
    const uint32_t * restrict words, const uint32_t * restrict groups, size_t n_rows, size_t distance, const size_t n,
    int32_t * excess) {
    uint16_t columns[8][TILE];
    for (size_t c = 0; c < 8; c++) {
        const float * const scale = scales + groups[c] * n_rows;
        const int32_t * const zero = zeros + groups[c] * n_rows;
        float wide[TILE] = {0};
        for (size_t r = 0; r < n; r++) {
            wide[r] = (float) ((int32_t) (words[r] >> 4 * c & 15) - zero[r]) * scale[r];
        }
        tile_of_halves(columns[c], wide, excess);
    }
    for (size_t part = 0; part < n; part += 8) {
        halves8 eight[8];
        for (size_t c = 0; c < 8; c++) {
            memcpy(eight + c, columns[c] + part, 16);
        }
        transpose_halves(eight);
        for (size_t r = 0; r < 8 && part + r < n; r++) {
            memcpy(to + (part + r) * distance, eight + r, 16);
        }
    }
}

/* GPTQ: (codes - zeros) * scales, words as above; `groups` has the group of each column, `scales` and `zeros` are
   [groups][rows]. */
EXPORT int32_t NAME(gptq_scaled)(
    uint16_t * restrict to, const float * restrict scales, const int32_t * restrict zeros,
    const uint32_t * restrict words, const uint32_t * restrict groups, size_t n_rows, size_t n_lines, size_t pitch) {
    int32_t excess = 0;
    size_t row = 0;
    for (; row + TILE <= n_rows; row += TILE) {
        size_t line = 0;
        /* Whole cache lines of each row: where rows are a power of two apart, few of them are in the cache at once. */
        for (; line + 4 <= n_lines; line += 4) {
            uint16_t columns[TILE][32];
            for (size_t i = 0; i < 4; i++) {
                gptq_columns(columns[0] + 8 * i, scales + row, zeros + row, words + (line + i) * pitch + row,
                             groups + 8 * (line + i), n_rows, 32, TILE, &excess);
            }
            for (size_t r = 0; r < TILE; r++) {
                memcpy(to + ((row + r) * n_lines + line) * 8, columns[r], sizeof(columns[r]));
            }
        }
        for (; line < n_lines; line++) {
            gptq_columns(to + (row * n_lines + line) * 8, scales + row, zeros + row, words + line * pitch + row,
                         groups + 8 * line, n_rows, 8 * n_lines, TILE, &excess);
        }
    }
    for (size_t line = 0; line < n_lines && row < n_rows; line++) {
        gptq_columns(to + (row * n_lines + line) * 8, scales + row, zeros + row, words + line * pitch + row,
                     groups + 8 * line, n_rows, 8 * n_lines, n_rows - row, &excess);
    }
    return excess;
}

/* Processors that look up 16 bytes at once. */
#if defined(__AVX2__)
#define LOOKED_UP(table, codes) ((lanes) _mm256_shuffle_epi8((__m256i) (table), (__m256i) (codes)))

/* The low bytes of 16 halves, and the high ones, as tables. */
INLINE void tables_of(lanes tables[2], const uint16_t * halves) {
    const __m128i first = _mm_loadu_si128((const __m128i *) halves), byte = _mm_set1_epi16(255);
    const __m128i second = _mm_loadu_si128((const __m128i *) (halves + 8));
    const __m128i low = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte));
    const __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    tables[0] = (lanes) _mm256_broadcastsi128_si256(low);
    tables[1] = (lanes) _mm256_broadcastsi128_si256(high);
}
#elif defined(__aarch64__)
#define LOOKED_UP(table, codes) ((lanes) vqtbl1q_u8((uint8x16_t) (table), (uint8x16_t) (codes)))

INLINE void tables_of(lanes tables[2], const uint16_t * halves) {
    const uint8x16_t first = vld1q_u8((const uint8_t *) halves), second = vld1q_u8((const uint8_t *) (halves + 8));
    tables[0] = (lanes) vuzp1q_u8(first, second);
    tables[1] = (lanes) vuzp2q_u8(first, second);
}
#endif

/* What each code of a table means in a block of as many bytes, the high half of each first: a product of both. */
EXPORT int32_t NAME(table_halves)(
    uint16_t * restrict to, const uint8_t * restrict packed, const float * restrict table,
    const float * restrict sizes, size_t n_bytes, size_t block_bytes) {
    int32_t excess = 0;
    for (size_t start = 0; start < n_bytes; start += block_bytes) {
        const size_t n = n_bytes - start < block_bytes ? n_bytes - start : block_bytes;
        const float size = *sizes++;
        float wide[TILE];
        uint16_t own[TILE];
        for (size_t i = 0; i < TILE; i++) {
            wide[i] = table[i] * size;
        }
        tile_of_halves(own, wide, &excess);
        size_t i = start;
#ifdef LOOKED_UP
        lanes tables[2];
        tables_of(tables, own);
        for (; i + LANES_BYTES <= start + n; i += LANES_BYTES) {
            const lanes bytes = load(packed + i), first = bytes >> 4, second = bytes & 15;
            const lanes codes[2] = {ZIP_LOW(first, second), ZIP_HIGH(first, second)};
            lanes halves[2][2];
            for (size_t j = 0; j < 2; j++) {
                const lanes low = LOOKED_UP(tables[0], codes[j]), high = LOOKED_UP(tables[1], codes[j]);
                halves[j][0] = ZIP_LOW(low, high);
                halves[j][1] = ZIP_HIGH(low, high);
            }
            for (size_t lane = 0; lane < LANES; lane++) {
                for (size_t j = 0; j < 4; j++) {
                    store_lane(to + 2 * i + 32 * lane + 8 * j, halves[j / 2][j % 2], lane);
                }
            }
        }
#endif
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

#ifdef __F16C__
/* FP8: E4M3[codes] * scales, computed instead of looked up: as a half, a code is 2^-8 of what it means. Returns 1 where
   a number is not finite in F16, and 2 where a code is no number. */
typedef struct {
    __m256i excess, nan; /* where there are some */
} faults;

INLINE __m256i tile_of_e4m3(__m128i codes, __m256 scale, faults * found) {
    const __m256i sign = _mm256_set1_epi16((short) 0x8000), rest = _mm256_set1_epi16(0x3F80);
    const __m256i infinite = _mm256_set1_epi16(0x7C00);
    const __m256i wide = _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 7), size = _mm256_and_si256(wide, rest);
    const __m256i halves = _mm256_or_si256(_mm256_and_si256(_mm256_slli_epi16(wide, 1), sign), size);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    const __m256i result = _mm256_set_m128i(
        _mm256_cvtps_ph(_mm256_mul_ps(high, scale), _MM_FROUND_TO_NEAREST_INT),
        _mm256_cvtps_ph(_mm256_mul_ps(low, scale), _MM_FROUND_TO_NEAREST_INT));
    found->nan = _mm256_or_si256(found->nan, _mm256_cmpeq_epi16(size, rest));
    found->excess =
        _mm256_or_si256(found->excess, _mm256_cmpeq_epi16(_mm256_and_si256(result, infinite), infinite));
    return result;
}

EXPORT int32_t NAME(e4m3_halves)(
    uint16_t * restrict to, const uint8_t * restrict codes, const float * restrict scales, size_t n_groups,
    size_t length) {
    faults found = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t g = 0; g < n_groups; g++, to += length, codes += length) {
        const __m256 scale = _mm256_set1_ps(scales[g] * 256);
        size_t i = 0;
        for (; i + TILE <= length; i += TILE) {
            const __m128i own = _mm_loadu_si128((const __m128i *) (const void *) (codes + i));
            _mm256_storeu_si256((__m256i *) (void *) (to + i), tile_of_e4m3(own, scale, &found));
        }
        if (i < length) {
            __m128i own = _mm_setzero_si128();
            memcpy(&own, codes + i, length - i);
            const __m256i result = tile_of_e4m3(own, scale, &found);
            memcpy(to + i, &result, 2 * (length - i));
        }
    }
    return (_mm256_movemask_epi8(found.excess) != 0) | (_mm256_movemask_epi8(found.nan) != 0) << 1;
}
#endif

/* Halves as F32, exactly. A difference makes the subnormal ones: their bits behind those of 2^-14, less 2^-14. */
EXPORT void NAME(to_floats)(float * restrict to, const uint16_t * restrict from, size_t n) {
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (from + i))));
    }
#endif
    for (; i < n; i++) {
        const uint32_t sign = (uint32_t) (from[i] & 0x8000) << 16, bits = (uint32_t) (from[i] & 0x7FFF) << 13;
        const uint32_t normal = bits + (bits < 0x0F800000 ? 112u << 23 : 224u << 23);
        const uint32_t small = bits_of(float_of(bits + (113u << 23)) - float_of(113u << 23));
        to[i] = float_of((bits < 1u << 23 ? small : normal) | sign);
    }
}

/* Codes of FP8 times scales as BF16, to the nearest, ties to even; whether a code is no number. A code's bits stand in F32
   as they are, 120 powers of two too low, but for the subnormal ones: those stand behind 2^-6, which is taken off. */
INLINE uint16_t e4m3_brain_float(uint8_t code, float scale) {
    const uint32_t sign = (uint32_t) (code & 128) << 24, bits = (uint32_t) (code & 127) << 20;
    const uint32_t normal = bits + (120u << 23);
    const uint32_t small = bits_of(float_of(bits + (121u << 23)) - float_of(121u << 23));
    const uint32_t product = bits_of(float_of((bits < 1u << 23 ? small : normal) | sign) * scale);
    return (uint16_t) ((product + 0x7FFF + (product >> 16 & 1)) >> 16);
}

#ifdef LOOKED_UP
/* The same of whole vectors with a scale of 2^(exponent - 127), where all numbers but 0 are normal ones of BF16: the bits
   of a code, and the exponent added to its own. Returns how many codes that are. */
INLINE size_t scaled_by_power(
    uint16_t * restrict to, const uint8_t * restrict codes, uint32_t exponent, size_t n, lanes * restrict nan) {
    /* In the bits of the subnormal codes, by mantissa: what is too much for their exponents. 0 becomes 0 by the first. */
    static const uint8_t too_much[16] = {0x70, 17, 10, 7, 4, 3, 2, 1};
    const uint16_t more = (uint16_t) ((exponent - 7) * 128 - 0x70 * 16);
    const lanes zero = {0};
    lanes table;
    for (size_t lane = 0; lane < LANES; lane++) {
        memcpy((uint8_t *) &table + 16 * lane, too_much, 16);
    }
    size_t i = 0;
    for (; i + LANES_BYTES <= n; i += LANES_BYTES) {
        const lanes own = load(codes + i), size = own & 127, sign = own & 128;
        const lanes high = size + 0x70; /* from 16 on 128 or more, for which tables have 0 */
        const lanes bits = high - LOOKED_UP(table, high & 0x8F);
        const lanes wide[2] = {ZIP_LOW(bits, zero), ZIP_HIGH(bits, zero)};
        const lanes signs[2] = {ZIP_LOW(zero, sign), ZIP_HIGH(zero, sign)};
        for (size_t j = 0; j < 2; j++) {
            const lanes_halves halves = (lanes_halves) wide[j];
            const lanes found = (lanes) (((halves << 4) + more) & (lanes_halves) (halves != 0)) | signs[j];
            for (size_t lane = 0; lane < LANES; lane++) {
                store_lane(to + i + 16 * lane + 8 * j, found, lane);
            }
        }
        *nan |= (lanes) (size == 127);
    }
    return i;
}
#endif

EXPORT int32_t NAME(e4m3_brain_floats)(
    uint16_t * restrict to, const uint8_t * restrict codes, const float * restrict scales, size_t n_groups,
    size_t length) {
    lanes nans = {0};
    uint8_t nan = 0;
    for (size_t g = 0; g < n_groups; g++, to += length, codes += length) {
        size_t i = 0;
#ifdef LOOKED_UP
        const uint32_t exponent = bits_of(scales[g]) >> 23;
        if (bits_of(scales[g]) << 9 == 0 && exponent >= 10 && exponent <= 246) {
            i = scaled_by_power(to, codes, exponent, length, &nans);
        }
#endif
        for (; i < length; i++) {
            to[i] = e4m3_brain_float(codes[i], scales[g]);
            nan |= (codes[i] & 127) == 127;
        }
    }
    for (size_t i = 0; i < LANES_BYTES; i++) {
        nan |= nans[i];
    }
    return nan != 0;
}

/* What has to be known of scales: the largest size of one, and as bits of the result whether one is not finite (1), too
   large for F16 (2), or none in F16 and at least 2^-14 (4) or smaller (8). */
EXPORT int32_t NAME(look_at_scales)(float * restrict largest, const float * restrict scales, size_t n) {
    uint32_t most = 0, inexact = 0, inexact_small = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t size = bits_of(scales[i]) & 0x7FFFFFFF;
        const uint32_t is_small = size < 113u << 23;
        /* A number of F16 below 2^-14 is a multiple of 2^-24: the sum with 2^-1 keeps it. */
        const uint32_t kept = bits_of((float_of(size) + 0.5f) - 0.5f);
        most = size > most ? size : most;
        inexact |= is_small || size > 0x477FE000 ? 0 : size & 0x1FFF;
        inexact_small |= is_small ? size ^ kept : 0;
    }
    *largest = float_of(most);
    return (most >= 0x7F800000) | (most > 0x477FE000) << 1 | (inexact != 0) << 2 | (inexact_small != 0) << 3;
}

/* The upper halves of F32 as such. */
EXPORT void NAME(widen_brain_floats)(uint32_t * restrict to, const uint16_t * restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) {
        to[i] = (uint32_t) from[i] << 16;
    }
}
