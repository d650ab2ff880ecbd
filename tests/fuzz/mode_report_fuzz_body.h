// What tests/fuzz/mode_report_fuzz.cc runs on one input; a test replays the seeds through it.
#pragma once

#include <cmath>
#include <string_view>

#include "launcher/mode_report.h"
#include "runtime/base/check.h"

namespace lockstep {

// What is accepted can be computed with.
inline void FuzzModeReport(std::string_view input) {
  const StatusOr<ModeReport> report = ParseModeReport(input);
  if (!report.ok()) return;
  LOCKSTEP_CHECK(!report->tests.empty() && report->threads >= 0);
  LOCKSTEP_CHECK(std::isfinite(report->gb_per_s) && report->logit_error >= 0);
  for (const ModeTest& test : report->tests) {
    LOCKSTEP_CHECK(!test.tokens_per_s.empty() && !test.ranks.empty());
    LOCKSTEP_CHECK(test.tokens >= 0 && test.added_latency_us >= 0);
    for (const double rate : test.tokens_per_s) LOCKSTEP_CHECK(std::isfinite(rate) && rate >= 0);
    for (const RankTime& rank : test.ranks)
      LOCKSTEP_CHECK(std::isfinite(rank.compute + rank.exchange + rank.waiting + rank.rest));
    for (const BestToken& best : test.best) LOCKSTEP_CHECK(best.token >= 0 && best.margin >= 0);
  }
}

}  // namespace lockstep
