// lockstep logits: the raw head rows of every position of given token lists, as a safetensors file.
// For comparing lockstep with a reference, and lockstep with itself.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/memory.h"
#include "launcher/process.h"
#include "launcher/token_file.h"
#include "launcher/world.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

// Rows of one step if nothing else asks for more: bounds the scratch for [rows, vocab] logits.
constexpr int64_t kLogitsRows = 512;

struct Job {
  std::vector<std::vector<int32_t>> sequences;
  int64_t chunk = 0;   // tokens of one sequence in one step
  int64_t blocks = 0;  // KV blocks that the largest batch needs
};

// --step K as it is; without it whole prompts, cut only where a step would grow beyond
// --prefill-chunk.
StatusOr<ModelLimits> PlanLimits(const Options& options, const ModelConfig& config, Job* job) {
  LOCKSTEP_RETURN_IF_ERROR(
      CheckTokenLists(job->sequences, options.tokens, config, options.max_model_len));
  int64_t longest = 0, blocks = 0;
  for (const std::vector<int32_t>& tokens : job->sequences) {
    longest = std::max(longest, static_cast<int64_t>(tokens.size()));
    const int64_t own = BlocksOf(std::ssize(tokens));
    blocks = options.together ? blocks + own : std::max(blocks, own);
  }
  job->chunk = std::min(options.step > 0 ? options.step : options.prefill_chunk, longest);
  const int64_t together = options.together ? static_cast<int64_t>(job->sequences.size()) : 1;
  ModelLimits limits;
  limits.max_rows = std::max(job->chunk, std::min(job->chunk * together, kLogitsRows));
  limits.max_outputs = limits.max_rows;
  limits.max_model_len = longest;
  limits.kv_blocks = job->blocks = blocks;
  return limits;
}

struct SequenceRows {
  std::vector<float> logits;               // [n, vocab]
  std::vector<float> drafts;               // [n - 1, vocab] with --draft
  std::vector<std::vector<float>> hidden;  // per rank [n, hidden]
};

// Runs the sequences `first` .. `last` - 1 as one batch to their ends.
class BatchRun {
 public:
  BatchRun(const Job& job, size_t first, size_t last, int64_t max_rows, SpanOutput output)
      : job_(job), first_(first), max_rows_(max_rows), output_(output), done_(last - first, 0) {}

  // The next plan; false when all tokens are computed. `release`: slots of the batch before.
  bool Next(const std::vector<int32_t>& release, StepPlan* plan) {
    ++plan->step;
    plan->released.clear();
    plan->started.clear();
    plan->growth.clear();
    plan->spans.clear();
    if (!started_) Start(release, plan);
    int64_t room = max_rows_;
    for (size_t i = 0; i < done_.size(); ++i) {
      const int64_t left = static_cast<int64_t>(job_.sequences[first_ + i].size()) - done_[i];
      const int64_t count = std::min({left, job_.chunk, room});
      // A sequence's rows of one step are as many as --step says, or those that end it: never cut
      // by its neighbours.
      if (count <= 0 || count < std::min(left, job_.chunk)) continue;
      plan->spans.push_back({static_cast<int32_t>(i), static_cast<int32_t>(done_[i]),
                             static_cast<int32_t>(count), output_});
      done_[i] += count;
      room -= count;
    }
    return !plan->spans.empty();
  }

 private:
  void Start(const std::vector<int32_t>& release, StepPlan* plan) {
    started_ = true;
    plan->released = release;
    int32_t block = 0;
    for (size_t i = 0; i < done_.size(); ++i) {
      NewSequence sequence;
      sequence.slot = static_cast<int32_t>(i);
      sequence.tokens = job_.sequences[first_ + i];
      BlockGrowth growth{sequence.slot, {}};
      for (int64_t b = BlocksOf(std::ssize(sequence.tokens)); b > 0; --b)
        growth.blocks.push_back(block++);
      plan->started.push_back(std::move(sequence));
      plan->growth.push_back(std::move(growth));
    }
  }

  const Job& job_;
  size_t first_;
  int64_t max_rows_;
  SpanOutput output_;
  std::vector<int64_t> done_;
  bool started_ = false;
};

void Collect(const Job& job, const StepPlan& plan, size_t first, const StepOutcome& outcome,
             const ModelConfig& config, std::vector<SequenceRows>* rows) {
  const int64_t vocab = config.vocab_size;
  const int64_t dim = config.hidden_size;
  int64_t row = 0;
  auto draft = outcome.draft_logits.begin();
  for (const RowSpan& span : plan.spans) {
    const size_t index = first + static_cast<size_t>(span.slot);
    SequenceRows& to = (*rows)[index];
    const auto logits = outcome.raw_logits.begin() + row * vocab;
    to.logits.insert(to.logits.end(), logits, logits + span.count * vocab);
    to.hidden.resize(outcome.raw_hidden.size());
    for (size_t r = 0; r < outcome.raw_hidden.size(); ++r) {
      const auto hidden = outcome.raw_hidden[r].begin() + row * dim;
      to.hidden[r].insert(to.hidden[r].end(), hidden, hidden + span.count * dim);
    }
    row += span.count;
    if (span.output != SpanOutput::kRawDraft) continue;
    // Without the last token's: it has no next one.
    const auto last = static_cast<int64_t>(job.sequences[index].size()) - 1;
    const int64_t drafted = std::min<int64_t>(span.count, last - span.begin);
    to.drafts.insert(to.drafts.end(), draft, draft + drafted * vocab);
    draft += drafted * vocab;
  }
}

// safetensors: 8 bytes of header length, a JSON header padded to 8 bytes, the tensors.
class SafetensorsFile {
 public:
  void Add(const std::string& name, int64_t rows, int64_t columns,
           const std::vector<float>& values) {
    const size_t end = offset_ + values.size() * sizeof(float);
    header_[name] = {
        {"dtype", "F32"}, {"shape", {rows, columns}}, {"data_offsets", {offset_, end}}};
    parts_.push_back(&values);
    offset_ = end;
  }
  Status Write(const std::string& path) const {
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    std::vector<std::byte> bytes(sizeof(length) + header.size() + offset_);
    std::byte* to = bytes.data();
    std::memcpy(to, &length, sizeof(length));
    std::memcpy(to + sizeof(length), header.data(), header.size());
    to += sizeof(length) + header.size();
    for (const std::vector<float>* part : parts_) {
      if (part->empty()) continue;  // drafts of a sequence of one token
      std::memcpy(to, part->data(), part->size() * sizeof(float));
      to += part->size() * sizeof(float);
    }
    return WriteFileAtomically(path, bytes);
  }

 private:
  nlohmann::ordered_json header_ = nlohmann::ordered_json::object();
  std::vector<const std::vector<float>*> parts_;
  size_t offset_ = 0;
};

Status WriteOutput(const Options& options, const Job& job, const ModelConfig& config,
                   const std::vector<SequenceRows>& rows) {
  SafetensorsFile file;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t n = static_cast<int64_t>(job.sequences[i].size());
    file.Add(absl::StrFormat("logits.%d", i), n, config.vocab_size, rows[i].logits);
    if (options.draft) {
      file.Add(absl::StrFormat("draft.%d", i), n - 1, config.vocab_size, rows[i].drafts);
    }
    for (size_t r = 0; options.dump_hidden && r < rows[i].hidden.size(); ++r) {
      const std::string name = absl::StrFormat("hidden.%d", i);
      file.Add(r == 0 ? name : absl::StrFormat("%s.rank%d", name, r), n, config.hidden_size,
               rows[i].hidden[r]);
    }
  }
  return file.Write(options.out);
}

Status ComputeAll(const Options& options, const Job& job, Session& session, Executor* executor,
                  std::vector<SequenceRows>* rows) {
  const ModelConfig& config = session.model().config();
  const SpanOutput output = options.draft         ? SpanOutput::kRawDraft
                            : options.dump_hidden ? SpanOutput::kRawHidden
                                                  : SpanOutput::kRaw;
  const size_t batch = options.together ? job.sequences.size() : 1;
  rows->resize(job.sequences.size());
  StepPlan plan;
  StepOutcome outcome;
  std::vector<int32_t> taken;  // slots of the batch before
  Status status;
  for (size_t first = 0; first < job.sequences.size() && status.ok(); first += batch) {
    BatchRun run(job, first, first + batch, session.model().limits().max_rows, output);
    while (status.ok() && run.Next(taken, &plan)) {
      if (Interrupted()) status = InterruptedError();
      if (status.ok()) LOCKSTEP_RETURN_IF_ERROR(executor->Execute(plan, &outcome));
      if (status.ok()) Collect(job, plan, first, outcome, config, rows);
    }
    taken.assign(batch, 0);
    for (size_t i = 0; i < batch; ++i) taken[i] = static_cast<int32_t>(i);
  }
  const StatusOr<std::vector<uint64_t>> digests =
      executor->Stop(plan.step + 1, status.ok() ? ErrorKind{0} : ErrorKind::kInterrupted);
  LOCKSTEP_RETURN_IF_ERROR(status);
  if (!digests.ok()) return digests.status();
  if (options.json) {
    nlohmann::ordered_json json = {{"out", options.out}, {"sequences", rows->size()}};
    for (const uint64_t digest : *digests)
      json["digests"].push_back(absl::StrFormat("%016x", digest));
    std::printf(
        "%s\n",
        json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  }
  return OkStatus();
}

Status RunOnRankZero(const Options& options, const Job& job, Session& session) {
  if (session.model().limits().kv_blocks < job.blocks) {
    return UsageError("the token lists need %d KV blocks, but memory holds %d%s", job.blocks,
                      session.model().limits().kv_blocks,
                      options.together ? "; leave --together out" : "");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<GroupExecutor> executor, MakeExecutor(session));
  std::vector<SequenceRows> rows;
  LOCKSTEP_RETURN_IF_ERROR(ComputeAll(options, job, session, executor.get(), &rows));
  LOCKSTEP_RETURN_IF_ERROR(WriteOutput(options, job, session.model().config(), rows));
  log::Info("wrote the logits of %d token lists to %s", rows.size(), options.out);
  return OkStatus();
}

// Said before a large model is loaded and computed, not after.
Status CheckOutput(const Options& options) {
  if (options.out.empty()) return UsageError("logits needs --out FILE for the result");
  if (!WillBeRankZero(options)) return OkStatus();  // only rank 0 writes
  if (IsDirectory(options.out)) {
    return UsageError("--out %s is a directory; give the name of a file", options.out);
  }
  const std::filesystem::path parent = std::filesystem::path(options.out).parent_path();
  const std::string directory = parent.empty() ? std::string(".") : parent.string();
  if (access(directory.c_str(), W_OK | X_OK) == 0) return OkStatus();
  return UsageError("--out %s: cannot write into %s: %s", options.out, directory,
                    std::strerror(errno));
}

}  // namespace

Status LogitsCommand(const Options& options) {
  if (options.tokens.empty())
    return UsageError("logits needs --tokens FILE, JSON of the form [[ids...], ...]");
  LOCKSTEP_RETURN_IF_ERROR(CheckOutput(options));
  Job job;
  LOCKSTEP_ASSIGN_OR_RETURN(job.sequences, ReadTokenLists(options.tokens));
  SessionNeeds needs;
  needs.exact = !options.fast;
  needs.limits = [&](const ModelConfig& config) { return PlanLimits(options, config, &job); };
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, OpenSession(options, needs));
  const InterruptScope scope;
  return session->Close(session->rank() == 0 ? RunOnRankZero(options, job, *session)
                                             : WorkForRankZero(*session));
}

}  // namespace lockstep
