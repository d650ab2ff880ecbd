# Instruction sets of the CPU kernels: one source per op, compiled once per set, chosen at run time.
function(lockstep_kernel_flags)
  set(folder ${PROJECT_SOURCE_DIR}/runtime/kernels/cpu)
  file(GLOB sets CONFIGURE_DEPENDS ${folder}/isa_*.cc)
  if(LOCKSTEP_SANITIZE AND LOCKSTEP_QUICK)
    lockstep_kernels_of_release("${sets}")
    return()
  endif()
  # Sanitizers take minutes to compile AVX-512, and find nothing where it cannot run.
  set(avx512 ON)
  if(EXISTS /proc/cpuinfo)
    file(STRINGS /proc/cpuinfo avx512 REGEX "^flags.* avx512vl" LIMIT_COUNT 1)
  endif()
  foreach(source IN LISTS sets)
    # gcc 12 takes the undefined halves of AVX-512 intrinsics for uninitialized variables.
    set(flags -fno-math-errno -Wno-psabi -Wno-maybe-uninitialized)
    if(source MATCHES "avx512" AND NOT avx512 AND LOCKSTEP_SANITIZE)
      # The source is empty without the flags.
    elseif(source MATCHES "isa_(attention_)?avx512\\.cc$" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      list(APPEND flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512)
    elseif(source MATCHES "isa_avx512vnni\\.cc$" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      list(APPEND flags -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512)
    elseif(source MATCHES "isa_neon_dotprod\\.cc$" AND CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
      list(APPEND flags -march=armv8.2-a+dotprod)
    elseif(source MATCHES "isa_neon_i8mm\\.cc$" AND CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
      list(APPEND flags -march=armv8.2-a+dotprod+i8mm)
    elseif(source MATCHES "isa_(attention_)?avx2\\.cc$" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      list(APPEND flags -mavx2 -mfma -mf16c)
    endif()
    # Processors without AVX2 (the smallest of 2020 and older ones) are too slow for these models anyway: what they run is
    # not worth four minutes of -O3.
    if(source MATCHES "isa_(attention_)?baseline\\.cc$" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      list(APPEND flags -O1)
    endif()
    # Scheduling before registers are given out makes gcc keep more values than there are registers.
    if(source MATCHES "isa_neon_" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND flags -fno-schedule-insns)
    endif()
    # Sums put off until all their products are there do not fit into sixteen registers.
    if(source MATCHES "isa_avx2" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND flags -fno-tree-reassoc -fno-tree-ter)
    endif()
    if(source MATCHES "avx512" AND NOT avx512 AND LOCKSTEP_QUICK)
      list(APPEND flags -O0)
    endif()
    # Checks as calls, none that another makes too, and none of alignment: a third of the time to compile.
    if(LOCKSTEP_SANITIZE MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND flags --param=asan-instrumentation-with-call-threshold=0 -fno-sanitize=null,alignment,object-size)
    endif()
    set_source_files_properties(${source} TARGET_DIRECTORY lockstep_kernels PROPERTIES
      COMPILE_OPTIONS "${flags}" SKIP_PRECOMPILE_HEADERS ON)
  endforeach()
endfunction()

# Links the objects of the release build, which is there already, instead of compiling the sources again.
function(lockstep_kernels_of_release sources)
  set_source_files_properties(${sources} TARGET_DIRECTORY lockstep_kernels PROPERTIES HEADER_FILE_ONLY ON)
  foreach(source IN LISTS sources)
    file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR} ${source})
    set(object ${PROJECT_SOURCE_DIR}/build/release/CMakeFiles/lockstep_kernels.dir/${name}.o)
    set_source_files_properties(${object} TARGET_DIRECTORY lockstep_kernels PROPERTIES
      EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(lockstep_kernels PRIVATE ${object})
  endforeach()
endfunction()
