// Stands in where xgrammar's sources are not there (deploy/install_xgrammar.sh).
#include "runtime/grammar/constraints.h"

namespace lockstep {

std::unique_ptr<TokenConstraints> MakeTokenConstraints(const Tokenizer&,
                                                       const std::vector<int32_t>&) {
  return nullptr;
}

}  // namespace lockstep
