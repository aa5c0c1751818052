// Included by the compiler in front of each source of a CPU variant with AMX (`-include`, see engine.cmake).
//
// GCC up to 12.3 and 13.2 declares `_tile_loadconfig` and `_tile_storeconfig` as reading and writing 8 bytes where the
// instructions take 64 (GCC bug 114098), so the optimiser drops what ggml_tile_config_init stores in the other 56: the
// tiles are left without rows, and the first tile instruction raises SIGILL. These say what the instructions do.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__AMX_TILE__)
#include <immintrin.h>

static inline __attribute__((always_inline)) void shimmy_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])config));
}

static inline __attribute__((always_inline)) void shimmy_tile_storeconfig(void *config) {
    __asm__ volatile("sttilecfg\t%X0" : "=m"(*(char(*)[64])config));
}

#define _tile_loadconfig shimmy_tile_loadconfig
#define _tile_storeconfig shimmy_tile_storeconfig
#endif
