# Headers that nearly every source includes, parsed once per build instead of once per source. A source still includes
# what it uses: builds with LOCKSTEP_PRECOMPILE=OFF find what it forgot (presets arm64 and fuzz; both in deploy/test-full.sh).
option(LOCKSTEP_PRECOMPILE "Precompiled headers" ON)

set(LOCKSTEP_PRECOMPILED
  <algorithm> <array> <atomic> <chrono> <cmath> <cstdint> <cstring> <filesystem> <functional> <map> <memory> <mutex>
  <optional> <span> <string> <string_view> <thread> <utility> <vector>
  <absl/status/status.h> <absl/status/statusor.h> <absl/strings/str_format.h>)
set(LOCKSTEP_PRECOMPILED_TESTS ${LOCKSTEP_PRECOMPILED} <fstream> <random> <gmock/gmock.h> <gtest/gtest.h>)

# The owner of the precompiled headers compiles them, and every other target with the same flags reuses them.
function(lockstep_precompile target)
  if(NOT LOCKSTEP_PRECOMPILE)
    return()
  endif()
  if(target STREQUAL lockstep_base)
    target_precompile_headers(${target} PRIVATE ${LOCKSTEP_PRECOMPILED})
  elseif(target STREQUAL lockstep_test_support)
    target_precompile_headers(${target} PRIVATE ${LOCKSTEP_PRECOMPILED_TESTS})
  elseif(target MATCHES "_test$")
    target_precompile_headers(${target} REUSE_FROM lockstep_test_support)
  else()
    target_precompile_headers(${target} REUSE_FROM lockstep_base)
  endif()
endfunction()
