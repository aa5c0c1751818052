// Products of quantized weights with rows of activations, for x86: what decodes consist of, those of one token, of many
// sequences, of a guess or of a prompt.
//
// ggml takes one row of weights and one of activations at a time, and unpacks the weights again for each. Here a panel
// of 16 rows of weights (8 without AVX-512) is unpacked once for up to 16 rows of activations (8), and lies in the
// registers so that each lane belongs to one row of weights: no lane is ever added to another, the scales of a panel are
// applied at once, and the next panel is fetched from memory meanwhile, which makes even a single row faster.
//
// The linker puts this in front of llamafile_sgemm (`--wrap`, see engine.cmake), which ggml asks before it uses its plain
// loops, and which still answers for whatever is not done here. Blocks are those of ggml-common.h: 32 weights with one
// scale, `d * (q - offset)` or `d * q + m`; a block of activations has 32 signed bytes, their scale, and in Q8_1 their sum
// times the scale.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "ggml-cpu-impl.h"
#include "llamafile/sgemm.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" decltype(llamafile_sgemm) __real_llamafile_sgemm, __wrap_llamafile_sgemm;

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

// GCC 12 warns of its own intrinsics (bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace {

constexpr int BLOCK = 32;          // weights that share a scale
constexpr int WORDS = BLOCK / 4;   // registers that a block of a panel takes: four weights of each row in one
constexpr int CHUNK_PANELS = 16;   // panels that all columns pass over before the next ones: they stay in the cache
constexpr int MAX_BLOCKS = 1024;   // of a row; the scales of the activations are kept on the stack

inline __m128i load16(const uint8_t * from) { return _mm_loadu_si128((const __m128i *) from); }

inline int word(const uint8_t * from) {
    int value;
    memcpy(&value, from, sizeof(value));
    return value;
}

inline __m128i four_words(const uint8_t * from, int64_t stride) {
    return _mm_setr_epi32(word(from), word(from + stride), word(from + 2 * stride), word(from + 3 * stride));
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

constexpr int ROWS = 16;
constexpr int COLUMNS = 16;
using Int = __m512i;
using Float = __m512;

inline Int set8(int value) { return _mm512_set1_epi8((char) value); }
inline Int set32(int value) { return _mm512_set1_epi32(value); }
inline Int broadcast128(__m128i value) { return _mm512_broadcast_i32x4(value); }
inline Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
inline Int bit_xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
inline Int high_nibbles(Int a) { return bit_and(_mm512_srli_epi16(a, 4), set8(15)); }
inline Int low32(Int a, Int b) { return _mm512_unpacklo_epi32(a, b); }
inline Int high32(Int a, Int b) { return _mm512_unpackhi_epi32(a, b); }
inline Int low64(Int a, Int b) { return _mm512_unpacklo_epi64(a, b); }
inline Int high64(Int a, Int b) { return _mm512_unpackhi_epi64(a, b); }
inline Float zero() { return _mm512_setzero_ps(); }
inline Float set(float value) { return _mm512_set1_ps(value); }
inline Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float times_plus(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
inline void store(float * to, Float value) { _mm512_storeu_ps(to, value); }

// Adds 16 to the bytes of `a` whose bit, the one of `bits` in the byte that `bytes` names, is set in `fifth`.
inline Int with_fifth_bit(Int a, Int fifth, Int bytes, Int bits) {
    return _mm512_mask_add_epi8(a, _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, bytes), bits), a, set8(16));
}

// Sixteen bytes of rows `r`, `r + 4`, `r + 8` and `r + 12`.
inline Int quarter(const uint8_t * from, int64_t stride, int r) {
    Int all = _mm512_castsi128_si512(load16(from + r * stride));
    all = _mm512_inserti32x4(all, load16(from + (r + 4) * stride), 1);
    all = _mm512_inserti32x4(all, load16(from + (r + 8) * stride), 2);
    return _mm512_inserti32x4(all, load16(from + (r + 12) * stride), 3);
}

// Four bytes of each row.
inline Int words(const uint8_t * from, int64_t stride) {
    Int all = _mm512_castsi128_si512(four_words(from, stride));
    all = _mm512_inserti32x4(all, four_words(from + 4 * stride, stride), 1);
    all = _mm512_inserti32x4(all, four_words(from + 8 * stride, stride), 2);
    return _mm512_inserti32x4(all, four_words(from + 12 * stride, stride), 3);
}

// The lower halves of 32-bit words, and the upper ones, each a number of half precision.
inline Float low_half(Int a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
inline Float high_half(Int a) { return low_half(_mm512_srli_epi32(a, 16)); }

#if defined(__AVX512VNNI__)
#define HAS_BYTE_DOT 1
inline Int byte_dot(Int sum, Int weights, int activations) {
    return _mm512_dpbusd_epi32(sum, weights, set32(activations));
}
#else
inline Int plus32(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline Int plus16(Int a, Int b) { return _mm512_add_epi16(a, b); }
inline Int pairs(Int weights, int activations) { return _mm512_maddubs_epi16(weights, set32(activations)); }
inline Int sums_of_pairs(Int a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
#endif

#else

constexpr int ROWS = 8;
constexpr int COLUMNS = 8;
using Int = __m256i;
using Float = __m256;

inline Int set8(int value) { return _mm256_set1_epi8((char) value); }
inline Int set32(int value) { return _mm256_set1_epi32(value); }
inline Int broadcast128(__m128i value) { return _mm256_broadcastsi128_si256(value); }
inline Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
inline Int bit_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
inline Int high_nibbles(Int a) { return bit_and(_mm256_srli_epi16(a, 4), set8(15)); }
inline Int low32(Int a, Int b) { return _mm256_unpacklo_epi32(a, b); }
inline Int high32(Int a, Int b) { return _mm256_unpackhi_epi32(a, b); }
inline Int low64(Int a, Int b) { return _mm256_unpacklo_epi64(a, b); }
inline Int high64(Int a, Int b) { return _mm256_unpackhi_epi64(a, b); }
inline Float zero() { return _mm256_setzero_ps(); }
inline Float set(float value) { return _mm256_set1_ps(value); }
inline Float times(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float times_plus(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
inline void store(float * to, Float value) { _mm256_storeu_ps(to, value); }

inline Int with_fifth_bit(Int a, Int fifth, Int bytes, Int bits) {
    const Int found = _mm256_cmpeq_epi8(bit_and(_mm256_shuffle_epi8(fifth, bytes), bits), bits);
    return _mm256_or_si256(a, bit_and(found, set8(16)));
}

// Sixteen bytes of rows `r` and `r + 4`.
inline Int quarter(const uint8_t * from, int64_t stride, int r) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(from + r * stride)), load16(from + (r + 4) * stride), 1);
}

inline Int words(const uint8_t * from, int64_t stride) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(four_words(from, stride)), four_words(from + 4 * stride, stride), 1);
}

inline Float halves_to_float(Int a) {
    const Int packed = _mm256_packus_epi32(a, a);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
inline Float low_half(Int a) { return halves_to_float(bit_and(a, set32(0xffff))); }
inline Float high_half(Int a) { return halves_to_float(_mm256_srli_epi32(a, 16)); }

#if defined(__AVXVNNI__)
#define HAS_BYTE_DOT 1
inline Int byte_dot(Int sum, Int weights, int activations) {
    return _mm256_dpbusd_avx_epi32(sum, weights, set32(activations));
}
#else
inline Int plus32(Int a, Int b) { return _mm256_add_epi32(a, b); }
inline Int plus16(Int a, Int b) { return _mm256_add_epi16(a, b); }
inline Int pairs(Int weights, int activations) { return _mm256_maddubs_epi16(weights, set32(activations)); }
inline Int sums_of_pairs(Int a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
#endif

#endif

// `sum` plus the products of a block of each row, unsigned, with a block of activations.
inline Int dot(Int sum, const Int (&weights)[WORDS], const int8_t * activations) {
    const uint8_t * from = (const uint8_t *) activations;
#if HAS_BYTE_DOT
#pragma GCC unroll 8
    for (int i = 0; i < WORDS; ++i) {
        sum = byte_dot(sum, weights[i], word(from + 4 * i));
    }
    return sum;
#else
    // Four sums of two products fit into 16 bits where weights have no more than five: 4 * 2 * 31 * 128 = 31,744.
    Int halves[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const Int * w = weights + 4 * half;
        const uint8_t * a = from + 16 * half;
        halves[half] = plus16(plus16(pairs(w[0], word(a)), pairs(w[1], word(a + 4))),
                              plus16(pairs(w[2], word(a + 8)), pairs(w[3], word(a + 12))));
    }
    return plus32(sum, plus32(sums_of_pairs(halves[0]), sums_of_pairs(halves[1])));
#endif
}

// Sixteen bytes of each row, as four words of four bytes: what was beside each other is one below the other.
inline void transpose(const uint8_t * from, int64_t stride, Int (&to)[4]) {
    const Int a = quarter(from, stride, 0), b = quarter(from, stride, 1);
    const Int c = quarter(from, stride, 2), d = quarter(from, stride, 3);
    const Int ab = low32(a, b), cd = low32(c, d), ab2 = high32(a, b), cd2 = high32(c, d);
    to[0] = low64(ab, cd);
    to[1] = high64(ab, cd);
    to[2] = low64(ab2, cd2);
    to[3] = high64(ab2, cd2);
}

inline void unpack_nibbles(const uint8_t * from, int64_t stride, Int (&weights)[WORDS]) {
    Int packed[4];
    transpose(from, stride, packed);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        weights[i] = bit_and(packed[i], set8(15));
        weights[i + 4] = high_nibbles(packed[i]);
    }
}

inline void add_fifth_bits(const uint8_t * from, int64_t stride, Int (&weights)[WORDS]) {
    const Int fifth = words(from, stride);
#pragma GCC unroll 8
    for (int i = 0; i < WORDS; ++i) {
        const Int bits = set32(i % 2 ? (int) 0x80402010 : 0x08040201);
        const __m128i first_bytes = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        const Int bytes = broadcast128(_mm_add_epi8(first_bytes, _mm_set1_epi8(i / 2)));
        weights[i] = with_fifth_bit(weights[i], fifth, bytes, bits);
    }
}

static_assert(offsetof(block_q4_1, qs) == 4 && offsetof(block_q5_1, qh) == 4 && offsetof(block_q8_1, qs) == 4,
              "the scale and what goes with it are the first two numbers of a block");
static_assert(offsetof(block_q4_0, qs) == 2 && offsetof(block_q5_0, qh) == 2 && offsetof(block_q8_0, qs) == 2,
              "the scale is the first number of a block");

// How the blocks of a format are read. `OFFSET` is what their weights are larger by than those that are meant.

struct Q4_0 {
    using Weights = block_q4_0;
    using Activations = block_q8_0;
    static constexpr int OFFSET = 8;
    static constexpr bool HAS_MIN = false;
    static void unpack(const uint8_t * block, int64_t stride, Int (&weights)[WORDS]) {
        unpack_nibbles(block + offsetof(block_q4_0, qs), stride, weights);
    }
};

struct Q4_1 {
    using Weights = block_q4_1;
    using Activations = block_q8_1;
    static constexpr int OFFSET = 0;
    static constexpr bool HAS_MIN = true;
    static void unpack(const uint8_t * block, int64_t stride, Int (&weights)[WORDS]) {
        unpack_nibbles(block + offsetof(block_q4_1, qs), stride, weights);
    }
};

struct Q5_0 {
    using Weights = block_q5_0;
    using Activations = block_q8_0;
    static constexpr int OFFSET = 16;
    static constexpr bool HAS_MIN = false;
    static void unpack(const uint8_t * block, int64_t stride, Int (&weights)[WORDS]) {
        unpack_nibbles(block + offsetof(block_q5_0, qs), stride, weights);
        add_fifth_bits(block + offsetof(block_q5_0, qh), stride, weights);
    }
};

struct Q5_1 {
    using Weights = block_q5_1;
    using Activations = block_q8_1;
    static constexpr int OFFSET = 0;
    static constexpr bool HAS_MIN = true;
    static void unpack(const uint8_t * block, int64_t stride, Int (&weights)[WORDS]) {
        unpack_nibbles(block + offsetof(block_q5_1, qs), stride, weights);
        add_fifth_bits(block + offsetof(block_q5_1, qh), stride, weights);
    }
};

#if HAS_BYTE_DOT  // without it, sums of products of eight bits each do not fit
struct Q8_0 {
    using Weights = block_q8_0;
    using Activations = block_q8_0;
    static constexpr int OFFSET = 128;
    static constexpr bool HAS_MIN = false;
    static void unpack(const uint8_t * block, int64_t stride, Int (&weights)[WORDS]) {
        const uint8_t * from = block + offsetof(block_q8_0, qs);
        Int quarters[4];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            transpose(from + 16 * half, stride, quarters);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                weights[4 * half + i] = bit_xor(quarters[i], set8(0x80));
            }
        }
    }
};
#endif

// What the activations of some columns bring along: their scale, and for each block what their sum is good for.
struct Scales {
    float d[MAX_BLOCKS * COLUMNS];
    union {
        float sum[MAX_BLOCKS * COLUMNS];      // times the scale: what the minimum of the weights is multiplied with
        int32_t excess[MAX_BLOCKS * COLUMNS];  // what the offset of the weights makes too much, negative
    };
};

// The half precision number that is the `index`-th of a block: the scale, and what stands behind it.
inline float half_of(const void * block, int index) {
    ggml_half value;
    memcpy(&value, (const uint8_t *) block + index * sizeof(value), sizeof(value));
    return _cvtsh_ss(value);
}

inline int sum_of_bytes(const int8_t * from) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i *) from);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

template <class Format> class Product {
  public:
    using Weights = typename Format::Weights;
    using Activations = typename Format::Activations;

    Product(int64_t n_blocks, const Weights * a, int64_t lda, const Activations * b, int64_t ldb, float * c, int64_t ldc)
        : n_blocks(n_blocks), a(a), lda(lda), b(b), ldb(ldb), c(c), ldc(ldc) {}

    // The rows of weights that thread `ith` of `nth` has, for all columns.
    __attribute__((noinline)) void compute(int64_t n_rows, int64_t n_columns, int ith, int nth) const {
        const int64_t n_panels = (n_rows + ROWS - 1) / ROWS;
        const int64_t first = n_panels * ith / nth, last = n_panels * (ith + 1) / nth;
        const int64_t n_tiles = (n_columns + COLUMNS - 1) / COLUMNS;
        Scales scales;
        for (int64_t chunk = first; chunk < last; chunk += CHUNK_PANELS) {
            const int64_t chunk_end = std::min(chunk + CHUNK_PANELS, last);
            for (int64_t tile = 0; tile < n_tiles; ++tile) {
                const int64_t column = n_columns * tile / n_tiles;
                const int n = (int) (n_columns * (tile + 1) / n_tiles - column);
                note_scales(scales, column, n);
                for (int64_t panel = chunk; panel < chunk_end; ++panel) {
                    // The last panel begins earlier where rows are missing, and computes some of them once more.
                    compute_panel<COLUMNS>(scales, std::min(panel * ROWS, n_rows - ROWS), column, n);
                }
            }
        }
    }

  private:
    void note_scales(Scales & scales, int64_t column, int n) const {
        for (int j = 0; j < n; ++j) {
            const Activations * from = b + (column + j) * ldb;
            for (int64_t l = 0; l < n_blocks; ++l) {
                scales.d[l * n + j] = half_of(from + l, 0);
                if constexpr (Format::HAS_MIN) {
                    scales.sum[l * n + j] = half_of(from + l, 1);
                } else {
                    scales.excess[l * n + j] = -Format::OFFSET * sum_of_bytes(from[l].qs);
                }
            }
        }
    }

    template <int MAX> void compute_panel(const Scales & scales, int64_t row, int64_t column, int n) const {
        if (n == MAX) {
            compute_tile<MAX>(scales, row, column);
        } else if constexpr (MAX > 1) {
            compute_panel<MAX - 1>(scales, row, column, n);
        }
    }

    template <int N> __attribute__((noinline)) void compute_tile(const Scales & scales, int64_t row, int64_t column) const {
        const int64_t stride = lda * (int64_t) sizeof(Weights);
        const uint8_t * block = (const uint8_t *) (a + row * lda);
        const uint8_t * const next = block + ROWS * stride;
        const Activations * activations = b + column * ldb;
        Float sums[N];
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) {
            sums[j] = zero();
        }
        for (int64_t l = 0; l < n_blocks; ++l, block += sizeof(Weights)) {
            // The rows of a panel are read side by side, which no processor foresees, so the next panel is asked for, one
            // line after the other. It may be larger than the first cache, so that it goes to the second.
            const uint8_t * const ahead = next + l * ROWS * (int64_t) sizeof(Weights);
#pragma GCC unroll 9
            for (int byte = 0; byte < (int) (ROWS * sizeof(Weights)); byte += 64) {
                _mm_prefetch((const char *) ahead + byte, _MM_HINT_T1);
            }
            Int weights[WORDS];
            Format::unpack(block, stride, weights);
            const Int head = words(block, stride);
            const Float d = low_half(head), m = high_half(head);  // the latter where the format has one
            const float * const ds = scales.d + l * N;
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) {
                const int8_t * const qs = activations[j * ldb + l].qs;
                if constexpr (Format::HAS_MIN) {
                    sums[j] = times_plus(to_float(dot(set32(0), weights, qs)), times(d, set(ds[j])), sums[j]);
                    sums[j] = times_plus(m, set(scales.sum[l * N + j]), sums[j]);
                } else {
                    const Int excess = set32(scales.excess[l * N + j]);
                    sums[j] = times_plus(to_float(dot(excess, weights, qs)), times(d, set(ds[j])), sums[j]);
                }
            }
        }
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) {
            store(c + (column + j) * ldc + row, sums[j]);
        }
    }

    const int64_t n_blocks;
    const Weights * const a;
    const int64_t lda;
    const Activations * const b;
    const int64_t ldb;
    float * const c;
    const int64_t ldc;
};

template <class Format>
bool multiply(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda, const void * b,
              int64_t ldb, void * c, int64_t ldc) {
    if (m < ROWS || k > MAX_BLOCKS) {
        return false;
    }
    using Weights = typename Format::Weights;
    using Activations = typename Format::Activations;
    const Product<Format> product(k, (const Weights *) a, lda, (const Activations *) b, ldb, (float *) c, ldc);
    product.compute(m, n, params->ith, params->nth);
    return true;
}

// Whether the product was computed; `m` rows of weights and `n` of activations, of `k` blocks each.
bool multiply(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda, const void * b,
              int64_t ldb, void * c, int64_t ldc, int a_type, int b_type, int c_type) {
    if (c_type != GGML_TYPE_F32) {
        return false;
    }
    if (b_type == GGML_TYPE_Q8_0) {
        switch (a_type) {
            case GGML_TYPE_Q4_0: return multiply<Q4_0>(params, m, n, k, a, lda, b, ldb, c, ldc);
            case GGML_TYPE_Q5_0: return multiply<Q5_0>(params, m, n, k, a, lda, b, ldb, c, ldc);
#if HAS_BYTE_DOT
            case GGML_TYPE_Q8_0: return multiply<Q8_0>(params, m, n, k, a, lda, b, ldb, c, ldc);
#endif
        }
    }
    if (b_type == GGML_TYPE_Q8_1) {
        switch (a_type) {
            case GGML_TYPE_Q4_1: return multiply<Q4_1>(params, m, n, k, a, lda, b, ldb, c, ldc);
            case GGML_TYPE_Q5_1: return multiply<Q5_1>(params, m, n, k, a, lda, b, ldb, c, ldc);
        }
    }
    return false;
}

}  // namespace

#else

static bool multiply(const ggml_compute_params *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t,
                     void *, int64_t, int, int, int) {
    return false;
}

#endif

bool __wrap_llamafile_sgemm(const ggml_compute_params * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda,
                            const void * b, int64_t ldb, void * c, int64_t ldc, int a_type, int b_type, int c_type) {
    return multiply(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type) ||
           __real_llamafile_sgemm(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}
