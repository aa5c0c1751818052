"""CPU variants that suit a processor's flags and do not work: libraries around a real one, made by the compiler."""

import subprocess
from pathlib import Path

from shimmy.engine.llama.binding import LIBRARY_FOLDER

# Positions of function pointers in the structures of ggml-backend-impl.h.
_SOURCE = """
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

enum { GET_DEVICE = 3, INIT_BACKEND = 5, GRAPH_COMPUTE = 13 };

extern void *ggml_graph_node(void *graph, int index);
extern void ggml_backend_tensor_get(void *tensor, void *data, size_t offset, size_t size);
extern void ggml_backend_tensor_set(void *tensor, const void *data, size_t offset, size_t size);

static void *(*init_backend)(void *device, const char *params);
static int (*graph_compute)(void *backend, void *graph);

static int compute(void *backend, void *graph) {
    BEFORE
    int status = graph_compute(backend, graph);
    AFTER
    return status;
}

static void *init(void *device, const char *params) {
    void **backend = init_backend(device, params);
    graph_compute = (int (*)(void *, void *)) backend[GRAPH_COMPUTE];
    backend[GRAPH_COMPUTE] = (void *) compute;
    return backend;
}

int ggml_backend_score(void) { return SCORE; }

void *ggml_backend_init(void) {
    void *real = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    void **registry = ((void *(*)(void)) dlsym(real, "ggml_backend_init"))();
    void **device = ((void *(*)(void *, size_t)) registry[GET_DEVICE])(registry, 0);
    init_backend = (void *(*)(void *, const char *)) device[INIT_BACKEND];
    device[INIT_BACKEND] = (void *) init;
    return registry;
}
"""

# What each does before and after its computation.
SOUND = ("", "")
ABORTS = ("raise(SIGILL);", "")
SLEEPS = ("pause();", "")
SPINS = ("for (volatile int i = 0;; i++) { }", "")
# The first number of one of the results is another one.
_CHANGE = """
    float first;
    void *node = ggml_graph_node(graph, 11);
    ggml_backend_tensor_get(node, &first, 0, 4);
    first = OTHER;
    ggml_backend_tensor_set(node, &first, 0, 4);
"""
MISCALCULATES = ("", _CHANGE.replace("OTHER", "1.25f * first + 3"))
GIVES_NO_NUMBERS = ("", _CHANGE.replace("OTHER", "first / 0.0f - first / 0.0f"))


def write_variant(path: Path, kind: tuple[str, str], real: str | Path, *, score: int = 1) -> Path:
    """A library at `path` that computes as the variant in `real` does, but for what its kind does before and after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text(_SOURCE)
    defines = {"REAL": f'"{real}"', "SCORE": score, "BEFORE": kind[0], "AFTER": kind[1]}
    base = ["-L", str(LIBRARY_FOLDER), "-l:libggml-base.so.0", f"-Wl,-rpath,{LIBRARY_FOLDER}"]
    base.append("-Wl,-z,nodelete")  # ggml unloads what brings a backend that it has, and that points here by then
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-w",
        *(f"-D{name}={value}".replace("\n", " ") for name, value in defines.items()),
    ]
    subprocess.run([*command, "-o", path, source, *base], check=True)
    source.unlink()
    return path
