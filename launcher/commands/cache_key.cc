#include "launcher/commands/cache_key.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#if defined(__GLIBC__)
#include <gnu/libc-version.h>
#endif

#include "runtime/base/digest.h"
#include "runtime/base/status.h"
#include "runtime/weights/partition.h"

namespace lockstep {

std::string CacheKeyOf(const CacheKeyFacts& facts) {
  std::string key = absl::StrFormat(
      "lockstep: %s\nC library: %s\nmodel digest: %016x\nkernels: %s\nkv-cache-dtype: %s\n"
      "ranks: %d\nshares: %s\nwire: %s\nsum-order: %s\ndraft: %s\n",
      facts.build, facts.c_library, facts.model_digest, facts.kernels, facts.cache_type,
      facts.shares.size(), FormatShares(facts.shares), facts.wire, facts.sum_order,
      facts.draft ? "yes" : "no");
  if (facts.sum_order != "any" || facts.shares.size() == 1) return key;
  // Then the tree along which is added follows from who shares a machine, and from nothing else:
  // not from lengths or transports (collectives/sum_any_order.cc).
  key += "machines:";
  std::vector<std::string> seen;
  for (const std::string& host : facts.hosts) {
    const auto place = std::find(seen.begin(), seen.end(), host) - seen.begin();
    if (place == static_cast<std::ptrdiff_t>(seen.size())) seen.push_back(host);
    key += absl::StrFormat(" %d", place);
  }
  return key + "\n";
}

std::string CLibraryDescription() {
  std::vector<double> wide;
  std::vector<float> narrow;
  for (int i = 1; i <= 512; ++i) {
    // Not the compiler's answers, which may be others.
    const volatile double input = 0.37 * i;
    const double x = input;
    const float f = static_cast<float>(x);
    wide.insert(wide.end(), {std::sin(x), std::cos(x), std::log(x), std::exp(-x), std::pow(x, -x)});
    narrow.insert(narrow.end(),
                  {std::sin(f), std::cos(f), std::log(f), std::exp(-f), std::pow(f, -f)});
  }
  const uint64_t digest =
      Digest64(std::as_bytes(std::span(narrow)), Digest64(std::as_bytes(std::span(wide))));
#if defined(__GLIBC__)
  return absl::StrFormat("glibc %s, %016x", gnu_get_libc_version(), digest);
#else
  return absl::StrFormat("%016x", digest);
#endif
}

}  // namespace lockstep
