/* A backend of ggml's in the place of the one for CUDA: one GPU, in memory of its own, for which the engine's processor
 * computes. FAKE_BACKEND names a file; once that is there, it says what becomes of the next graph, and is removed:
 * `abort`, `segfault`, `hang`, `fail` (the engine is told of an error) or `no memory` (what CUDA does then).
 * FAKE_BACKEND_READS names a file that gets a line for each tensor that is copied from the GPU: its name and its bytes. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

enum { ALIGNMENT = 64, MIB = 1 << 20, MEMORY_MIB = 4096 };

static struct ggml_backend_device gpu;

static ggml_backend_dev_t processor(void)
{
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

/* -- memory ------------------------------------------------------------------------------------------------------- */

static void free_buffer(ggml_backend_buffer_t buffer)
{
    free(buffer->context);
}

static void *base(ggml_backend_buffer_t buffer)
{
    return buffer->context;
}

static void fill_tensor(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, uint8_t value, size_t at, size_t size)
{
    memset((char *)tensor->data + at, value, size);
}

static void set_tensor(ggml_backend_buffer_t buffer, struct ggml_tensor *tensor, const void *from, size_t at, size_t size)
{
    memcpy((char *)tensor->data + at, from, size);
}

static void get_tensor(ggml_backend_buffer_t buffer, const struct ggml_tensor *tensor, void *to, size_t at, size_t size)
{
    const char *path = getenv("FAKE_BACKEND_READS");
    FILE *file = path == NULL ? NULL : fopen(path, "a");

    memcpy(to, (const char *)tensor->data + at, size);
    if (file != NULL) {
        fprintf(file, "%s %zu\n", tensor->name, size);
        fclose(file);
    }
}

static void clear(ggml_backend_buffer_t buffer, uint8_t value)
{
    memset(buffer->context, value, buffer->size);
}

static ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t type, size_t size)
{
    static const struct ggml_backend_buffer_i functions = {
        .free_buffer = free_buffer,
        .get_base = base,
        .memset_tensor = fill_tensor,
        .set_tensor = set_tensor,
        .get_tensor = get_tensor,
        .clear = clear,
    };
    void *memory = aligned_alloc(ALIGNMENT, (size / ALIGNMENT + 1) * ALIGNMENT);

    return memory == NULL ? NULL : ggml_backend_buffer_init(type, functions, memory, size);
}

static const char *name_of_memory(ggml_backend_buffer_type_t type)
{
    return "CUDA0";
}

static size_t alignment(ggml_backend_buffer_type_t type)
{
    return ALIGNMENT;
}

static struct ggml_backend_buffer_type memory = {
    .iface = { .get_name = name_of_memory, .alloc_buffer = allocate, .get_alignment = alignment },
    .device = &gpu,
};

/* -- computing ---------------------------------------------------------------------------------------------------- */

static enum ggml_status do_as_told(void)
{
    const char *path = getenv("FAKE_BACKEND");
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    char told[16] = "";

    if (file == NULL) {
        return GGML_STATUS_SUCCESS;
    }
    told[fread(told, 1, sizeof told - 1, file)] = '\0';
    fclose(file);
    if (unlink(path) != 0) { /* another worker has taken it */
        return GGML_STATUS_SUCCESS;
    }
    if (strcmp(told, "abort") == 0) {
        GGML_ABORT("the fake device aborts");
    }
    if (strcmp(told, "no memory") == 0) { /* ggml_cuda_error */
        ggml_log_internal(GGML_LOG_LEVEL_ERROR, "CUDA error: out of memory\n");
        GGML_ABORT("CUDA error");
    }
    if (strcmp(told, "segfault") == 0) {
        raise(SIGSEGV);
    }
    while (strcmp(told, "hang") == 0) {
        pause();
    }
    return strcmp(told, "fail") == 0 ? GGML_STATUS_FAILED : GGML_STATUS_SUCCESS;
}

static const char *name_of_backend(ggml_backend_t backend)
{
    return "CUDA0";
}

static enum ggml_status compute(ggml_backend_t backend, struct ggml_cgraph *graph)
{
    enum ggml_status status = do_as_told();

    return status == GGML_STATUS_SUCCESS ? ggml_backend_graph_compute(backend->context, graph) : status;
}

static void free_backend(ggml_backend_t backend)
{
    ggml_backend_free(backend->context);
    free(backend);
}

static ggml_backend_t begin(ggml_backend_dev_t device, const char *parameters)
{
    static ggml_guid id = { 'f', 'a', 'k', 'e' };
    ggml_backend_t backend = calloc(1, sizeof *backend);

    if (backend != NULL) {
        backend->guid = &id;
        backend->iface.get_name = name_of_backend;
        backend->iface.free = free_backend;
        backend->iface.graph_compute = compute;
        backend->device = device;
        backend->context = ggml_backend_dev_init(processor(), NULL);
    }
    return backend;
}

/* -- the device --------------------------------------------------------------------------------------------------- */

static const char *name_of_device(ggml_backend_dev_t device)
{
    return "CUDA0";
}

static const char *description(ggml_backend_dev_t device)
{
    return "a GPU of the tests";
}

static void tell_memory(ggml_backend_dev_t device, size_t *free, size_t *total)
{
    *free = *total = (size_t)MEMORY_MIB * MIB;
}

static enum ggml_backend_dev_type type(ggml_backend_dev_t device)
{
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static void tell_properties(ggml_backend_dev_t device, struct ggml_backend_dev_props *properties)
{
    memset(properties, 0, sizeof *properties);
    properties->name = name_of_device(device);
    properties->description = description(device);
    properties->type = type(device);
    tell_memory(device, &properties->memory_free, &properties->memory_total);
}

static ggml_backend_buffer_type_t type_of_memory(ggml_backend_dev_t device)
{
    return &memory;
}

static bool computes(ggml_backend_dev_t device, const struct ggml_tensor *node)
{
    return ggml_backend_dev_supports_op(processor(), node);
}

static bool reads(ggml_backend_dev_t device, ggml_backend_buffer_type_t buffers)
{
    return buffers == &memory;
}

static const char *name_of_registry(ggml_backend_reg_t registry)
{
    return "CUDA";
}

static size_t count(ggml_backend_reg_t registry)
{
    return 1;
}

static ggml_backend_dev_t device_at(ggml_backend_reg_t registry, size_t index)
{
    return &gpu;
}

static struct ggml_backend_reg registry = {
    .api_version = GGML_BACKEND_API_VERSION,
    .iface = { .get_name = name_of_registry, .get_device_count = count, .get_device = device_at },
};

static struct ggml_backend_device gpu = {
    .iface = {
        .get_name = name_of_device,
        .get_description = description,
        .get_memory = tell_memory,
        .get_type = type,
        .get_props = tell_properties,
        .init_backend = begin,
        .get_buffer_type = type_of_memory,
        .supports_op = computes,
        .supports_buft = reads,
    },
    .reg = &registry,
};

__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void)
{
    return &registry;
}
