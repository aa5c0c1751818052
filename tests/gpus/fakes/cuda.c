/* A libcuda.so.1 that does what variables say:
 *   FAKE_CUDA          FUNCTION=abort, FUNCTION=hang or FUNCTION=NUMBER (a CUresult): what that function does
 *   FAKE_CUDA_VERSION  of the driver, as 13000 (the default) for 13.0
 *   FAKE_CUDA_GPUS     `name,major,minor,MiB,integrated,uuid` with semicolons between them; each byte of the uuid is that
 * It gets no further than the counting of devices with CUDA's runtime library, which asks for functions without names. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAILED = 999, NO_DEVICE = 100, NOT_FOUND = 500, INTEGRATED = 18, MAJOR = 75, MINOR = 76 };

static int done(const char *function) {
    const char *wanted = getenv("FAKE_CUDA");
    size_t length = strlen(function);
    if (!wanted || strncmp(wanted, function, length) || wanted[length] != '=') return 0;
    wanted += length + 1;
    if (!strcmp(wanted, "abort")) abort();
    while (!strcmp(wanted, "hang")) pause();
    return atoi(wanted);
}

struct gpu {
    char name[64];
    int major, minor, integrated;
    unsigned mib, uuid;
};

static int gpus(struct gpu *into) {
    static char text[4096];
    const char *setting = getenv("FAKE_CUDA_GPUS");
    int n = 0;
    strncpy(text, setting ? setting : "", sizeof text - 1);
    for (char *at = text, *end; *at; at = end + (*end == ';')) {
        struct gpu *gpu = &into[n++];
        end = strchrnul(at, ';');
        if (sscanf(at, "%63[^,],%d,%d,%u,%d,%x", gpu->name, &gpu->major, &gpu->minor, &gpu->mib, &gpu->integrated,
                   &gpu->uuid) != 6)
            abort();
    }
    return n;
}

static struct gpu gpu(int device) {
    static struct gpu all[128];
    gpus(all);
    return all[device];
}

int cuDriverGetVersion(int *version) {
    const char *setting = getenv("FAKE_CUDA_VERSION");
    *version = setting ? atoi(setting) : 13000;
    return done("cuDriverGetVersion");
}

int cuInit(unsigned flags) {
    (void)flags;
    struct gpu all[128];
    int result = done("cuInit");
    return result ? result : gpus(all) ? 0 : NO_DEVICE;
}

int cuDeviceGetCount(int *count) {
    struct gpu all[128];
    *count = gpus(all);
    return done("cuDeviceGetCount");
}

int cuDeviceGet(int *device, int index) {
    *device = index;
    return done("cuDeviceGet");
}

int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, gpu(device).name, size);
    return done("cuDeviceGetName");
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    struct gpu of = gpu(device);
    *value = attribute == MAJOR ? of.major : attribute == MINOR ? of.minor : attribute == INTEGRATED ? of.integrated : 0;
    return done("cuDeviceGetAttribute");
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = (size_t)gpu(device).mib << 20;
    return done("cuDeviceTotalMem_v2");
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    memset(uuid, gpu(device).uuid, 16);
    return done("cuDeviceGetUuid_v2");
}

/* What CUDA's runtime library asks for. */
static int fails(void) { return FAILED; }

int cuGetExportTable(const void **table, const void *id) {
    (void)table, (void)id;
    return FAILED;
}

static const struct {
    const char *name;
    void *function;
} known[] = {{"cuInit", (void *)cuInit},
             {"cuDriverGetVersion", (void *)cuDriverGetVersion},
             {"cuDeviceGetCount", (void *)cuDeviceGetCount},
             {"cuDeviceGet", (void *)cuDeviceGet},
             {"cuGetExportTable", (void *)cuGetExportTable}};

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    (void)version, (void)flags;
    *function = (void *)fails;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!strcmp(known[i].name, name)) *function = known[i].function;
    }
    if (status) *status = 0;
    return 0;
}

int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
