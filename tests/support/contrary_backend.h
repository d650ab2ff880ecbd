// A backend that routes every row to other experts than the model's, as the last bits of logits
// that are nearly equal may.
#pragma once

#include "tests/support/forwarding_backend.h"

namespace lockstep::testing {

class ContraryBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Route(kernels::Queue& queue, const kernels::RouterArgs& args) const override {
    inner_->Route(queue, args);
    for (int64_t i = 0; i < args.rows * args.top_k; ++i) {
      args.chosen[i] = static_cast<int32_t>((args.chosen[i] + 1) % args.experts);
      args.weights[i] *= 0.5f;
    }
  }
};

}  // namespace lockstep::testing
