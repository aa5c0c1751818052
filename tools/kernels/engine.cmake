# Read by CMake right after the project() call of the binding's source package (CMAKE_PROJECT_llama_cpp_INCLUDE).

# The package forces LLAMA_BUILD_COMMON on, as a cache entry. A normal variable of the same name wins over that entry
# (CMP0126). libllama-common exports no C function.
set(LLAMA_BUILD_COMMON OFF)

# ggml compiles all of its CPU variants or none. Its list asks here instead, and where SHIMMY_CPU_VARIANT names one, that
# is the only one.
function(shimmy_add_cpu_variant name)
    if (NOT SHIMMY_CPU_VARIANT OR name STREQUAL SHIMMY_CPU_VARIANT)
        ggml_add_cpu_backend_variant(${name} ${ARGN})
    endif()
endfunction()
set(SHIMMY_LIST "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp/ggml/src/CMakeLists.txt")
file(READ "${SHIMMY_LIST}" SHIMMY_LIST_BEFORE)
string(REPLACE " ggml_add_cpu_backend_variant(" " shimmy_add_cpu_variant(" SHIMMY_LIST_AFTER "${SHIMMY_LIST_BEFORE}")
if (NOT SHIMMY_LIST_AFTER STREQUAL SHIMMY_LIST_BEFORE)
    file(WRITE "${SHIMMY_LIST}" "${SHIMMY_LIST_AFTER}")
endif()

# Our kernels go into each CPU variant, in front of those that ggml would ask. The variants exist when all is read.
set(SHIMMY_KERNELS "${CMAKE_CURRENT_LIST_DIR}/quantized_rows.cpp")
# What the compiler's own headers declare wrongly.
set(SHIMMY_AMX_HEADER "${CMAKE_CURRENT_LIST_DIR}/amx_tile_config.h")

function(shimmy_add_kernels)
    get_property(targets DIRECTORY "${CMAKE_SOURCE_DIR}/vendor/llama.cpp/ggml/src" PROPERTY BUILDSYSTEM_TARGETS)
    list(FILTER targets INCLUDE REGEX "^ggml-cpu-")
    list(FILTER targets EXCLUDE REGEX "-feats$")
    if (NOT targets)
        message(FATAL_ERROR "ggml has no CPU variants to put Shimmy's kernels into")
    endif()
    list(LENGTH targets n_targets)
    if (SHIMMY_CPU_VARIANT AND NOT n_targets EQUAL 1)
        message(FATAL_ERROR "of one CPU variant, `${SHIMMY_CPU_VARIANT}`, there are ${n_targets} targets")
    endif()
    foreach (target ${targets})
        target_sources(${target} PRIVATE "${SHIMMY_KERNELS}")
        target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${SHIMMY_AMX_HEADER}\">")
        # With `defs`, a name that is not there any more fails here and not when the library is loaded.
        target_link_options(${target} PRIVATE "-Wl,--wrap=llamafile_sgemm" "-Wl,-z,defs")
    endforeach()
endfunction()
cmake_language(DEFER CALL shimmy_add_kernels)
