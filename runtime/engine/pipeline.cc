#include "runtime/engine/pipeline.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

#include "runtime/base/clock.h"
#include "runtime/engine/step_end.h"

namespace lockstep {
namespace {

constexpr int64_t kLongestSteps = 8;
constexpr int64_t kFirstWaits = 20;

// Rows of the batch that are alone in their sequence.
std::vector<bool> SingleRows(const Batch& batch) {
  std::vector<int64_t> counts(batch.block_tables.size(), 0);
  for (const int32_t sequence : batch.sequences) ++counts[static_cast<size_t>(sequence)];
  std::vector<bool> single;
  for (const int32_t sequence : batch.sequences)
    single.push_back(counts[static_cast<size_t>(sequence)] == 1);
  return single;
}

std::vector<Range> SplitEvenly(int64_t rows, int64_t parts) {
  std::vector<Range> ranges;
  for (int64_t part = 0; part < parts; ++part)
    ranges.push_back({rows * part / parts, rows * (part + 1) / parts});
  return ranges;
}

// Rows [rows.begin, rows.end) of `batch` as a batch of their own; its output rows are those at
// [outputs.begin, outputs.end) of the step's.
void TakePart(const Batch& batch, Range rows, Range outputs, Batch* part) {
  const auto slice = [&](const std::vector<int32_t>& from, std::vector<int32_t>* to) {
    to->assign(from.begin() + rows.begin, from.begin() + rows.end);
  };
  slice(batch.tokens, &part->tokens);
  slice(batch.positions, &part->positions);
  slice(batch.sequences, &part->sequences);
  part->block_tables.clear();
  int32_t before = -1;
  for (int32_t& sequence : part->sequences) {
    // A sequence's rows stand together.
    if (sequence != before)
      part->block_tables.push_back(batch.block_tables[static_cast<size_t>(sequence)]);
    before = std::exchange(sequence, static_cast<int32_t>(part->block_tables.size()) - 1);
  }
  part->output_rows.clear();
  for (int64_t i = outputs.begin; i < outputs.end; ++i)
    part->output_rows.push_back(batch.output_rows[static_cast<size_t>(i)] -
                                static_cast<int32_t>(rows.begin));
}

}  // namespace

std::vector<Range> SplitRows(const Batch& batch, int stages, int64_t chunk_rows,
                             int64_t most_rows) {
  const int64_t rows = batch.rows();
  const std::vector<bool> single = SingleRows(batch);
  if (std::find(single.begin(), single.end(), false) == single.end()) {
    const int64_t parts =
        std::max(std::min<int64_t>(stages, rows), (rows + most_rows - 1) / most_rows);
    return SplitEvenly(rows, std::max<int64_t>(parts, 1));
  }
  std::vector<Range> ranges;
  Range open{0, 0};
  int64_t prompt_rows = 0;  // of the open part
  for (int64_t row = 0; row < rows; ++row) {
    const bool full = open.size() == most_rows || (!single[row] && prompt_rows == chunk_rows);
    if (full) {
      ranges.push_back(open);
      open.begin = row;
      prompt_rows = 0;
    }
    open.end = row + 1;
    prompt_rows += single[row] ? 0 : 1;
  }
  ranges.push_back(open);
  return ranges;
}

Pipeline::Pipeline(Model& model, StageLink& link, PipelineOptions options)
    : model_(model), link_(link), options_(std::move(options)) {}

int64_t Pipeline::WaitLimitMs() const {
  const int64_t longest_ns = longest_ns_[size_class_];
  if (longest_ns == 0) return kFirstWaits * options_.wait_ms * parts_;
  return options_.wait_ms + kLongestSteps * longest_ns / 1'000'000;
}

void Pipeline::Took(int64_t ns) {
  longest_ns_[size_class_] = std::max(longest_ns_[size_class_], ns);
}

Status Pipeline::Run(uint64_t step, const Batch& batch, const Ending& ending, uint64_t* digest) {
  const int64_t begin_ns = NowNs();
  step_compute_ns_ = step_wait_ns_ = 0;
  step_weight_bytes_ = 0;
  const std::vector<Range> ranges =
      SplitRows(batch, options_.stages, options_.chunk_rows, model_.limits().max_rows);
  parts_ = std::ssize(ranges);
  size_class_ = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(batch.rows())) % 64);
  limit_ms_ = WaitLimitMs();
  int64_t output = 0;
  for (size_t i = 0; i < ranges.size(); ++i) {
    Range outputs{output, output};
    while (outputs.end < std::ssize(batch.output_rows) &&
           batch.output_rows[static_cast<size_t>(outputs.end)] < ranges[i].end)
      ++outputs.end;
    output = outputs.end;
    TakePart(batch, ranges[i], outputs, &part_);
    LOCKSTEP_RETURN_IF_ERROR(RunPart(step, static_cast<uint32_t>(i), outputs, ending, digest));
  }
  times_.compute_ns += step_compute_ns_;
  times_.wait_ns += step_wait_ns_;
  run_ns_ = NowNs() - begin_ns;
  times_.step_ns += run_ns_;
  Took(run_ns_);
  return OkStatus();
}

Status Pipeline::RunPart(uint64_t step, uint32_t number, Range outputs, const Ending& ending,
                         uint64_t* digest) {
  const auto rows = static_cast<uint64_t>(part_.rows());
  const uint64_t bytes = rows * static_cast<uint64_t>(model_.config().hidden_size) * sizeof(float);
  const StageHeader header = {StageKind::kRows, step, number, static_cast<uint32_t>(rows), bytes};
  part_.entering = {};
  if (!first()) {
    const int64_t begin_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(link_.Receive(header, WaitLimit(), &entering_));
    step_wait_ns_ += NowNs() - begin_ns;
    part_.entering = {reinterpret_cast<const float*>(entering_.data()),
                      entering_.size() / sizeof(float)};
  }
  StepOutput output;
  if (rows > 0) {
    const int64_t begin_ns = NowNs();
    const int64_t exchanged_ns = options_.meter != nullptr ? options_.meter->exchanges.ns : 0;
    LOCKSTEP_ASSIGN_OR_RETURN(output, model_.Step(part_));
    const int64_t exchange_ns =
        options_.meter != nullptr ? options_.meter->exchanges.ns - exchanged_ns : 0;
    step_compute_ns_ += NowNs() - begin_ns - exchange_ns;
    step_weight_bytes_ += output.weight_bytes;
    *digest = ChainDigest(*digest, output.digest);
  }
  if (last()) {
    if (output.outputs != outputs.size()) {
      return InternalError("the model gave %d output rows, not %d", output.outputs, outputs.size());
    }
    return ending ? ending(output, outputs) : OkStatus();
  }
  const auto leaving = std::as_bytes(output.leaving);
  if (leaving.size() != bytes)
    return InternalError("the model passes on %d bytes, not %d", leaving.size(), bytes);
  return Send(header, leaving);
}

Status Pipeline::Send(const StageHeader& header, std::span<const std::byte> bytes) {
  const int64_t begin_ns = NowNs();
  Status sent = link_.Send(header, bytes, WaitLimit());
  times_.send_ns += NowNs() - begin_ns;
  times_.sent_bytes += bytes.size();
  return sent;
}

Status Pipeline::SendOutcome(uint64_t step, int64_t rows, std::span<const std::byte> bytes) {
  return Send({StageKind::kResult, step, 0, static_cast<uint32_t>(rows), bytes.size()}, bytes);
}

Status Pipeline::ReceiveOutcome(uint64_t step, int64_t rows, uint64_t most_bytes,
                                std::vector<std::byte>* bytes) {
  const int64_t begin_ns = NowNs();
  LOCKSTEP_RETURN_IF_ERROR(link_.Receive(
      {StageKind::kResult, step, 0, static_cast<uint32_t>(rows), most_bytes}, WaitLimit(), bytes));
  const int64_t waited_ns = NowNs() - begin_ns;
  step_wait_ns_ += waited_ns;
  times_.wait_ns += waited_ns;
  times_.step_ns += waited_ns;
  Took(run_ns_ + waited_ns);
  return OkStatus();
}

}  // namespace lockstep
