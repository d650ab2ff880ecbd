#include "launcher/commands/burn_load.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/digest.h"
#include "runtime/base/split_mix.h"

namespace lockstep {
namespace {

constexpr uint64_t kPrefixes = 4;  // beginnings that prompts share
constexpr int64_t kShortPrompt = 24;
constexpr int64_t kSharedPrompt = 96;
constexpr int64_t kLongChunks = 3;
constexpr int64_t kShortAnswer = 8;
constexpr int64_t kLongAnswer = 64;
// Answers that are kept: memory must not grow by the watching itself.
constexpr size_t kKept = 4096;
// A prompt is at most this part of what fits, so that an answer does.
constexpr int64_t kPromptPart = 2;

}  // namespace

uint64_t BurnLoad::Value(uint64_t stream, uint64_t index) const {
  return MixBits(MixBits(shape_.seed + kGoldenGamma * (stream + 1)) + kGoldenGamma * (index + 1));
}

void BurnLoad::AppendTokens(uint64_t stream, int64_t count, std::vector<int32_t>* prompt) const {
  for (int64_t i = 0; i < count; ++i) {
    prompt->push_back(static_cast<int32_t>(Value(stream, static_cast<uint64_t>(i)) %
                                           static_cast<uint64_t>(shape_.vocab_size)));
  }
}

// A function of the seed and the number alone, so that an answer is enough to ask again.
BurnRequest BurnLoad::Make(uint64_t number) const {
  const uint64_t stream = 1 + kPrefixes + 2 * number;
  auto draw = [&, index = uint64_t{0}](uint64_t below) mutable {
    return Value(stream, index++) % below;
  };
  const int64_t longest = std::max<int64_t>(shape_.max_model_len / kPromptPart, 1);
  BurnRequest request{.number = number};
  const uint64_t kind = draw(8);
  int64_t own = 1 + static_cast<int64_t>(draw(kShortPrompt));
  if (kind < 2)
    AppendTokens(1 + draw(kPrefixes), std::min(kSharedPrompt, longest / 2), &request.prompt);
  if (kind == 2) own += kLongChunks * shape_.prefill_chunk;
  const auto begun = static_cast<int64_t>(request.prompt.size());
  AppendTokens(stream + 1, std::min(own, std::max<int64_t>(longest - begun, 1)), &request.prompt);
  const auto room = shape_.max_model_len - static_cast<int64_t>(request.prompt.size());
  const int64_t wanted =
      kShortAnswer + static_cast<int64_t>(draw(static_cast<uint64_t>(kLongAnswer - kShortAnswer)));
  request.max_tokens = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(room, 1));
  const bool samples = draw(3) == 0;
  request.sampling.temperature = samples ? 1 : 0;
  if (samples && draw(2) == 0) request.sampling.top_p = 0.9;
  request.sampling.seed = number;
  return request;
}

BurnRequest BurnLoad::Next() {
  if (!answers_.empty() && Draw() % 3 == 0) {
    auto chosen = answers_.begin();
    std::advance(chosen, static_cast<int64_t>(Draw() % answers_.size()));
    BurnRequest request = Make(chosen->first);
    request.again = true;
    return request;
  }
  BurnRequest request = Make(made_++);
  if (Draw() % 8 == 0)
    request.cancel_after =
        1 + static_cast<int64_t>(Draw() % static_cast<uint64_t>(request.max_tokens));
  return request;
}

bool BurnLoad::Answered(const BurnRequest& request, const std::vector<int32_t>& ids) {
  const uint64_t digest = DigestOf(ids.data(), ids.size());
  if (answers_.size() >= kKept && !answers_.contains(request.number)) return true;
  const auto [kept, fresh] = answers_.emplace(request.number, digest);
  return fresh || kept->second == digest;
}

}  // namespace lockstep
