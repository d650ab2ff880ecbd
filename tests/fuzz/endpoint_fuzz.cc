// What rank 0 says of where it listens: an address that is accepted means the same when it is
// written again.
#include <string_view>

#include "runtime/base/check.h"
#include "transport/socket.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  const auto endpoint = lockstep::ParseEndpoint({reinterpret_cast<const char*>(data), size});
  if (!endpoint.ok()) return 0;
  const auto again = lockstep::ParseEndpoint(endpoint->Text());
  LOCKSTEP_CHECK(again.ok() && again->host == endpoint->host && again->port == endpoint->port);
  return 0;
}
