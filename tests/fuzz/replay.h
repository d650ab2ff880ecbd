// The seeds of a fuzz target and damaged copies of them, for tests that replay them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>

#include "tests/support/golden.h"
#include "tests/support/seed.h"

namespace lockstep::testing {

inline std::string SeedPath(const std::string& target, const std::string& name = "") {
  return SourcePath("tests/fuzz/seeds/" + target + (name.empty() ? "" : "/" + name));
}

// A copy with a few bytes changed, some of them to those of JSON, and maybe cut.
inline std::string Damaged(std::string text, std::mt19937_64* random) {
  for (uint64_t i = (*random)() % 4; i > 0; --i) {
    const size_t at = (*random)() % text.size();
    text[at] = (*random)() % 2 == 0 ? static_cast<char>((*random)())
                                    : "0123456789-,:[]{}\"eE."[(*random)() % 21];
  }
  if ((*random)() % 4 == 0) text.resize(1 + (*random)() % text.size());
  return text;
}

// How many seeds `target` has, each of which and `copies` damaged ones of which were run.
inline int ReplaySeeds(const std::string& target, int copies, void (*run)(std::string_view data)) {
  std::mt19937_64 random(TestSeed());
  int seeds = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SeedPath(target))) {
    const std::string seed = ReadAll(entry.path().string());
    ++seeds;
    run(seed);
    for (int i = 0; i < copies && !seed.empty(); ++i) run(Damaged(seed, &random));
  }
  return seeds;
}

}  // namespace lockstep::testing
