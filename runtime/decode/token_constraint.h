// What may come next in a sequence whose text must follow a grammar. Every rank keeps its own: the
// set follows from the tokens so far, which all ranks know, so nothing of it travels.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "runtime/base/status.h"

namespace lockstep {

// Of one sequence. Used by one thread.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // The token comes next. The set behind it is computed beside the caller.
  virtual void Append(int32_t token) = 0;
  // The ids that may come next, id i at bit i % 32 of word i / 32; ids behind the last word may
  // not. Waits until the set is there, for a bounded time. Never empty: where the grammar leaves no
  // token, those that end the answer. Holds until the next Append.
  virtual std::span<const uint32_t> Allowed() = 0;
  // The sets took so long that the steps of other sequences had to wait: nothing bounds what a
  // hostile grammar can make of the next one.
  virtual bool too_slow() const = 0;
};

// Makes the constraints of this rank. Thread-safe.
class TokenConstraints {
 public:
  virtual ~TokenConstraints() = default;
  // A RequestError if this is no grammar that can be kept.
  virtual Status Check(const std::string& grammar) = 0;
  // Of a new answer. `grammar` passed Check, here or on another rank; it is compiled beside the
  // caller. Must outlive what it makes.
  virtual std::unique_ptr<TokenConstraint> Start(const std::string& grammar) = 0;
  // Equal on ranks that make equal sets of equal grammars; never 0.
  virtual uint64_t digest() const = 0;
};

// Most bytes of a grammar.
inline constexpr size_t kMaxGrammarBytes = size_t{256} << 10;

}  // namespace lockstep
