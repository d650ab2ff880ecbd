// Makes files of ranks as `lockstep shard` does, and damages them in ways that no checksum tells.
#pragma once

#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/model/model.h"
#include "runtime/model/shard_plan.h"
#include "runtime/weights/shard_file.h"
#include "runtime/weights/sharder.h"

namespace lockstep::testing {

inline StatusOr<ShardResult> ShardModel(const std::string& model, const std::string& to,
                                        const std::vector<double>& shares,
                                        const std::string& quantize = "",
                                        ShardOptions options = {}) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto source, Checkpoint::Open(model));
  LOCKSTEP_ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(*source));
  LOCKSTEP_ASSIGN_OR_RETURN(options.formats, QuantizedFormats(config, *source, quantize));
  const auto target = WithFormats(*source, options.formats);
  std::vector<std::string> left_out;
  LOCKSTEP_ASSIGN_OR_RETURN(options.slices, PlanShards(config, *target, shares, &left_out));
  options.directory = to;
  options.shares = shares;
  return WriteShards(*source, options);
}

// One rank's file, to be changed: whoever changes its bytes gets checksums that fit them.
class ShardEditor {
 public:
  ShardEditor(const std::string& directory, int rank, int ranks)
      : path_(directory + "/" + ShardName(rank, ranks)) {
    auto header = ReadShardHeader(path_);
    EXPECT_TRUE(header.ok()) << header.status();
    if (header.ok()) header_ = *std::move(header);
    auto text = ReadTextFile(path_);
    EXPECT_TRUE(text.ok()) << text.status();
    if (text.ok()) bytes_ = *std::move(text);
  }

  const ShardTensor& Tensor(const std::string& name) const {
    for (const ShardTensor& tensor : header_.tensors) {
      if (tensor.name == name) return tensor;
    }
    ADD_FAILURE() << name << " is not in " << path_;
    static const ShardTensor none;
    return none;
  }
  std::string Bytes(const std::string& name) const {
    const ShardTensor& tensor = Tensor(name);
    return bytes_.substr(tensor.offset, tensor.bytes);
  }
  void Put(const std::string& name, const std::string& bytes) {
    ASSERT_EQ(bytes.size(), Tensor(name).bytes);
    bytes_.replace(Tensor(name).offset, bytes.size(), bytes);
  }
  void Write() {
    for (ShardTensor& tensor : header_.tensors)
      tensor.checksum = DigestOf(bytes_.data() + tensor.offset, tensor.bytes);
    const std::string beginning = ShardBeginning(header_);
    bytes_.replace(0, beginning.size(), beginning);
    std::ofstream(path_, std::ios::binary) << bytes_;
  }

 private:
  std::string path_;
  std::string bytes_;
  ShardHeader header_;
};

}  // namespace lockstep::testing
