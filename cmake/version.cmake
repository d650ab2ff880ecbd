# What `lockstep version` prints and ranks compare: a digest over the sources, and the commit they come from. Both are
# read anew on every build (cmake -P this file), and the header is written only when one of them changed, so that a
# build after no change compiles nothing and a build after any change never keeps an old name.
if(NOT CMAKE_SCRIPT_MODE_FILE)
  # The target lockstep_base includes the header (runtime/base/version.cc alone).
  function(lockstep_add_version)
    set(header ${PROJECT_BINARY_DIR}/generated/runtime/base/version_generated.h)
    find_package(Git QUIET)
    add_custom_target(lockstep_version
      COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DHEADER=${header} -DVERSION=${PROJECT_VERSION}
              -DGIT=${GIT_EXECUTABLE} -P ${PROJECT_SOURCE_DIR}/cmake/version.cmake
      BYPRODUCTS ${header}
      COMMENT "Naming the sources"
      VERBATIM)
    add_dependencies(lockstep_base lockstep_version)
  endfunction()
  cmake_language(DEFER CALL lockstep_add_version)
  return()
endif()

cmake_minimum_required(VERSION 3.25)
# Everything that goes into the program, whatever machine it is built for; tests and benchmarks do not.
set(patterns ${SOURCE}/cmake/*.cmake ${SOURCE}/cmake/*.txt ${SOURCE}/configs/hardware/*.yaml)
foreach(folder runtime transport collectives proto launcher)
  foreach(suffix cc h cu cuh proto html json)
    list(APPEND patterns ${SOURCE}/${folder}/*.${suffix})
  endforeach()
endforeach()
file(GLOB_RECURSE sources RELATIVE ${SOURCE} ${patterns})
list(APPEND sources CMakeLists.txt)
list(SORT sources COMPARE STRING)
set(everything "")
foreach(source IN LISTS sources)
  file(SHA256 ${SOURCE}/${source} digest)
  string(APPEND everything "${digest} ${source}\n")
endforeach()
string(SHA256 digest "${everything}")
string(SUBSTRING ${digest} 0 12 digest)

set(commit "")
if(GIT AND EXISTS ${SOURCE}/.git)
  execute_process(COMMAND ${GIT} -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude *
                  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit)
  set(commit unknown)
endif()

set(content "#pragma once
#define LOCKSTEP_VERSION \"${VERSION}\"
#define LOCKSTEP_COMMIT \"${commit}\"
#define LOCKSTEP_SOURCE_DIGEST \"${digest}\"
")
set(before "")
if(EXISTS ${HEADER})
  file(READ ${HEADER} before)
endif()
if(NOT before STREQUAL content)
  file(WRITE ${HEADER} "${content}")
endif()
