/* CUDA's words for code that a processor runs: a thread for each of a block's, barriers between them, one block after
 * the other. A wmma fragment is a whole piece of a matrix in each thread of a warp. How a GPU divides a piece among a
 * warp's threads is its own secret; what load, mma and store mean together is not. */
#pragma once

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <vector_functions.h>

#include <functional>
#include <thread>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Place {
    unsigned x, y, z;
};
inline thread_local Place threadIdx, blockIdx;
inline dim3 gridDim, blockDim;

constexpr unsigned WARP_THREADS = 32;
inline pthread_barrier_t block_barrier;
inline std::vector<pthread_barrier_t> warp_barriers;

// What tests set and read: the GPU that there is said to be, and the name of the kernel that was started last.
extern "C" {
int gpu_generation = 8, gpu_processors = 4;
char last_kernel[64];

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int) {
    *value = which == cudaDevAttrComputeCapabilityMajor ? gpu_generation : gpu_processors;
    return cudaSuccess;
}
}

inline void __syncthreads() { pthread_barrier_wait(&block_barrier); }
inline void __syncwarp() { pthread_barrier_wait(&warp_barriers[threadIdx.x / WARP_THREADS]); }

inline void run_blocks(dim3 grid, unsigned n_threads, const std::function<void()> &kernel) {
    gridDim = grid;
    blockDim = dim3(n_threads);
    pthread_barrier_init(&block_barrier, nullptr, n_threads);
    warp_barriers.resize(n_threads / WARP_THREADS);
    for (auto &barrier : warp_barriers) pthread_barrier_init(&barrier, nullptr, WARP_THREADS);
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < n_threads; thread++) {
        threads.emplace_back([=, &kernel] {
            threadIdx = {thread, 0, 0};
            for (unsigned z = 0; z < grid.z; z++) {
                for (unsigned y = 0; y < grid.y; y++) {
                    for (unsigned x = 0; x < grid.x; x++) {
                        blockIdx = {x, y, z};
                        kernel();
                        __syncthreads();
                    }
                }
            }
        });
    }
    for (auto &thread : threads) thread.join();
}

#define LAUNCH(kernel, grid, n_threads, stream, ...)                    \
    ((void)(stream), strncpy(last_kernel, #kernel, sizeof last_kernel - 1), \
     run_blocks(grid, n_threads, [&] { kernel(__VA_ARGS__); }))

namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

// Of the 16 x 16 x 16 kind alone: element (row, column) is at [row][column] for whoever loads, multiplies or stores.
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    static_assert(M == 16 && N == 16 && K == 16);
    T at[16][16];
};

template <typename T> void check_place(const T *place, unsigned pitch) {
    // As the CUDA C++ Programming Guide asks: 256 bits, and rows at 128.
    if (reinterpret_cast<uintptr_t>(place) % 32 || pitch * sizeof(T) % 16) abort();
}

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major> &to, const T *from, unsigned pitch) {
    check_place(from, pitch);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) to.at[i][j] = from[i * pitch + j];
    }
}

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, col_major> &to, const T *from, unsigned pitch) {
    check_place(from, pitch);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) to.at[i][j] = from[i + j * pitch];
    }
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float> &of, float value) {
    for (auto &row : of.at) {
        for (auto &place : row) place = value;
    }
}

inline float number(__half value) { return __half2float(value); }
inline float number(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
void mma_sync(fragment<accumulator, 16, 16, 16, float> &to, const fragment<matrix_a, 16, 16, 16, T, row_major> &a,
              const fragment<matrix_b, 16, 16, 16, T, col_major> &b,
              const fragment<accumulator, 16, 16, 16, float> &added) {
    float left[16][16], right[16][16];
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) left[i][j] = number(a.at[i][j]), right[j][i] = number(b.at[i][j]);
    }
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) {
            float sum = added.at[i][j];
            for (int l = 0; l < 16; l++) sum += left[i][l] * right[j][l];
            to.at[i][j] = sum;
        }
    }
}

inline void store_matrix_sync(float *to, const fragment<accumulator, 16, 16, 16, float> &from, unsigned pitch,
                              layout_t layout) {
    check_place(to, pitch);
    if (threadIdx.x % WARP_THREADS) return;  // each thread would write the same
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < 16; j++) to[layout == mem_col_major ? i + j * pitch : i * pitch + j] = from.at[i][j];
    }
}

}  // namespace wmma
