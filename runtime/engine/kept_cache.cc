#include "runtime/engine/kept_cache.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/own_file.h"

namespace lockstep {

// What one rank says to all, of a fixed size.
struct KeptCache::Word {
  enum class State : uint32_t { kNothing, kReady, kFailed };
  State state = State::kNothing;
  uint32_t length = 0;
  uint64_t save = 0;
  uint64_t list = 0;   // Digest64 of the blocks
  uint64_t bytes = 0;  // of its pages
  char text[480] = {};

  static Word Failed(const Status& why) {
    Word word;
    const std::string message = MessageOf(why);
    word.state = State::kFailed;
    word.length = static_cast<uint32_t>(std::min(message.size(), sizeof(word.text)));
    std::memcpy(word.text, message.data(), word.length);
    return word;
  }
  static Word Ready(uint64_t save, std::span<const ChainedBlock> blocks, uint64_t page_bytes) {
    Word word;
    word.state = State::kReady;
    word.save = save;
    word.list = Digest64(std::as_bytes(blocks));
    word.bytes = blocks.size() * page_bytes;
    return word;
  }
  std::string Text() const { return std::string(text, std::min<size_t>(length, sizeof(text))); }

  // Every rank's, on every rank, however long the slowest one's disk takes.
  static StatusOr<std::vector<Word>> Gather(Group& group, const Word& mine) {
    std::vector<Word> all(static_cast<size_t>(group.size()));
    const std::vector<std::span<const std::byte>> sends(all.size(),
                                                        std::as_bytes(std::span(&mine, 1)));
    std::vector<std::span<std::byte>> receives;
    for (Word& from : all) receives.push_back(std::as_writable_bytes(std::span(&from, 1)));
    LOCKSTEP_RETURN_IF_ERROR(AllToAll(group, sends, receives, Patience::kIdle));
    return all;
  }
  // Why the ranks cannot go on, with the first of them that stands in the way; empty: they can.
  static std::string Obstacle(const std::vector<Word>& all, const std::vector<std::string>& names) {
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank].state == State::kFailed) return names[rank] + ": " + all[rank].Text();
    }
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank].state == State::kNothing) return names[rank] + " has no file";
      if (all[rank].save != all[0].save || all[rank].list != all[0].list)
        return names[rank] + " has the file of another save than rank 0";
    }
    return {};
  }
};

namespace {

// The first line that two keys do not share, as both have it.
std::string Difference(const std::string& theirs, const std::string& ours) {
  size_t begin = 0;
  for (size_t i = 0; i < theirs.size() && i < ours.size() && theirs[i] == ours[i]; ++i) {
    if (theirs[i] == '\n') begin = i + 1;
  }
  const auto line = [&](const std::string& key) {
    return begin < key.size()
               ? key.substr(begin, std::min(key.find('\n', begin) - begin, size_t{100}))
               : std::string("nothing");
  };
  return absl::StrFormat("'%s' there, '%s' here", line(theirs), line(ours));
}

std::string Described(const std::vector<ChainedBlock>& blocks, uint64_t bytes, int64_t begin_ns) {
  const double seconds = static_cast<double>(NowNs() - begin_ns) * 1e-9;
  return absl::StrFormat("%d blocks (%d tokens), %.1f MB, in %.2f s", blocks.size(),
                         blocks.size() * kBlockTokens, static_cast<double>(bytes) * 1e-6, seconds);
}

template <typename Words>
uint64_t BytesOf(const Words& words) {
  uint64_t bytes = 0;
  for (const auto& word : words) bytes += word.bytes;
  return bytes;
}

}  // namespace

KeptCache::KeptCache(std::string directory, std::string key, std::function<Status()> health)
    : directory_(std::move(directory)), key_(std::move(key)), health_(std::move(health)) {}

std::string KeptCache::PathOf(const Group& group) const {
  return directory_ + "/" + KeptFileName(group.rank(), group.size());
}

Status KeptCache::Prepare(const std::string& path) const {
  LOCKSTEP_RETURN_IF_ERROR(MakeDirectory(directory_, 0700));
  LOCKSTEP_RETURN_IF_ERROR(CheckOwnDirectory(directory_));
  FileReplacement::RemoveLeftOvers(path);
  return OkStatus();
}

Status KeptCache::ReadPages(const KeptReader& file, size_t count, Model* model) const {
  std::vector<std::byte> page(file.header().page_bytes);
  for (size_t i = 0; i < count; ++i) {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_RETURN_IF_ERROR(file.Read(i, page));
    model->WriteBlock(static_cast<int32_t>(i), file.header().blocks[i].before, page);
  }
  return OkStatus();
}

StatusOr<std::unique_ptr<KeptReader>> KeptCache::OpenFile(const Model& model,
                                                          const Group& group) const {
  const std::string path = PathOf(group);
  LOCKSTEP_RETURN_IF_ERROR(Prepare(path));
  // Told now rather than at the end of a long session; what is there may be read all the same.
  if (const auto probe = FileReplacement::Begin(path, 0600); !probe.ok()) {
    log::Warning("prefix cache: rank %d will keep nothing over a restart: %s", group.rank(),
                 MessageOf(probe.status()));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(auto file, KeptReader::Open(path));
  if (file == nullptr) return file;
  const KeptHeader& header = file->header();
  if (header.key != key_) {
    return UsageError("%s was kept under other settings: %s", path, Difference(header.key, key_));
  }
  if (header.rank != group.rank() || header.ranks != group.size() ||
      header.page_bytes != static_cast<uint64_t>(model.block_bytes())) {
    return UsageError("%s is of rank %d of %d with %d bytes a block, not %d", path, header.rank,
                      header.ranks, header.page_bytes, model.block_bytes());
  }
  for (const ChainedBlock& block : header.blocks) {
    if (*std::max_element(block.tokens.begin(), block.tokens.end()) >= model.config().vocab_size)
      return UsageError("%s has tokens that the model does not know", path);
  }
  return file;
}

StatusOr<std::vector<ChainedBlock>> KeptCache::Restore(Model& model, Group& group,
                                                       const std::vector<std::string>& names) {
  const int64_t begin_ns = NowNs();
  const StatusOr<std::unique_ptr<KeptReader>> file = OpenFile(model, group);
  Word mine;
  if (!file.ok()) {
    mine = Word::Failed(file.status());
  } else if (*file != nullptr) {
    const KeptHeader& header = (*file)->header();
    mine = Word::Ready(header.save, header.blocks, header.page_bytes);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(std::vector<Word> all, Word::Gather(group, mine));
  const auto is_nothing = [](const Word& word) { return word.state == Word::State::kNothing; };
  if (std::all_of(all.begin(), all.end(), is_nothing)) {
    if (group.rank() == 0) log::Info("prefix cache: %s has nothing yet", directory_);
    return std::vector<ChainedBlock>();
  }
  std::string obstacle = Word::Obstacle(all, names);
  std::vector<ChainedBlock> blocks;
  if (obstacle.empty()) {
    // The beginning of the list: what was used last, each block behind those before it.
    blocks = (*file)->header().blocks;
    blocks.resize(std::min(blocks.size(), static_cast<size_t>(model.limits().kv_blocks)));
    const Status read = ReadPages(**file, blocks.size(), &model);
    LOCKSTEP_RETURN_IF_ERROR(Health());
    mine = read.ok() ? Word::Ready(mine.save, blocks, (*file)->header().page_bytes)
                     : Word::Failed(read);
    LOCKSTEP_ASSIGN_OR_RETURN(all, Word::Gather(group, mine));
    obstacle = Word::Obstacle(all, names);
  }
  if (!obstacle.empty()) blocks.clear();
  if (group.rank() == 0) {
    if (obstacle.empty()) {
      log::Info("prefix cache: restored %s", Described(blocks, BytesOf(all), begin_ns));
    } else {
      log::Warning("prefix cache: starting cold: %s", obstacle);
    }
  }
  return blocks;
}

StatusOr<std::unique_ptr<KeptWriter>> KeptCache::WriteFile(const KeptBlocks& kept,
                                                           const Model& model,
                                                           const Group& group) const {
  const std::string path = PathOf(group);
  LOCKSTEP_RETURN_IF_ERROR(Prepare(path));
  std::vector<std::byte> page(static_cast<size_t>(model.block_bytes()));
  const KeptHeader header = {key_, group.rank(), group.size(), page.size(), kept.save, kept.chains};
  LOCKSTEP_ASSIGN_OR_RETURN(auto file, KeptWriter::Begin(path, header));
  for (size_t i = 0; i < kept.blocks.size(); ++i) {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    const int32_t before = kept.chains[i].before;
    model.ReadBlock(kept.blocks[i], before < 0 ? -1 : kept.blocks[before], page);
    LOCKSTEP_RETURN_IF_ERROR(file->Append(page));
  }
  LOCKSTEP_RETURN_IF_ERROR(file->End());
  return file;
}

Status KeptCache::Save(const KeptBlocks& kept, const Model& model, Group& group,
                       const std::vector<std::string>& names) {
  const int64_t begin_ns = NowNs();
  // Until the return: who waits for the disks waits for the renaming, too.
  const struct Saving {
    std::atomic<bool>& flag;
    ~Saving() { flag = false; }
  } saving{saving_};
  saving_ = true;
  if (group.rank() == 0)
    log::Info("prefix cache: writing %d blocks to %s", kept.blocks.size(), directory_);
  const StatusOr<std::unique_ptr<KeptWriter>> file = WriteFile(kept, model, group);
  LOCKSTEP_RETURN_IF_ERROR(Health());
  Word mine = file.ok() ? Word::Ready(kept.save, kept.chains, model.block_bytes())
                        : Word::Failed(file.status());
  LOCKSTEP_ASSIGN_OR_RETURN(std::vector<Word> all, Word::Gather(group, mine));
  std::string obstacle = Word::Obstacle(all, names);
  const char* left = "what was kept before stays";
  if (obstacle.empty()) {
    if (const Status replaced = (*file)->Replace(); !replaced.ok()) mine = Word::Failed(replaced);
    LOCKSTEP_ASSIGN_OR_RETURN(all, Word::Gather(group, mine));
    obstacle = Word::Obstacle(all, names);
    left = "other ranks have the new file, so that the next start may be cold";
  }
  if (group.rank() != 0) return OkStatus();
  if (obstacle.empty()) {
    log::Info("prefix cache: kept %s", Described(kept.chains, BytesOf(all), begin_ns));
  } else {
    log::Warning("prefix cache: not kept: %s; make room or give another --prefix-cache-dir (%s)",
                 obstacle, left);
  }
  return OkStatus();
}

}  // namespace lockstep
