// What decides the bits of a session's KV pages, as the text by which KeptCache tells saves apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lockstep {

// Plain values of one rank. What is not here must change no bit of a page.
struct CacheKeyFacts {
  std::string build;      // sources and compiler: BuildDescription()
  std::string c_library;  // CLibraryDescription()
  uint64_t model_digest = 0;
  std::string kernels, cache_type;
  std::vector<double> shares;  // one per rank
  std::string wire, sum_order;
  bool draft = false;
  std::vector<std::string> hosts;  // of each rank; matter only for sums in any order
};

// A line "name: value" for each.
std::string CacheKeyOf(const CacheKeyFacts& facts);

// Its version, and a digest of what its sines, cosines, logarithms and powers give on this
// processor.
std::string CLibraryDescription();

}  // namespace lockstep
