// Hostile answers of file servers: lines of a head, an empty one, the body; what is accepted must
// be what was asked for. The first bytes say what that was.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/weights/http_answer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  if (size < 3) return 0;
  std::vector<std::byte> out(1 + data[0]);
  HttpRequest request;
  request.name = "model.safetensors";
  request.offset = data[1];
  request.out = out;
  if (data[2] % 2 == 1) request.size_bytes = request.offset + out.size() + data[2] / 2;
  if (data[2] % 16 == 15 && out.size() % 4 == 0) {
    request.piece_bytes = 4;
    request.stride = 9;
  }
  std::string_view text(reinterpret_cast<const char*>(data) + 3, size - 3);
  HttpAnswer answer(request);
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end == text.npos ? end : end + 1);
    answer.TakeHeader(line);
    text.remove_prefix(line.size());
    if (line == "\r\n") break;
  }
  (void)answer.TakeBody(std::as_bytes(std::span(text)));
  if (!answer.End(data[2] % 4 < 2, "the connection broke").ok()) return 0;
  LOCKSTEP_CHECK(answer.bytes() <= out.size() && answer.bytes() <= text.size());
  if (request.size_bytes != kUnknownBytes)
    LOCKSTEP_CHECK(answer.bytes() == out.size() && answer.size_bytes() == request.size_bytes);
  return 0;
}
