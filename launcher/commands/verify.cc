// `lockstep verify`: whether files of ranks are whole, and whether they give the right text.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "launcher/probe.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "launcher/session.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/weights/stored_rows.h"

namespace lockstep {
namespace {

// What one rank has read; travels as it is.
struct FileCheck {
  uint64_t tensors = 0;
  uint64_t bytes = 0;
  int64_t ns = 0;  // without waiting for other ranks
};

// What loading will not read (the layer for drafts) against its checksums; loading compares the
// rest.
Status CheckTheRest(const Options& options, const OpenedModel& opened, FileCheck* check) {
  const int64_t start_ns = NowNs();
  const Checkpoint& checkpoint = *opened.checkpoint;
  if (!checkpoint.is_of_one_rank()) {
    return UsageError(
        "--model %s: holds no files of ranks; verify checks those that lockstep shard made",
        options.model);
  }
  std::set<std::string_view> loaded;
  for (const SliceRequest& request : opened.slice.requests) loaded.insert(request.name);
  std::vector<PlannedRead> reads;
  for (const auto& [name, info] : checkpoint.tensors()) {
    ++check->tensors;
    check->bytes += info.data.bytes;
    if (!loaded.contains(name)) PlanReads(info, {}, &reads);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const auto ahead, ReadAhead::Start(reads));
  StoredRowReader reader({});
  reader.ReadThrough(ahead.get());
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (loaded.contains(name)) continue;
    if (Interrupted()) return InterruptedError();
    LOCKSTEP_RETURN_IF_ERROR(reader.CheckSlice(info, name));
  }
  check->ns = NowNs() - start_ns;
  return OkStatus();
}

void PrintFiles(const Session& session, const std::vector<FileCheck>& checks) {
  for (size_t rank = 0; rank < checks.size(); ++rank) {
    const double seconds = std::max(static_cast<double>(checks[rank].ns) * 1e-9, 1e-9);
    std::printf("rank %d: %d tensors, %s, every checksum right (%.1f s, %.2f GB/s)\n",
                static_cast<int>(rank), static_cast<int>(checks[rank].tensors),
                FormatBytes(checks[rank].bytes).c_str(), seconds,
                static_cast<double>(checks[rank].bytes) / seconds * 1e-9);
  }
  std::printf("settings: %016llx on all ranks\n",
              static_cast<unsigned long long>(session.files_settings().value_or(0)));
}

void PrintJson(const Session& session, const std::vector<FileCheck>& checks,
               const std::vector<double>& distances, const char* probe) {
  nlohmann::ordered_json line;
  line["model"] = session.options().model;
  line["settings"] = absl::StrFormat("%016x", session.files_settings().value_or(0));
  for (const FileCheck& check : checks) {
    line["files"].push_back({{"tensors", check.tensors},
                             {"bytes", check.bytes},
                             {"seconds", static_cast<double>(check.ns) * 1e-9}});
  }
  line["probe"] = {{"result", probe}, {"distances", distances}};
  std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

// Rank 0. Without --exact what is recorded is how far 8-bit activations are from the full precision
// that is there already.
Status Record(Session& session, const std::optional<ProbeRecord>& there,
              const ProbeDigest& computed, int64_t vocab_size) {
  ProbeRecord record;
  const ProbeArithmetic arithmetic = ArithmeticOf(session);
  if (arithmetic.cache != kernels::CacheType::kF32)
    return UsageError("--record needs --kv-cache-dtype f32: what is recorded has full precision");
  if (arithmetic.full()) {
    record.settings = session.files_settings().value_or(0);
    record.computed =
        absl::StrFormat("from the files by %d ranks, %s", session.size(), session.backend().name());
    record.rows = computed;
  } else {
    if (!there.has_value())
      return UsageError(
          "--record needs --exact: what is recorded is what others are compared with");
    record = *there;
    const std::vector<double> distances = ProbeDistances(record.rows, computed);
    record.fast_distance = *std::max_element(distances.begin(), distances.end());
    WarnOfFastActivations(record);
  }
  const std::string text = ProbeText(record, vocab_size);
  return WriteFileAtomically(session.options().model + "/" + kProbeName,
                             std::as_bytes(std::span(text)));
}

Status Verify(Session& session, const FileCheck& mine) {
  const Options& options = session.options();
  std::vector<FileCheck> checks(static_cast<size_t>(session.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(session.group(), std::as_bytes(std::span(&mine, 1)),
                                     std::as_writable_bytes(std::span(checks))));
  if (session.rank() == 0 && !options.json) PrintFiles(session, checks);
  const std::string path = options.model + "/" + kProbeName;
  std::optional<ProbeRecord> record;
  // What is not to be compared may be damaged.
  if (!options.record || session.precision() != kernels::Precision::kExact) {
    LOCKSTEP_ASSIGN_OR_RETURN(record, ReadProbe(session));
    // Equal on all ranks, and before the probe is computed.
    if (!record.has_value() && options.record) {
      return UsageError(
          "--record needs --exact: what is recorded is what others are compared with");
    }
    if (!record.has_value()) {
      return ModelError(
          "%s: missing, so nothing tells whether these files give the right text; run the same "
          "lockstep shard again where the source is, or record what these files give: %s",
          path, RecordCommand(options.model, session.shares()));
    }
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const ProbeDigest computed,
                            ComputeProbe(session.model(), session.group()));
  std::vector<double> distances;
  if (record.has_value()) distances = ProbeDistances(record->rows, computed);
  if (options.record) {
    const Status written =
        session.rank() == 0 ? Record(session, record, computed, session.model().config().vocab_size)
                            : OkStatus();
    LOCKSTEP_RETURN_IF_ERROR(AgreeThatOk(session.group(), session.membership(), written));
  } else {
    LOCKSTEP_RETURN_IF_ERROR(CompareProbe(*record, computed, ArithmeticOf(session), path));
  }
  if (session.rank() != 0) return OkStatus();
  if (options.json) {
    PrintJson(session, checks, distances, options.record ? "recorded" : "right");
  } else if (options.record) {
    std::printf("probe prompt: recorded in %s\n", path.c_str());
  } else {
    std::printf(
        "probe prompt: the recorded logits, %.2g of their deviation apart (allowed: %.2g)\n",
        *std::max_element(distances.begin(), distances.end()),
        ToleranceOf(*record, ArithmeticOf(session)).near);
  }
  return OkStatus();
}

}  // namespace

Status VerifyCommand(const Options& options) {
  // Before minutes of loading; what rank 0 finds beside its files comes later.
  if (options.record && options.kv_cache_dtype != "auto" && options.kv_cache_dtype != "f32")
    return UsageError("--record needs --kv-cache-dtype f32: what is recorded has full precision");
  FileCheck mine;
  SessionNeeds needs;
  needs.probe = false;
  needs.check_files = [&](const OpenedModel& opened) {
    return CheckTheRest(options, opened, &mine);
  };
  needs.limits = [](const ModelConfig&) { return ProbeLimits(); };
  // The files are looked at, not the wire and the mode of the cluster's YAML.
  Options exact_wire = options;
  exact_wire.wire = "f32";
  exact_wire.mode = "tensor";
  exact_wire.stages = 0;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, OpenSession(exact_wire, needs));
  mine.ns += static_cast<int64_t>(session->load_seconds() * 1e9);
  const InterruptScope scope;
  return session->Close(Verify(*session, mine));
}

}  // namespace lockstep
