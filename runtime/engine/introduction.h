// What ranks must hold alike before the first plan.
#pragma once

#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/decode/candidates.h"
#include "runtime/decode/token_constraint.h"
#include "runtime/model/model.h"

namespace lockstep {

// Collective: every rank shows its limits, the vocabulary rows `slice` that it holds and what keeps
// grammars there. A UsageError or InternalError that names the rank which differs from rank 0, or
// with which the vocabulary has a gap; else every rank's slice. From `first_with_head` on ranks
// hold the vocabulary, in their order; those before hold nothing of it.
StatusOr<std::vector<VocabSlice>> Introduce(const Model& model, Group& group, VocabSlice slice,
                                            const TokenConstraints* constraints,
                                            const std::vector<std::string>& names,
                                            int first_with_head = 0);

}  // namespace lockstep
