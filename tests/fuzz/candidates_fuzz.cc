// Hostile offers of candidates: refused, or the ranks decide on them. The first bytes say how the
// row is sampled.
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/decode/candidates.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  if (size < 4) return 0;
  SamplingParams params;
  params.temperature = data[0] / 64.0;
  params.top_k = data[1] % 8;
  if (data[2] % 2 == 1) params.top_p = 0.9;
  if (data[2] / 2 % 2 == 1) params.min_p = 0.1;
  params.logprobs = data[3] % 4 - 1;
  // Two ranks: what is missing of the bytes is zero.
  std::vector<std::byte> bytes(2 * OfferBytes(params));
  const auto sent = std::as_bytes(std::span(data, size).subspan(4));
  std::copy_n(sent.begin(), std::min(sent.size(), bytes.size()), bytes.begin());
  std::vector<RowOffer> offers(2);
  for (size_t i = 0; i < offers.size(); ++i) {
    const auto own = std::span(bytes).subspan(i * OfferBytes(params), OfferBytes(params));
    if (!DecodeOffer(own, params, &offers[i]).ok()) return 0;
  }
  SampledToken token;
  if (Decide(params, offers, 7, &token) == Decision::kChosen)
    LOCKSTEP_CHECK(token.best.size() <= static_cast<size_t>(std::max(params.logprobs, 0)));
  return 0;
}
