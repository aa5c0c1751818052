/* The four Vulkan functions that ggml's backend calls by name, over a loader that is opened, not linked: the program
 * starts on machines without one. And one fault of a driver kept from the backend (`update_whole_sets`).
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
static PFN_vkCreateDescriptorSetLayout create_layout;
static PFN_vkUpdateDescriptorSets update_sets;

static void open_loader(void) {
    void *loader = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!loader) return;
    get_instance = (PFN_vkGetInstanceProcAddr)dlsym(loader, "vkGetInstanceProcAddr");
    get_device = (PFN_vkGetDeviceProcAddr)dlsym(loader, "vkGetDeviceProcAddr");
    copy_buffer = (PFN_vkCmdCopyBuffer)dlsym(loader, "vkCmdCopyBuffer");
    features = (PFN_vkGetPhysicalDeviceFeatures2)dlsym(loader, "vkGetPhysicalDeviceFeatures2");
    create_layout = (PFN_vkCreateDescriptorSetLayout)dlsym(loader, "vkCreateDescriptorSetLayout");
    update_sets = (PFN_vkUpdateDescriptorSets)dlsym(loader, "vkUpdateDescriptorSets");
}

/* All sets of the backend have one layout, of as many buffers as its largest shader; those of other shaders stay in the
 * set as an earlier shader left them, although they may have been freed since. Vulkan allows that: no shader uses them.
 * llvmpipe takes them up all the same (Mesa 22.3), and a freed one is a damaged heap. So each write of a set's first
 * buffers is followed by one that has the first of them in the places of the others. */
enum { MOST_BUFFERS = 64 };
static _Atomic uint32_t n_buffers;

static VKAPI_ATTR VkResult VKAPI_CALL note_layout(VkDevice device, const VkDescriptorSetLayoutCreateInfo *info,
                                                  const VkAllocationCallbacks *allocator, VkDescriptorSetLayout *out) {
    n_buffers = info->bindingCount;
    return create_layout(device, info, allocator, out);
}

static VKAPI_ATTR void VKAPI_CALL update_whole_sets(VkDevice device, uint32_t n_writes,
                                                    const VkWriteDescriptorSet *writes, uint32_t n_copies,
                                                    const VkCopyDescriptorSet *copies) {
    update_sets(device, n_writes, writes, n_copies, copies);
    for (uint32_t i = 0; i < n_writes; i++) {
        VkWriteDescriptorSet rest = writes[i];
        if (rest.dstBinding || !rest.descriptorCount || rest.descriptorCount >= n_buffers || n_buffers > MOST_BUFFERS)
            continue;
        VkDescriptorBufferInfo first[MOST_BUFFERS];
        rest.dstBinding = rest.descriptorCount;
        rest.descriptorCount = n_buffers - rest.dstBinding;
        for (uint32_t j = 0; j < rest.descriptorCount; j++) first[j] = rest.pBufferInfo[0];
        rest.pBufferInfo = first;
        update_sets(device, 1, &rest, 0, NULL);
    }
}

static PFN_vkVoidFunction ours_or(PFN_vkVoidFunction found, const char *name) {
    if (!found || !create_layout || !update_sets) return found;
    if (!strcmp(name, "vkCreateDescriptorSetLayout")) return (PFN_vkVoidFunction)note_layout;
    if (!strcmp(name, "vkUpdateDescriptorSets")) return (PFN_vkVoidFunction)update_whole_sets;
    return found;
}

static VKAPI_ATTR VkResult VKAPI_CALL no_loader(uint32_t *version) {
    *version = 0;
    return VK_ERROR_INITIALIZATION_FAILED;
}

INNER VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char *name) {
    pthread_once(&once, open_loader);
    if (get_instance && get_device && copy_buffer && features) return ours_or(get_instance(instance, name), name);
    return strcmp(name, "vkEnumerateInstanceVersion") ? NULL : (PFN_vkVoidFunction)no_loader;
}

INNER VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetDeviceProcAddr(VkDevice device, const char *name) {
    return ours_or(get_device(device, name), name);
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
