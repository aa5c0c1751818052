/* The eleven functions of NVIDIA's driver that ggml's CUDA backend calls by name, for its pool of virtual memory, over a
 * driver that is opened with the first call, not linked: the library can be loaded on machines without one. */
#include <dlfcn.h>
#include <stddef.h>

#include <cuda.h>

static void *find(const char *name) {
    static void *library; /* two threads that open it at once get the same */
    if (!library) library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    return library ? dlsym(library, name) : NULL;
}

#define FORWARD(name, parameters, ...)                                              \
    CUresult CUDAAPI name parameters {                                              \
        static CUresult(CUDAAPI * function) parameters;                             \
        if (!function) *(void **)&function = find(#name);                           \
        return function ? function(__VA_ARGS__) : CUDA_ERROR_SHARED_OBJECT_INIT_FAILED; \
    }

FORWARD(cuDeviceGet, (CUdevice * a, int b), a, b)
FORWARD(cuDeviceGetAttribute, (int *a, CUdevice_attribute b, CUdevice c), a, b, c)
FORWARD(cuGetErrorString, (CUresult a, const char **b), a, b)
FORWARD(cuMemAddressFree, (CUdeviceptr a, size_t b), a, b)
FORWARD(cuMemAddressReserve, (CUdeviceptr * a, size_t b, size_t c, CUdeviceptr d, unsigned long long e), a, b, c, d, e)
FORWARD(cuMemCreate,
        (CUmemGenericAllocationHandle * a, size_t b, const CUmemAllocationProp *c, unsigned long long d), a, b, c, d)
FORWARD(cuMemGetAllocationGranularity,
        (size_t *a, const CUmemAllocationProp *b, CUmemAllocationGranularity_flags c), a, b, c)
FORWARD(cuMemMap, (CUdeviceptr a, size_t b, size_t c, CUmemGenericAllocationHandle d, unsigned long long e), a, b, c, d,
        e)
FORWARD(cuMemRelease, (CUmemGenericAllocationHandle a), a)
FORWARD(cuMemSetAccess, (CUdeviceptr a, size_t b, const CUmemAccessDesc *c, size_t d), a, b, c, d)
FORWARD(cuMemUnmap, (CUdeviceptr a, size_t b), a, b)
