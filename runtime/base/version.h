#pragma once

#include <string>

namespace lockstep {

// Release and a digest over the sources ("0.1.0+1a2b3c4d5e6f"): what ranks compare in the
// handshake. Equal for builds of the same sources, with or without git, whatever the compiler.
std::string SourceVersion();
// The same with commit, compiler and build type, for `lockstep version`.
std::string BuildDescription();

}  // namespace lockstep
