// One rank's file of a directory that `lockstep shard` made, as a Checkpoint.
#include <algorithm>
#include <cmath>

#include "runtime/weights/checkpoint.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

// Shares that cut alike: equal but for a factor.
bool SameShares(const std::vector<double>& one, const std::vector<double>& other) {
  double sum_of_one = 0, sum_of_other = 0;
  for (const double share : one) sum_of_one += share;
  for (const double share : other) sum_of_other += share;
  return std::equal(one.begin(), one.end(), other.begin(), other.end(), [&](double a, double b) {
    return std::fabs(a / sum_of_one - b / sum_of_other) < 1e-12;
  });
}

class ShardCheckpoint final : public Checkpoint {
 public:
  Status Open(const std::string& directory, const RankPlace& place) {
    path_ = directory;
    const auto ranks = static_cast<int>(place.shares.size());
    if (ranks == 0) {
      return UsageError(
          "--model %s: holds the slices of single ranks (lockstep shard); give the checkpoint that "
          "they were made from",
          directory);
    }
    const std::string path = directory + "/" + ShardName(place.rank, ranks);
    if (!FileExists(path)) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, ShardFilesIn(directory));
      return ModelError(
          "%s: missing; the directory holds files for %s ranks, and this is rank %d of %d: give "
          "--ranks what they were made for, copy this rank's file here, or run lockstep shard "
          "--ranks %d",
          path, RankCountsText(RankCountsOf(names)), place.rank, ranks, ranks);
    }
    LOCKSTEP_ASSIGN_OR_RETURN(ShardHeader header, ReadShardHeader(path));
    if (header.rank != place.rank || header.ranks() != ranks) {
      return ModelError("%s: holds rank %d of %d, so it has another file's name; copy it again",
                        path, header.rank, header.ranks());
    }
    if (!SameShares(header.shares, place.shares)) {
      return ModelError(
          "%s: was made for --shares %s, but the ranks compute with %s; give --shares %s, or run "
          "lockstep shard with the other ones",
          path, FormatShares(header.shares), FormatShares(place.shares),
          FormatShares(header.shares));
    }
    LOCKSTEP_ASSIGN_OR_RETURN(auto file, RandomAccessFile::Open(path, ErrorKind::kModel));
    config_ = std::move(header.config);
    config_file_ = path;
    digest_ = header.settings;
    for (ShardTensor& tensor : header.tensors) {
      TensorInfo info;
      info.shape = std::move(tensor.shape);
      info.format = tensor.format;
      info.storage = Storage::kPortable;
      info.slice = StoredSlice{tensor.slice, tensor.checksum};
      info.data.type = tensor.format.Name();
      info.data.shape = info.shape;
      info.data.file = file.get();
      info.data.offset = tensor.offset;
      info.data.bytes = tensor.bytes;
      tensors_.emplace(std::move(tensor.name), std::move(info));
    }
    files_.push_back(std::move(file));
    return OkStatus();
  }
};

}  // namespace

StatusOr<std::unique_ptr<Checkpoint>> OpenShard(const std::string& directory,
                                                const RankPlace& place) {
  auto checkpoint = std::make_unique<ShardCheckpoint>();
  LOCKSTEP_RETURN_IF_ERROR(checkpoint->Open(directory, place));
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace lockstep
