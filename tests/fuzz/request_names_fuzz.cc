// What strangers call their requests and traces: only what can be repeated in heads and logs is
// taken. Seeds: tests/fuzz/seeds/request_names.
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/serve/call.h"

namespace lockstep {
namespace {

void CheckHex(std::string_view text, size_t digits) {
  LOCKSTEP_CHECK(text.size() == digits);
  for (const char c : text) LOCKSTEP_CHECK((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'));
}

}  // namespace
}  // namespace lockstep

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (lockstep::IsRequestId(text)) {
    LOCKSTEP_CHECK(!text.empty() && text.size() <= 128);
    for (const char c : text)
      LOCKSTEP_CHECK(std::isgraph(static_cast<unsigned char>(c)) && c != '"' && c != '\\');
  }
  if (const auto parent = lockstep::ParseTraceParent(text); parent.has_value()) {
    lockstep::CheckHex(parent->trace, 32);
    lockstep::CheckHex(parent->flags, 2);
    LOCKSTEP_CHECK(text.find(parent->trace) == 3);
  }
  return 0;
}
