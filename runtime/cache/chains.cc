#include "runtime/cache/chains.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>

namespace lockstep {

void PutChains(std::span<const ChainedBlock> blocks, ByteWriter* writer) {
  std::vector<int32_t> before, tokens;
  for (const ChainedBlock& block : blocks) {
    before.push_back(block.before);
    tokens.insert(tokens.end(), block.tokens.begin(), block.tokens.end());
  }
  writer->PutVector(before);
  writer->PutVector(tokens);
}

bool GetChains(ByteReader* reader, size_t most, std::vector<ChainedBlock>* blocks) {
  constexpr size_t kTokens = std::tuple_size_v<BlockTokens>;
  blocks->clear();
  const std::vector<int32_t> before = reader->GetVector<int32_t>();
  const std::vector<int32_t> tokens = reader->GetVector<int32_t>();
  if (!reader->ok() || before.size() > most || tokens.size() != before.size() * kTokens)
    return false;
  blocks->resize(before.size());
  for (size_t i = 0; i < before.size(); ++i) {
    (*blocks)[i].before = before[i];
    std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(i * kTokens), kTokens,
                (*blocks)[i].tokens.begin());
  }
  return true;
}

}  // namespace lockstep
