#include "runtime/cache/kept_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <tuple>
#include <utility>

#include "runtime/base/bytes.h"
#include "runtime/base/check.h"
#include "runtime/base/digest.h"
#include "runtime/base/own_file.h"
#include "runtime/cache/chains.h"

namespace lockstep {
namespace {

constexpr uint64_t kMagic = 0x564B504554534B4C;  // "LKSTEPKV"
constexpr uint64_t kVersion = 1;
constexpr uint64_t kMostHeaderBytes = uint64_t{64} << 20;
constexpr uint64_t kMostPageBytes = uint64_t{1} << 40;  // so that no product of them overflows

std::vector<std::byte> EncodeHeader(const KeptHeader& header) {
  ByteWriter writer;
  writer.PutString(header.key);
  writer.Put(header.rank);
  writer.Put(header.ranks);
  writer.Put(header.page_bytes);
  writer.Put(header.save);
  PutChains(header.blocks, &writer);
  return writer.bytes();
}

bool IsKey(const std::string& text) {
  return text.size() <= kMostKeptKeyBytes && std::all_of(text.begin(), text.end(), [](char c) {
           return c == '\n' || (c >= ' ' && c <= '~');
         });
}

// Two blocks with the same tokens behind the same one.
bool HaveTwins(const std::vector<ChainedBlock>& blocks) {
  std::vector<int32_t> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int32_t place) {
    return std::tie(blocks[place].before, blocks[place].tokens);
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  return std::adjacent_find(order.begin(), order.end(),
                            [&](int32_t a, int32_t b) { return key(a) == key(b); }) != order.end();
}

Status CheckHeader(const KeptHeader& header, uint64_t body_bytes) {
  if (!IsKey(header.key)) return UsageError("its key is no text");
  if (header.ranks < 1 || header.rank < 0 || header.rank >= header.ranks)
    return UsageError("it says that it is of rank %d of %d", header.rank, header.ranks);
  for (size_t i = 0; i < header.blocks.size(); ++i) {
    const ChainedBlock& block = header.blocks[i];
    if (block.before < -1 || block.before >= static_cast<int64_t>(i))
      return UsageError("its block %d stands behind block %d", i, block.before);
    for (const int32_t token : block.tokens) {
      if (token < 0) return UsageError("its block %d holds token %d", i, token);
    }
  }
  if (HaveTwins(header.blocks)) return UsageError("it lists a block twice");
  // One page with its digest for each block, and nothing behind them.
  const uint64_t count = header.blocks.size();
  if (header.page_bytes > kMostPageBytes ||
      count * (header.page_bytes + sizeof(uint64_t)) != body_bytes) {
    return UsageError("it has %d bytes of pages, not %d pages of %d bytes", body_bytes, count,
                      header.page_bytes);
  }
  return OkStatus();
}

}  // namespace

std::string KeptFileName(int rank, int ranks) {
  return absl::StrFormat("rank-%d-of-%d.kv", rank, ranks);
}

StatusOr<KeptHeader> ParseKeptHeader(std::span<const std::byte> bytes, uint64_t body_bytes) {
  ByteReader reader(bytes);
  KeptHeader header;
  header.key = reader.GetString();
  header.rank = reader.Get<int32_t>();
  header.ranks = reader.Get<int32_t>();
  header.page_bytes = reader.Get<uint64_t>();
  header.save = reader.Get<uint64_t>();
  if (!GetChains(&reader, kMostKeptBlocks, &header.blocks) || reader.remaining() != 0)
    return UsageError("its header is malformed");
  LOCKSTEP_RETURN_IF_ERROR(CheckHeader(header, body_bytes));
  return header;
}

StatusOr<std::unique_ptr<KeptReader>> KeptReader::Open(const std::string& path) {
  LOCKSTEP_ASSIGN_OR_RETURN(auto file, OpenOwnFile(path));
  if (file == nullptr) return std::unique_ptr<KeptReader>();
  const uint64_t size = file->size_bytes();
  std::array<uint64_t, 4> preamble{};
  static_assert(sizeof(preamble) == kKeptPreambleBytes);
  if (size < kKeptPreambleBytes) return UsageError("%s: it ends after %d bytes", path, size);
  LOCKSTEP_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(preamble))));
  const auto [magic, version, header_bytes, digest] = preamble;
  if (magic != kMagic) return UsageError("%s: it is no file of KV blocks", path);
  if (version != kVersion)
    return UsageError("%s: it has version %d, this program reads %d", path, version, kVersion);
  if (header_bytes > kMostHeaderBytes || header_bytes > size - kKeptPreambleBytes) {
    return UsageError("%s: it has %d bytes and says that its header has %d", path, size,
                      header_bytes);
  }
  std::vector<std::byte> bytes(header_bytes);
  LOCKSTEP_RETURN_IF_ERROR(file->Read(kKeptPreambleBytes, bytes));
  if (Digest64(bytes) != digest) return UsageError("%s: its header is damaged", path);
  const uint64_t pages_at = kKeptPreambleBytes + header_bytes;
  StatusOr<KeptHeader> header = ParseKeptHeader(bytes, size - pages_at);
  if (!header.ok()) return Annotate(header.status(), path);
  return std::unique_ptr<KeptReader>(new KeptReader(std::move(file), std::move(*header), pages_at));
}

Status KeptReader::Read(size_t place, std::span<std::byte> page) const {
  LOCKSTEP_CHECK(place < header_.blocks.size() && page.size() == header_.page_bytes);
  const uint64_t at = pages_at_ + place * (header_.page_bytes + sizeof(uint64_t));
  uint64_t digest = 0;
  LOCKSTEP_RETURN_IF_ERROR(file_->Read(at, page));
  LOCKSTEP_RETURN_IF_ERROR(
      file_->Read(at + page.size(), std::as_writable_bytes(std::span(&digest, 1))));
  if (digest == Digest64(page, header_.save + place)) return OkStatus();
  return UsageError("%s: the pages of its block %d are damaged", file_->path(), place);
}

StatusOr<std::unique_ptr<KeptWriter>> KeptWriter::Begin(const std::string& path,
                                                        const KeptHeader& header) {
  LOCKSTEP_CHECK(IsKey(header.key));
  LOCKSTEP_ASSIGN_OR_RETURN(auto file, FileReplacement::Begin(path, 0600));
  const std::vector<std::byte> bytes = EncodeHeader(header);
  const std::array<uint64_t, 4> preamble = {kMagic, kVersion, bytes.size(), Digest64(bytes)};
  LOCKSTEP_RETURN_IF_ERROR(file->Write(std::as_bytes(std::span(preamble))));
  LOCKSTEP_RETURN_IF_ERROR(file->Write(bytes));
  return std::unique_ptr<KeptWriter>(new KeptWriter(std::move(file), header.save));
}

Status KeptWriter::Append(std::span<const std::byte> page) {
  const uint64_t digest = Digest64(page, next_seed_++);
  LOCKSTEP_RETURN_IF_ERROR(file_->Write(page));
  return file_->Write(std::as_bytes(std::span(&digest, 1)));
}

}  // namespace lockstep
