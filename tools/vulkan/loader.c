/* The four Vulkan functions that ggml's backend calls by name, over a loader that is opened, not linked: the program
 * starts on machines without one.
 *
 * Without a loader, vkEnumerateInstanceVersion answers an error: the backend then throws vk::SystemError, which its
 * registration catches. (A NULL in its place would be called: Vulkan-Hpp does not check.) */
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#define INNER __attribute__((visibility("hidden")))

static pthread_once_t once = PTHREAD_ONCE_INIT;
static PFN_vkGetInstanceProcAddr get_instance;
static PFN_vkGetDeviceProcAddr get_device;
static PFN_vkCmdCopyBuffer copy_buffer;
static PFN_vkGetPhysicalDeviceFeatures2 features;

static void open_loader(void) {
    void *loader = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!loader) return;
    get_instance = (PFN_vkGetInstanceProcAddr)dlsym(loader, "vkGetInstanceProcAddr");
    get_device = (PFN_vkGetDeviceProcAddr)dlsym(loader, "vkGetDeviceProcAddr");
    copy_buffer = (PFN_vkCmdCopyBuffer)dlsym(loader, "vkCmdCopyBuffer");
    features = (PFN_vkGetPhysicalDeviceFeatures2)dlsym(loader, "vkGetPhysicalDeviceFeatures2");
}

static VKAPI_ATTR VkResult VKAPI_CALL no_loader(uint32_t *version) {
    *version = 0;
    return VK_ERROR_INITIALIZATION_FAILED;
}

INNER VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char *name) {
    pthread_once(&once, open_loader);
    if (get_instance && get_device && copy_buffer && features) return get_instance(instance, name);
    return strcmp(name, "vkEnumerateInstanceVersion") ? NULL : (PFN_vkVoidFunction)no_loader;
}

INNER VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetDeviceProcAddr(VkDevice device, const char *name) {
    return get_device(device, name);
}

INNER VKAPI_ATTR void VKAPI_CALL vkCmdCopyBuffer(VkCommandBuffer commands, VkBuffer from, VkBuffer to, uint32_t count,
                                                 const VkBufferCopy *regions) {
    copy_buffer(commands, from, to, count, regions);
}

INNER VKAPI_ATTR void VKAPI_CALL vkGetPhysicalDeviceFeatures2(VkPhysicalDevice device, VkPhysicalDeviceFeatures2 *out) {
    features(device, out);
}

/* What GCC's crtbeginS.o does and zig's libraries do not: run, and forget, the library's exit handlers when it is
 * closed. Without it a refused backend, which ggml closes, is a SIGSEGV at exit. */
extern void *__dso_handle;
extern void __cxa_finalize(void *);
__attribute__((destructor)) static void forget_handlers(void) { __cxa_finalize(&__dso_handle); }
