// Questions that every rank answers for itself and that concern all: did it work, what came out,
// how much fits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/group.h"
#include "runtime/base/status.h"

namespace lockstep {

// Collective. OK if `mine` is OK on every rank; else, on every rank, the error of the lowest rank
// that has one, with that rank's name before it (unless all ranks say the same).
Status AgreeThatOk(Group& group, const Membership& membership, const Status& mine);

// Collective. OK if `mine` is equal on all ranks; else a UsageError that names two ranks and both
// values. `what` and `remedy` as in Setting.
Status AgreeOnValue(Group& group, const Membership& membership, const Setting& mine);

// Collective. The smallest of all ranks' values.
StatusOr<int64_t> AgreeOnSmallest(Group& group, int64_t mine);

// Collective. How many ranks of this one's host, itself among them, say the same.
StatusOr<int> CountAlikeHere(Group& group, const Membership& membership, const std::string& mine);

// Ranks that read files of their own exchange nothing while they load, and one may be far behind
// the others: they wait as long as it is alive.
Status WaitForSlowDisks(Group& group);

}  // namespace lockstep
