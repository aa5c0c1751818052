/* Attention kernels for GPUs without tensor cores, which the library does not have: no GPU that it is for is given one,
 * see ggml_cuda_get_best_fattn_kernel, but for heads of 40 and 72 values. They would be a tenth of it. */
struct ggml_backend_cuda_context;
struct ggml_tensor;

extern "C" [[noreturn]] void ggml_abort(const char *file, int line, const char *format, ...);

template <int KEYS, int VALUES>
void ggml_cuda_flash_attn_ext_tile_case(ggml_backend_cuda_context &, ggml_tensor *) {
    ggml_abort("unused_kernels.cpp", __LINE__, "this library has no attention kernel for GPUs without tensor cores");
}

#define UNUSED(keys, values)                                              \
    template void ggml_cuda_flash_attn_ext_tile_case<keys, values>(ggml_backend_cuda_context &, ggml_tensor *);

UNUSED(64, 64)
UNUSED(80, 80)
UNUSED(96, 96)
UNUSED(112, 112)
UNUSED(128, 128)
UNUSED(192, 128)
UNUSED(256, 256)
UNUSED(320, 256)
UNUSED(512, 512)
UNUSED(576, 512)
