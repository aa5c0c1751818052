/* The thirteen functions of cuBLAS that ggml's CUDA backend calls, so that its library asks for no libcublas.so.
 *
 * Where the system has the real library, that is opened with the first handle and called: it is faster, above all on
 * new GPUs. SHIMMY_CUBLAS=own forbids it. Else the kernels of matrices.cuh compute, in float throughout: also what the
 * caller would have in F16 (CUBLAS_COMPUTE_16F, whose alpha and beta are F16). Strsm is here in the one form that is
 * asked for; others are refused with CUBLAS_STATUS_NOT_SUPPORTED, which ends the program with this name. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cublas_v2.h"
#include "matrices.cuh"

namespace {

using matrices::Operand;
using matrices::Shape;

// What a cublasHandle_t of ours points to.
struct Handle {
    cublasHandle_t real;  // of the real library; NULL where that is not used
    cudaStream_t stream;
    matrices::Gpu gpu;
};

Handle *ours(cublasHandle_t handle) { return reinterpret_cast<Handle *>(handle); }

// ---- the real library ----------------------------------------------------------------------------------------------

void *open_real_library() {
    const char *choice = getenv("SHIMMY_CUBLAS");
    if (choice && !strcmp(choice, "own")) return nullptr;
    void *library = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
    return library ? library : dlopen("libcublas.so.12", RTLD_NOW | RTLD_LOCAL);
}

void *real_function(const char *name) {
    static void *library = open_real_library();
    return library ? dlsym(library, name) : nullptr;
}

// The types are those of the caller's parameters.
template <typename... Arguments> cublasStatus_t call(void *function, Arguments... arguments) {
    if (!function) return CUBLAS_STATUS_NOT_SUPPORTED;
    return reinterpret_cast<cublasStatus_t (*)(Arguments...)>(function)(arguments...);
}

// A handle has a real one, or has none, for all its life: only one that has asks the real function.
#define RETURN_THAT_OF_REAL(handle, name, ...)                                       \
    if (ours(handle)->real) {                                                        \
        static void *function = real_function(#name);                                \
        return call(function, ours(handle)->real, __VA_ARGS__);                      \
    }

// ---- arguments of cuBLAS as those of matrices.cuh ------------------------------------------------------------------

struct Matrix {
    const void *base;
    const void *const *list;  // on the device; NULL: one base and a stride
    cudaDataType type;
    int64_t leading, stride;  // in elements
    bool is_transposed;
};

template <typename T> Operand<T> operand(const Matrix &of) {
    return {(T *)of.base, (T *const *)of.list, of.is_transposed ? of.leading : 1, of.is_transposed ? 1 : of.leading,
            of.stride};
}

template <typename F, typename C>
cublasStatus_t start(const Handle &handle, const Shape &shape, float alpha, const Matrix &a, const Matrix &b,
                     float beta, const Matrix &c) {
    matrices::product<F, C>(handle.gpu, handle.stream, shape, alpha, operand<const F>(a), operand<const F>(b), beta,
                            operand<C>(c));
    return cudaGetLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

float factor(const void *value, cublasComputeType_t compute) {
    if (compute == CUBLAS_COMPUTE_16F) return __half2float(*static_cast<const __half *>(value));
    return *static_cast<const float *>(value);
}

cublasStatus_t gemm(cublasHandle_t handle, const Shape &shape, const void *alpha, const Matrix &a, const Matrix &b,
                    const void *beta, const Matrix &c, cublasComputeType_t compute) {
    if (shape.m < 0 || shape.n < 0 || shape.k < 0 || shape.n_batches < 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (shape.m == 0 || shape.n == 0 || shape.n_batches == 0) return CUBLAS_STATUS_SUCCESS;
    const float by = factor(alpha, compute), kept = factor(beta, compute);
    const Handle &with = *ours(handle);
    if (a.type == b.type && c.type == CUDA_R_32F) {
        if (a.type == CUDA_R_32F) return start<float, float>(with, shape, by, a, b, kept, c);
        if (a.type == CUDA_R_16F) return start<__half, float>(with, shape, by, a, b, kept, c);
        if (a.type == CUDA_R_16BF) return start<__nv_bfloat16, float>(with, shape, by, a, b, kept, c);
    } else if (a.type == b.type && a.type == c.type) {
        if (a.type == CUDA_R_16F) return start<__half, __half>(with, shape, by, a, b, kept, c);
        if (a.type == CUDA_R_16BF) return start<__nv_bfloat16, __nv_bfloat16>(with, shape, by, a, b, kept, c);
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

int attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, which, device);
    return value;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
    static void *function = real_function("cublasCreate_v2");
    auto *made = new Handle{};
    made->gpu = {attribute(cudaDevAttrComputeCapabilityMajor), attribute(cudaDevAttrMultiProcessorCount)};
    // A real library that makes none, as one that is too old for the GPU, counts as none.
    if (function && call(function, &made->real) != CUBLAS_STATUS_SUCCESS) made->real = nullptr;
    *handle = reinterpret_cast<cublasHandle_t>(made);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    static void *function = real_function("cublasDestroy_v2");
    if (ours(handle)->real) call(function, ours(handle)->real);
    delete ours(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    ours(handle)->stream = stream;
    RETURN_THAT_OF_REAL(handle, cublasSetStream_v2, stream)
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void *workspace, size_t n_bytes) {
    RETURN_THAT_OF_REAL(handle, cublasSetWorkspace_v2, workspace, n_bytes)
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    RETURN_THAT_OF_REAL(handle, cublasSetMathMode, mode)
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR: return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "another CUBLAS_STATUS";
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType a_type, int lda, const void *b,
                            cudaDataType b_type, int ldb, const void *beta, void *c, cudaDataType c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    RETURN_THAT_OF_REAL(handle, cublasGemmEx, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c,
                        c_type, ldc, compute, algorithm)
    return gemm(handle, {m, n, k, 1}, alpha, {a, nullptr, a_type, lda, 0, op_a != CUBLAS_OP_N},
                {b, nullptr, b_type, ldb, 0, op_b != CUBLAS_OP_N}, beta, {c, nullptr, c_type, ldc, 0, false}, compute);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                          int n, int k, const void *alpha, const void *a, cudaDataType a_type, int lda,
                                          long long a_stride, const void *b, cudaDataType b_type, int ldb,
                                          long long b_stride, const void *beta, void *c, cudaDataType c_type, int ldc,
                                          long long c_stride, int n_batches, cublasComputeType_t compute,
                                          cublasGemmAlgo_t algorithm) {
    RETURN_THAT_OF_REAL(handle, cublasGemmStridedBatchedEx, op_a, op_b, m, n, k, alpha, a, a_type, lda, a_stride, b,
                        b_type, ldb, b_stride, beta, c, c_type, ldc, c_stride, n_batches, compute, algorithm)
    return gemm(handle, {m, n, k, n_batches}, alpha, {a, nullptr, a_type, lda, a_stride, op_a != CUBLAS_OP_N},
                {b, nullptr, b_type, ldb, b_stride, op_b != CUBLAS_OP_N}, beta,
                {c, nullptr, c_type, ldc, c_stride, false}, compute);
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                   int k, const void *alpha, const void *const a[], cudaDataType a_type, int lda,
                                   const void *const b[], cudaDataType b_type, int ldb, const void *beta,
                                   void *const c[], cudaDataType c_type, int ldc, int n_batches,
                                   cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    RETURN_THAT_OF_REAL(handle, cublasGemmBatchedEx, op_a, op_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta,
                        c, c_type, ldc, n_batches, compute, algorithm)
    return gemm(handle, {m, n, k, n_batches}, alpha, {nullptr, a, a_type, lda, 0, op_a != CUBLAS_OP_N},
                {nullptr, b, b_type, ldb, 0, op_b != CUBLAS_OP_N}, beta, {nullptr, c, c_type, ldc, 0, false}, compute);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                              const float *alpha, const float *a, int lda, const float *b, int ldb, const float *beta,
                              float *c, int ldc) {
    RETURN_THAT_OF_REAL(handle, cublasSgemm_v2, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
    return cublasGemmEx(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c,
                        CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                         int n, int k, const float *alpha, const float *a, int lda, long long a_stride,
                                         const float *b, int ldb, long long b_stride, const float *beta, float *c,
                                         int ldc, long long c_stride, int n_batches) {
    RETURN_THAT_OF_REAL(handle, cublasSgemmStridedBatched, op_a, op_b, m, n, k, alpha, a, lda, a_stride, b, ldb,
                        b_stride, beta, c, ldc, c_stride, n_batches)
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, a_stride, b, CUDA_R_32F,
                                      ldb, b_stride, beta, c, CUDA_R_32F, ldc, c_stride, n_batches, CUBLAS_COMPUTE_32F,
                                      CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasSgemmBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                  int k, const float *alpha, const float *const a[], int lda, const float *const b[],
                                  int ldb, const float *beta, float *const c[], int ldc, int n_batches) {
    RETURN_THAT_OF_REAL(handle, cublasSgemmBatched, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, n_batches)
    return cublasGemmBatchedEx(handle, op_a, op_b, m, n, k, alpha, reinterpret_cast<const void *const *>(a), CUDA_R_32F,
                               lda, reinterpret_cast<const void *const *>(b), CUDA_R_32F, ldb, beta,
                               reinterpret_cast<void *const *>(c), CUDA_R_32F, ldc, n_batches, CUBLAS_COMPUTE_32F,
                               CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasStrsmBatched(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill,
                                  cublasOperation_t op_a, cublasDiagType_t diagonal, int m, int n, const float *alpha,
                                  const float *const a[], int lda, float *const b[], int ldb, int n_batches) {
    RETURN_THAT_OF_REAL(handle, cublasStrsmBatched, side, fill, op_a, diagonal, m, n, alpha, a, lda, b, ldb, n_batches)
    if (m < 0 || n < 0 || n_batches < 0) return CUBLAS_STATUS_INVALID_VALUE;
    const bool is_known = side == CUBLAS_SIDE_RIGHT && fill == CUBLAS_FILL_MODE_UPPER && op_a == CUBLAS_OP_N &&
                          diagonal == CUBLAS_DIAG_NON_UNIT;
    if (!is_known || n_batches > int(matrices::MAX_GRID)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (m == 0 || n == 0 || n_batches == 0) return CUBLAS_STATUS_SUCCESS;
    matrices::solve(ours(handle)->stream, m, n, *alpha, a, lda, b, ldb, n_batches);
    return cudaGetLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
