# Kernels for NVIDIA's GPUs (runtime/kernels/cuda): nvcc compiles them for every architecture below, and for later ones as
# PTX that their driver compiles. By commands of our own and not as a language of CMake's, since the whole build's options
# (-ffp-contract=off, sanitizers) are none of nvcc's. CUDA's runtime is linked statically: the program starts where neither
# it nor a driver is. Needs CUDA 13.
set(LOCKSTEP_CUDA_ARCHITECTURES 90 100 120 121 CACHE STRING "GPU architectures to compile kernels for")
set(LOCKSTEP_CUDA_FOUND OFF)

set(cuda_hints ENV CUDA_PATH ENV CUDA_HOME /usr/local/cuda)
if(LOCKSTEP_CUDA AND NOT LOCKSTEP_SANITIZE AND NOT LOCKSTEP_FUZZ AND NOT CMAKE_CROSSCOMPILING)
  find_program(LOCKSTEP_NVCC nvcc HINTS ${cuda_hints} PATH_SUFFIXES bin)
  find_path(LOCKSTEP_CUDA_RUNTIME_INCLUDE cuda_runtime.h HINTS ${cuda_hints} PATH_SUFFIXES include)
  find_library(LOCKSTEP_CUDART cudart_static HINTS ${cuda_hints} PATH_SUFFIXES lib64 lib)
  mark_as_advanced(LOCKSTEP_NVCC LOCKSTEP_CUDA_RUNTIME_INCLUDE LOCKSTEP_CUDART)
  if(LOCKSTEP_NVCC AND LOCKSTEP_CUDA_RUNTIME_INCLUDE AND LOCKSTEP_CUDART)
    file(STRINGS ${LOCKSTEP_CUDA_RUNTIME_INCLUDE}/cuda_runtime_api.h cuda_version REGEX "define CUDART_VERSION +[0-9]+")
    string(REGEX REPLACE ".*CUDART_VERSION +([0-9]+).*" "\\1" cuda_version "${cuda_version}")
    if(cuda_version GREATER_EQUAL 13000)
      set(LOCKSTEP_CUDA_FOUND ON)
    else()
      message(STATUS "CUDA ${cuda_version} is older than 13000: without kernels for GPUs")
    endif()
  endif()
endif()

if(LOCKSTEP_CUDA_FOUND)
  list(APPEND LOCKSTEP_EXCLUDED "runtime/kernels/cuda/absent\\.cc")
  list(APPEND LOCKSTEP_PACKAGES_runtime_kernels ${LOCKSTEP_CUDART} ${CMAKE_DL_LIBS} Threads::Threads rt)
  file(GLOB cuda_hosts CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/runtime/kernels/cuda/cuda_*.cc)
  set_source_files_properties(${cuda_hosts} PROPERTIES COMPILE_OPTIONS "-isystem;${LOCKSTEP_CUDA_RUNTIME_INCLUDE}")
else()
  message(STATUS "no CUDA 13 (nvcc, cudart_static), or not wanted: without kernels for GPUs")
  list(APPEND LOCKSTEP_EXCLUDED "runtime/kernels/cuda/cuda_[^/]*\\.cc")
endif()

# Adds the kernels' objects to the library of the op table.
function(lockstep_add_cuda_kernels)
  if(NOT LOCKSTEP_CUDA_FOUND)
    return()
  endif()
  # Fused where it is written, and nowhere else: the sums have a specified order and rounding (docs/numerics.md).
  set(architectures ${LOCKSTEP_CUDA_ARCHITECTURES})
  if(LOCKSTEP_QUICK)
    set(architectures 121)  # test-full.sh has all
  endif()
  set(options -std=c++20 -O3 -fmad=false -Xptxas -v -Werror all-warnings -I${PROJECT_SOURCE_DIR})
  foreach(architecture IN LISTS architectures)
    list(APPEND options -gencode arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  if(NOT LOCKSTEP_QUICK)
    list(GET architectures 0 oldest)
    list(APPEND options -gencode arch=compute_${oldest},code=compute_${oldest})
  endif()
  set(folder runtime/kernels/cuda)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.cu)
  file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/${folder})
  foreach(source IN LISTS sources)
    get_filename_component(name ${source} NAME)
    set(object ${PROJECT_BINARY_DIR}/${folder}/${name}.o)
    # What ptxas says of registers and spills is kept for bench/cuda_resources.py.
    add_custom_command(
      OUTPUT ${object} BYPRODUCTS ${object}.ptxas
      COMMAND sh -c [=["$@" 2> "$0" || { cat "$0" >&2; exit 1; }]=] ${object}.ptxas
              ${LOCKSTEP_NVCC} ${options} -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source}
      DEPFILE ${object}.d
      COMMENT "nvcc ${folder}/${name}"
      VERBATIM)
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(lockstep_kernels PRIVATE ${object})
  endforeach()
endfunction()
