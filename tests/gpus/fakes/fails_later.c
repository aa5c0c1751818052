/* The loader of vulkan.c, which tells of its devices as FAKE_DEVICES says, and then does what FAKE_LATER says when the
 * engine opens it: abort, hang, or nothing that would be of use. The engine begins with vkEnumerateInstanceVersion. */
#include "vulkan.c"

static int32_t begin(uint32_t *version)
{
    const char *mode = getenv("FAKE_LATER");

    if (mode != NULL && strcmp(mode, "abort") == 0) {
        abort();
    }
    while (mode != NULL && strcmp(mode, "hang") == 0) {
        pause();
    }
    *version = 0;
    return -3; /* VK_ERROR_INITIALIZATION_FAILED */
}

void *vkGetInstanceProcAddr(void *instance, const char *name)
{
    return strcmp(name, "vkEnumerateInstanceVersion") == 0 ? (void *)begin : NULL;
}

void *vkGetDeviceProcAddr(void *device, const char *name)
{
    return NULL;
}

void vkCmdCopyBuffer(void *commands, void *from, void *to, uint32_t count, const void *regions)
{
}
