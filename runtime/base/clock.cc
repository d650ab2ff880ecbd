#include "runtime/base/clock.h"

namespace lockstep {
namespace {
class RealClock final : public Clock {
 public:
  int64_t NowNs() const override { return lockstep::NowNs(); }
};
}  // namespace

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace lockstep
