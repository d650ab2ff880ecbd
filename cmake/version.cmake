# The source version that ranks compare: release, commit, and a mark when the tree was changed.
find_package(Git QUIET)
set(commit "unknown")
if(GIT_FOUND AND EXISTS ${PROJECT_SOURCE_DIR}/.git)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${PROJECT_SOURCE_DIR} describe --always --dirty --abbrev=12 --exclude *
                  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/runtime/base/version_generated.h CONTENT
"#pragma once
#define LOCKSTEP_VERSION \"${PROJECT_VERSION}\"
#define LOCKSTEP_COMMIT \"${commit}\"
")
