// Hostile probe.json files: parse or refuse, never crash.
#include <cstdint>
#include <string>

#include "tests/runtime/model/probe_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzProbe(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
