# Read by CMake right after the project() call of the binding's source package (CMAKE_PROJECT_llama_cpp_INCLUDE).

# The package forces LLAMA_BUILD_COMMON on, as a cache entry. A normal variable of the same name wins over that entry
# (CMP0126). libllama-common exports no C function.
set(LLAMA_BUILD_COMMON OFF)

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
    foreach (target ${targets})
        target_sources(${target} PRIVATE "${SHIMMY_KERNELS}")
        target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${SHIMMY_AMX_HEADER}\">")
        # With `defs`, a name that is not there any more fails here and not when the library is loaded.
        target_link_options(${target} PRIVATE "-Wl,--wrap=llamafile_sgemm" "-Wl,-z,defs")
    endforeach()
endfunction()
cmake_language(DEFER CALL shimmy_add_kernels)
