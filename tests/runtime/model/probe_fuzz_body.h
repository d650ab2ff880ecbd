// What tests/fuzz/probe_fuzz.cc runs on one input; probe_test.cc replays damaged records through
// it.
#pragma once

#include <cmath>
#include <string>

#include "runtime/base/check.h"
#include "runtime/model/probe.h"

namespace lockstep {

// Any bytes as a probe.json: a model error, or a record that can be compared and written.
inline void FuzzProbe(const std::string& text) {
  constexpr int64_t kVocab = 1000;
  const StatusOr<ProbeRecord> record = ParseProbe(text, kVocab, "probe.json");
  if (!record.ok()) {
    LOCKSTEP_CHECK(KindOf(record.status()) == ErrorKind::kModel);
    return;
  }
  LOCKSTEP_CHECK(record->rows.size() == static_cast<size_t>(kProbePrompts));
  for (const ProbeRow& row : record->rows) {
    LOCKSTEP_CHECK(row.projections.size() == kProbeProjections && row.deviation >= 0);
    for (const double value : row.projections) LOCKSTEP_CHECK(std::isfinite(value));
  }
  LOCKSTEP_CHECK(ParseProbe(ProbeText(*record, kVocab), kVocab, "again").ok());
  for (const auto precision : {kernels::Precision::kExact, kernels::Precision::kFast})
    (void)CompareProbe(*record, record->rows, {precision}, "probe.json");
}

}  // namespace lockstep
