# The engine of portable builds: Shimmy's hook for every build, and what a C++ compiler without GCC's libraries needs.
# Read by CMake right after the project() call of the binding's source package (CMAKE_PROJECT_llama_cpp_INCLUDE).
include("${CMAKE_CURRENT_LIST_DIR}/../../kernels/engine.cmake")
enable_language(C)
set(SHIMMY_PARTS "${CMAKE_CURRENT_LIST_DIR}")

function(shimmy_make_portable)
    get_property(targets DIRECTORY "${CMAKE_SOURCE_DIR}/vendor/llama.cpp/ggml/src" PROPERTY BUILDSYSTEM_TARGETS)
    list(APPEND targets llama)
    list(FILTER targets EXCLUDE REGEX "-feats$")
    foreach (target ${targets})
        get_target_property(type ${target} TYPE)
        if (type MATCHES "SHARED_LIBRARY|MODULE_LIBRARY")
            target_sources(${target} PRIVATE "${SHIMMY_PARTS}/unload.c")
            # Else the CPU variants would tell where they were built.
            set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN" BUILD_WITH_INSTALL_RPATH TRUE)
            target_link_options(${target} PRIVATE "-Wl,--version-script=${SHIMMY_PARTS}/own_new.map")
        endif()
        if (target MATCHES "^ggml-cpu-")
            target_sources(${target} PRIVATE "${SHIMMY_PARTS}/threads.c")
            target_include_directories(${target} PRIVATE "${SHIMMY_PARTS}")
            target_compile_definitions(${target} PRIVATE GGML_USE_OPENMP)
            target_compile_options(${target} PRIVATE -fopenmp)
        endif()
    endforeach()
    # Each CPU variant has threads of its own, which no other library may find.
    set_source_files_properties("${SHIMMY_PARTS}/threads.c" PROPERTIES COMPILE_OPTIONS -fvisibility=hidden)
endfunction()
cmake_language(DEFER CALL shimmy_make_portable)
