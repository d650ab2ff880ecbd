// The tokens of blocks that stand behind each other, as bytes.
#pragma once

#include <span>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/cache/block_pool.h"

namespace lockstep {

// The blocks' `before`, then their tokens.
void PutChains(std::span<const ChainedBlock> blocks, ByteWriter* writer);
// False, and nothing in `blocks`, where these are not the bytes of at most `most` blocks. What the
// blocks say is not checked.
bool GetChains(ByteReader* reader, size_t most, std::vector<ChainedBlock>* blocks);

}  // namespace lockstep
