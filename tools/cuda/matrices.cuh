/* Products of matrices on a GPU: C = alpha * op(A) * op(B) + beta * C, and one triangular solve.
 *
 * Everything is summed in float. With tensor cores where both factors are F16 or BF16 and lie as ggml has weights and
 * activations (A transposed, B not, so that the summed index runs along memory in both); by a plain tiled kernel for
 * any other types and places. Knows pointers and strides; nothing of cuBLAS.
 *
 * tests/cuda/ compiles this text for the processor, with threads in the place of a block's. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef ON_PROCESSOR
#include "on_processor.h"
#else
#include <mma.h>
namespace wmma = nvcuda::wmma;
#define LAUNCH(kernel, grid, n_threads, stream, ...) kernel<<<grid, n_threads, 0, stream>>>(__VA_ARGS__)
#endif

namespace matrices {

// One matrix of each batch: element (row, column) lies at base + row * row_step + column * column_step.
template <typename T> struct Operand {
    T *base;
    T *const *list;  // on the device: one base for each batch; NULL: they lie batch_step apart
    int64_t row_step, column_step, batch_step;

    __device__ T *of_batch(int batch) const { return list ? list[batch] : base + batch * batch_step; }
};

struct Shape {
    int m, n, k, n_batches;  // op(A) is m x k, op(B) k x n
};

constexpr int N_THREADS = 256;
constexpr unsigned MAX_GRID = 65535;  // in the second and the third direction

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline void set(float *place, float value) { *place = value; }
__device__ inline void set(__half *place, float value) { *place = __float2half(value); }
__device__ inline void set(__nv_bfloat16 *place, float value) { *place = __float2bfloat16(value); }

// With beta = 0, C is not read: there may be anything in it.
template <typename C> __device__ void put(C *place, float alpha, float sum, float beta) {
    set(place, beta == 0.0f ? alpha * sum : alpha * sum + beta * to_float(*place));
}

// ---- any types, any places -----------------------------------------------------------------------------------------

constexpr int TILE = 64, DEPTH = 16, PER_THREAD = 4;  // a block has TILE x TILE of C, a thread 4 x 4 of that

template <typename F, typename C>
__global__ void __launch_bounds__(N_THREADS)
    tiled(Shape shape, float alpha, Operand<const F> a, Operand<const F> b, float beta, Operand<C> c) {
    __shared__ float a_tile[DEPTH][TILE + 4], b_tile[DEPTH][TILE + 4];
    const int thread = threadIdx.x, row0 = blockIdx.x * TILE;
    const int my_row = thread % 16 * PER_THREAD, my_column = thread / 16 * PER_THREAD;
    // Neighbouring threads read neighbours in memory.
    const bool a_runs_in_k = a.column_step == 1, b_runs_in_k = b.row_step == 1;
    for (int batch = blockIdx.z; batch < shape.n_batches; batch += gridDim.z) {
        const F *a_of = a.of_batch(batch), *b_of = b.of_batch(batch);
        C *c_of = c.of_batch(batch);
        for (int64_t column0 = int64_t(blockIdx.y) * TILE; column0 < shape.n; column0 += int64_t(gridDim.y) * TILE) {
            float sums[PER_THREAD][PER_THREAD] = {};
            for (int k0 = 0; k0 < shape.k; k0 += DEPTH) {
                for (int i = thread; i < TILE * DEPTH; i += N_THREADS) {
                    const int a_k = a_runs_in_k ? i % DEPTH : i / TILE, a_row = a_runs_in_k ? i / DEPTH : i % TILE;
                    const int b_k = b_runs_in_k ? i % DEPTH : i / TILE, b_column = b_runs_in_k ? i / DEPTH : i % TILE;
                    const bool has_a = row0 + a_row < shape.m && k0 + a_k < shape.k;
                    const bool has_b = column0 + b_column < shape.n && k0 + b_k < shape.k;
                    a_tile[a_k][a_row] =
                        has_a ? to_float(a_of[(row0 + a_row) * a.row_step + (k0 + a_k) * a.column_step]) : 0.0f;
                    b_tile[b_k][b_column] =
                        has_b ? to_float(b_of[(k0 + b_k) * b.row_step + (column0 + b_column) * b.column_step]) : 0.0f;
                }
                __syncthreads();
#pragma unroll
                for (int d = 0; d < DEPTH; d++) {
#pragma unroll
                    for (int i = 0; i < PER_THREAD; i++) {
#pragma unroll
                        for (int j = 0; j < PER_THREAD; j++) {
                            sums[i][j] += a_tile[d][my_row + i] * b_tile[d][my_column + j];
                        }
                    }
                }
                __syncthreads();
            }
            for (int j = 0; j < PER_THREAD; j++) {
                for (int i = 0; i < PER_THREAD; i++) {
                    const int row = row0 + my_row + i;
                    const int64_t column = column0 + my_column + j;
                    if (row < shape.m && column < shape.n) {
                        put(c_of + row * c.row_step + column * c.column_step, alpha, sums[i][j], beta);
                    }
                }
            }
        }
    }
}

// ---- F16 and BF16, A transposed, B not: tensor cores ---------------------------------------------------------------

// The first generation of GPUs whose tensor cores have factors of this type: `product` starts the kernel on no older one.
template <typename F> constexpr int FIRST_GENERATION = 1000;
template <> constexpr int FIRST_GENERATION<__half> = 7;
template <> constexpr int FIRST_GENERATION<__nv_bfloat16> = 8;

// A block has M x N of C and goes along k in steps of STEP; its 4 x 2 warps have M/4 x N/2 each, in pieces of 16 x 16.
constexpr int STEP = 32, PIECE = 16, WARP = 32, N_WARPS = N_THREADS / WARP, WARPS_ALONG_M = 4, WARPS_ALONG_N = 2;
constexpr int PITCH = STEP + 8;                    // rows begin in other banks, and at 16 bytes
constexpr int VECTOR = 8, VECTORS = STEP / VECTOR;  // values that one load of 16 bytes brings; loads for a row

// A tile of rows of STEP values each, row_step apart in memory, on its way through registers into shared memory.
template <typename F, int ROWS> struct Rows {
    static constexpr int PER_THREAD_VECTORS = ROWS * VECTORS / N_THREADS;
    uint4 held[PER_THREAD_VECTORS];

    // Values beyond the last row and beyond k are zero.
    __device__ void load(const F *base, int64_t row_step, int64_t row0, int n_rows, int k0, int k, bool is_aligned) {
#pragma unroll
        for (int i = 0; i < PER_THREAD_VECTORS; i++) {
            const int place = threadIdx.x + i * N_THREADS, at = k0 + place % VECTORS * VECTOR;
            const int64_t row = row0 + place / VECTORS;
            const F *from = base + row * row_step + at;
            held[i] = make_uint4(0, 0, 0, 0);
            if (row >= n_rows) continue;
            if (is_aligned && at + VECTOR <= k) {
                held[i] = *reinterpret_cast<const uint4 *>(from);
                continue;
            }
            F *values = reinterpret_cast<F *>(&held[i]);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                if (at + j < k) values[j] = from[j];
            }
        }
    }

    __device__ void store(F *tile) const {
#pragma unroll
        for (int i = 0; i < PER_THREAD_VECTORS; i++) {
            const int place = threadIdx.x + i * N_THREADS;
            F *to = tile + place / VECTORS * PITCH + place % VECTORS * VECTOR;
            *reinterpret_cast<uint4 *>(to) = held[i];
        }
    }
};

template <typename F> __device__ bool is_aligned(const F *base, int64_t step) {
    return reinterpret_cast<uintptr_t>(base) % sizeof(uint4) == 0 && step % VECTOR == 0;
}

template <typename F, typename C, int M, int N>
__device__ void on_tensor_cores(Shape shape, float alpha, Operand<const F> a, Operand<const F> b, float beta,
                                Operand<C> c) {
    constexpr int PIECES_M = M / WARPS_ALONG_M / PIECE, PIECES_N = N / WARPS_ALONG_N / PIECE;
    // First the two tiles, then, when these are used up, a piece of C for each warp.
    constexpr int TILES_BYTES = (M + N) * PITCH * sizeof(F), PIECES_BYTES = N_WARPS * PIECE * PIECE * sizeof(float);
    __shared__ __align__(32) unsigned char memory[TILES_BYTES > PIECES_BYTES ? TILES_BYTES : PIECES_BYTES];
    F *a_tile = reinterpret_cast<F *>(memory), *b_tile = a_tile + M * PITCH;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int my_row = warp / WARPS_ALONG_N * (M / WARPS_ALONG_M);
    const int my_column = warp % WARPS_ALONG_N * (N / WARPS_ALONG_N);
    float *piece = reinterpret_cast<float *>(memory) + warp * PIECE * PIECE;
    const int64_t row0 = int64_t(blockIdx.x) * M;
    for (int batch = blockIdx.z; batch < shape.n_batches; batch += gridDim.z) {
        const F *a_of = a.of_batch(batch), *b_of = b.of_batch(batch);
        C *c_of = c.of_batch(batch);
        const bool a_is_aligned = is_aligned(a_of, a.row_step), b_is_aligned = is_aligned(b_of, b.column_step);
        for (int64_t column0 = int64_t(blockIdx.y) * N; column0 < shape.n; column0 += int64_t(gridDim.y) * N) {
            wmma::fragment<wmma::accumulator, PIECE, PIECE, PIECE, float> sums[PIECES_M][PIECES_N];
#pragma unroll
            for (int i = 0; i < PIECES_M; i++) {
#pragma unroll
                for (int j = 0; j < PIECES_N; j++) wmma::fill_fragment(sums[i][j], 0.0f);
            }
            Rows<F, M> a_rows;
            Rows<F, N> b_rows;
            a_rows.load(a_of, a.row_step, row0, shape.m, 0, shape.k, a_is_aligned);
            b_rows.load(b_of, b.column_step, column0, shape.n, 0, shape.k, b_is_aligned);
            for (int k0 = 0; k0 < shape.k; k0 += STEP) {
                a_rows.store(a_tile);
                b_rows.store(b_tile);
                __syncthreads();
                if (k0 + STEP < shape.k) {  // the next step is on its way while this one is multiplied
                    a_rows.load(a_of, a.row_step, row0, shape.m, k0 + STEP, shape.k, a_is_aligned);
                    b_rows.load(b_of, b.column_step, column0, shape.n, k0 + STEP, shape.k, b_is_aligned);
                }
#pragma unroll
                for (int d = 0; d < STEP; d += PIECE) {
                    wmma::fragment<wmma::matrix_a, PIECE, PIECE, PIECE, F, wmma::row_major> a_pieces[PIECES_M];
                    wmma::fragment<wmma::matrix_b, PIECE, PIECE, PIECE, F, wmma::col_major> b_piece;
#pragma unroll
                    for (int i = 0; i < PIECES_M; i++) {
                        wmma::load_matrix_sync(a_pieces[i], a_tile + (my_row + i * PIECE) * PITCH + d, PITCH);
                    }
#pragma unroll
                    for (int j = 0; j < PIECES_N; j++) {
                        wmma::load_matrix_sync(b_piece, b_tile + (my_column + j * PIECE) * PITCH + d, PITCH);
#pragma unroll
                        for (int i = 0; i < PIECES_M; i++) {
                            wmma::mma_sync(sums[i][j], a_pieces[i], b_piece, sums[i][j]);
                        }
                    }
                }
                __syncthreads();
            }
#pragma unroll
            for (int i = 0; i < PIECES_M; i++) {
#pragma unroll
                for (int j = 0; j < PIECES_N; j++) {
                    wmma::store_matrix_sync(piece, sums[i][j], PIECE, wmma::mem_col_major);
                    __syncwarp();
                    for (int place = lane; place < PIECE * PIECE; place += WARP) {
                        const int64_t row = row0 + my_row + i * PIECE + place % PIECE;
                        const int64_t column = column0 + my_column + j * PIECE + place / PIECE;
                        if (row < shape.m && column < shape.n) {
                            put(c_of + row * c.row_step + column * c.column_step, alpha, piece[place], beta);
                        }
                    }
                    __syncwarp();
                }
            }
            __syncthreads();  // before others' tiles take the place of the pieces
        }
    }
}

// Two blocks at least on a processor: one multiplies while the other waits for memory.
template <typename F, typename C, int M, int N>
__global__ void __launch_bounds__(N_THREADS, 2)
    tensor(Shape shape, float alpha, Operand<const F> a, Operand<const F> b, float beta, Operand<C> c) {
#ifdef __CUDA_ARCH__
    constexpr int GENERATION = __CUDA_ARCH__ / 100;
#else
    constexpr int GENERATION = FIRST_GENERATION<F>;
#endif
    if constexpr (GENERATION >= FIRST_GENERATION<F>) on_tensor_cores<F, C, M, N>(shape, alpha, a, b, beta, c);
}

// ---- a triangular solve --------------------------------------------------------------------------------------------

// X * A = alpha * B for X, in the place of B; A is n x n and upper triangular, B m x n. A thread has a row.
__global__ void solve_upper(int m, int n, float alpha, const float *const *a, int64_t a_step, float *const *b,
                            int64_t b_step) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m) return;
    const float *a_of = a[blockIdx.y];
    float *x = b[blockIdx.y] + row;
    for (int j = 0; j < n; j++) {
        float sum = alpha * x[j * b_step];
        for (int i = 0; i < j; i++) sum -= x[i * b_step] * a_of[i + j * a_step];
        x[j * b_step] = sum / a_of[j + j * a_step];
    }
}

// ---- for who starts them -------------------------------------------------------------------------------------------

struct Gpu {
    int generation;    // the first number of its compute capability
    int n_processors;  // streaming multiprocessors
};

inline unsigned n_tiles(int n, int tile) { return (unsigned(n) + tile - 1) / tile; }

inline dim3 grid_of(const Shape &shape, int rows, int columns) {
    const unsigned y = n_tiles(shape.n, columns), z = shape.n_batches;
    return dim3(n_tiles(shape.m, rows), y < MAX_GRID ? y : MAX_GRID, z < MAX_GRID ? z : MAX_GRID);
}

// Starts the kernel that is the best for where the factors lie. All numbers of `shape` are above 0.
template <typename F, typename C>
void product(const Gpu &gpu, cudaStream_t stream, const Shape &shape, float alpha, const Operand<const F> &a,
             const Operand<const F> &b, float beta, const Operand<C> &c) {
    if constexpr (sizeof(F) == 2) {
        if (gpu.generation >= FIRST_GENERATION<F> && a.column_step == 1 && b.row_step == 1) {
            // Large tiles read less; small ones are enough of them to keep a GPU busy.
            const int64_t n_large = int64_t(n_tiles(shape.m, 128)) * n_tiles(shape.n, 128) * shape.n_batches;
            if (n_large >= gpu.n_processors) {
                const dim3 grid = grid_of(shape, 128, 128);
                LAUNCH((tensor<F, C, 128, 128>), grid, N_THREADS, stream, shape, alpha, a, b, beta, c);
            } else {
                const dim3 grid = grid_of(shape, 64, 64);
                LAUNCH((tensor<F, C, 64, 64>), grid, N_THREADS, stream, shape, alpha, a, b, beta, c);
            }
            return;
        }
    }
    const dim3 grid = grid_of(shape, TILE, TILE);
    LAUNCH((tiled<F, C>), grid, N_THREADS, stream, shape, alpha, a, b, beta, c);
}

inline void solve(cudaStream_t stream, int m, int n, float alpha, const float *const *a, int a_step, float *const *b,
                  int b_step, int n_batches) {
    const dim3 grid(n_tiles(m, N_THREADS), n_batches);
    LAUNCH(solve_upper, grid, N_THREADS, stream, m, n, alpha, a, int64_t(a_step), b, int64_t(b_step));
}

}  // namespace matrices
