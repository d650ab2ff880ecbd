// What tests/fuzz/kept_file_fuzz.cc runs on one input; kept_file_test.cc replays seeds and damaged
// copies of them through it.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/check.h"
#include "runtime/base/digest.h"
#include "runtime/cache/kept_file.h"
#include "tests/fuzz/memory_files.h"

namespace lockstep {

namespace testing {

// A header as the file has it, sound or not.
inline std::vector<std::byte> KeptHeaderBytes(const KeptHeader& header) {
  ByteWriter writer;
  writer.PutString(header.key);
  writer.Put(header.rank);
  writer.Put(header.ranks);
  writer.Put(header.page_bytes);
  writer.Put(header.save);
  writer.Put(static_cast<uint32_t>(header.blocks.size()));
  for (const ChainedBlock& block : header.blocks) writer.Put(block.before);
  writer.Put(static_cast<uint32_t>(16 * header.blocks.size()));
  for (const ChainedBlock& block : header.blocks) {
    for (const int32_t token : block.tokens) writer.Put(token);
  }
  return writer.bytes();
}

}  // namespace testing

// Any bytes as a header, before pages of zeros: refused, or a list that a pool takes. Returns which
// of the two.
inline bool FuzzKeptHeader(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  // As many pages behind it as it says that there are, as far as they are small.
  ByteReader reader(bytes);
  (void)reader.GetString();
  (void)reader.Get<uint64_t>();  // rank and ranks
  const uint64_t page_bytes = reader.Get<uint64_t>();
  (void)reader.Get<uint64_t>();
  const uint64_t count = reader.GetVector<int32_t>().size();
  const uint64_t body_bytes = page_bytes <= 64 ? count * (page_bytes + 8) : 0;
  const StatusOr<KeptHeader> header = ParseKeptHeader(bytes, body_bytes);
  std::string file(kKeptPreambleBytes, '\0');
  const std::array<uint64_t, 4> preamble = {0x564B504554534B4C, 1, text.size(), Digest64(bytes)};
  std::memcpy(file.data(), preamble.data(), file.size());
  file += text;
  MemoryFiles files;
  files.Add("a.kv", file, body_bytes);
  const MountedFiles mounted("/fuzz", files);
  const auto opened = KeptReader::Open("/fuzz/a.kv");
  LOCKSTEP_CHECK(opened.ok() == header.ok());
  if (!header.ok()) return false;
  LOCKSTEP_CHECK(header->blocks.size() * 68 <= text.size());
  for (size_t i = 0; i < header->blocks.size(); ++i) {
    std::vector<std::byte> page(header->page_bytes);
    (void)(*opened)->Read(i, page);
  }
  BlockPool pool(static_cast<int64_t>(header->blocks.size() / 2 + 1));
  pool.Restore(header->blocks);
  LOCKSTEP_CHECK(pool.used() == 0);
  return true;
}

}  // namespace lockstep
