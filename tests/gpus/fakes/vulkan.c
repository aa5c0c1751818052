/* A Vulkan loader with drivers that do what FAKE_VULKAN says. FAKE_DEVICES has a device each between semicolons:
 * type, minor number of Vulkan, 16-bit storage, MiB, free MiB (-1: not told), vendor, driver, the byte of its UUID, name.
 * The structures are those of vulkan_core.h, as far as they are asked for. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_DEVICES 100

struct chained { uint32_t type; struct chained *next; };
struct device {
    unsigned kind, minor, storage16, mib, vendor, driver, uuid;
    int free_mib;
    char name[256];
};
static struct device devices[MAX_DEVICES];
static uint32_t n_devices;

/* Of several drivers only those fail that have FAKE_FAULTY in their name. */
static int is(const char *mode)
{
    const char *set = getenv("FAKE_VULKAN"), *faulty = getenv("FAKE_FAULTY"), *drivers = getenv("VK_DRIVER_FILES");
    int is_good = faulty != NULL && drivers != NULL && strstr(drivers, faulty) == NULL;
    return set != NULL && strcmp(set, mode) == 0 && !is_good;
}

int32_t vkEnumerateInstanceVersion(uint32_t *version)
{
    *version = 1 << 22 | (is("old") ? 1 : 3) << 12 | 7;
    return 0;
}

int32_t vkCreateInstance(const void *info, const void *allocator, void **instance)
{
    const char *text = getenv("FAKE_DEVICES");

    if (is("abort")) {
        abort();
    }
    if (is("exit")) {
        exit(7);
    }
    while (is("hang")) {
        pause();
    }
    if (is("fail")) {
        return -9; /* VK_ERROR_INCOMPATIBLE_DRIVER */
    }
    if (is("no memory")) {
        return -1;
    }
    if (is("noise")) {
        printf("{\"devices\": [], \"reason\": \"what a driver prints\"}\n");
        fflush(stdout);
    }
    while (text != NULL && n_devices < MAX_DEVICES) {
        struct device *d = &devices[n_devices];
        if (sscanf(text, "%u,%u,%u,%u,%d,%x,%u,%u,%255[^;]", &d->kind, &d->minor, &d->storage16, &d->mib, &d->free_mib,
                   &d->vendor, &d->driver, &d->uuid, d->name) == 9) {
            n_devices++;
        }
        text = strchr(text, ';');
        text = text ? text + 1 : NULL;
    }
    *instance = devices;
    return 0;
}

int32_t vkEnumeratePhysicalDevices(void *instance, uint32_t *count, void **handles)
{
    uint32_t i;

    for (i = 0; i < n_devices && i < *count; i++) {
        handles[i] = &devices[i];
    }
    *count = is("nonsense") ? 0xffffffff : i;
    return i < n_devices ? 5 : 0; /* VK_INCOMPLETE */
}

void vkGetPhysicalDeviceProperties(struct device *d, char *properties)
{
    uint32_t head[5] = {1 << 22 | d->minor << 12 | 9, 0, d->vendor, 0, d->kind};

    memcpy(properties, head, sizeof(head));
    memcpy(properties + 20, d->name, sizeof(d->name));
}

static struct chained *found(void *chain, uint32_t type)
{
    struct chained *each;

    for (each = chain; each != NULL && each->type != type; each = each->next) {
    }
    return each;
}

void vkGetPhysicalDeviceProperties2(struct device *d, void *chain)
{
    char *driver = (char *)found(chain, 1000196000), *identity = (char *)found(chain, 1000071004);

    vkGetPhysicalDeviceProperties(d, (char *)chain + 16);
    memcpy(driver + 16, &d->driver, 4);
    strcpy(driver + 20, "fake");
    strcpy(driver + 276, "1.2.3");
    memset(identity + 16, d->uuid, 16);
}

void vkGetPhysicalDeviceFeatures2(struct device *d, void *chain)
{
    memcpy((char *)found(chain, 1000083000) + 16, &d->storage16, 4);
}

int32_t vkEnumerateDeviceExtensionProperties(struct device *d, const char *layer, uint32_t *count, char *extensions)
{
    *count = d->free_mib >= 0;
    strcpy(extensions, d->free_mib >= 0 ? "VK_EXT_memory_budget" : "");
    return 0;
}

/* Two heaps: the system's, of 4 GiB, and the device's own. */
void vkGetPhysicalDeviceMemoryProperties(struct device *d, char *memory)
{
    uint32_t n_heaps = is("nonsense") ? 0xffffffff : 2, local = 1;
    uint64_t system_bytes = 1ull << 32, bytes = (uint64_t)d->mib << 20;

    if (is("nonsense")) {
        memset(memory, 0xff, 264 + 16 * 16);
    }
    memcpy(memory + 260, &n_heaps, 4);
    if (!is("nonsense")) {
        memcpy(memory + 264, &system_bytes, 8);
        memcpy(memory + 280, &bytes, 8);
        memcpy(memory + 288, &local, 4);
    }
}

void vkGetPhysicalDeviceMemoryProperties2(struct device *d, void *chain)
{
    char *budget = (char *)found(chain, 1000237000);
    uint64_t used = 1 << 20, of_system = 1ull << 32, of_device = ((uint64_t)d->free_mib << 20) + used;

    vkGetPhysicalDeviceMemoryProperties(d, (char *)chain + 16);
    memcpy(budget + 16, &of_system, 8);
    memcpy(budget + 24, &of_device, 8);
    memcpy(budget + 16 + 128 + 8, &used, 8);
}
