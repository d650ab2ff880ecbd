#pragma once

#include <string>

namespace lockstep {

// Release and commit ("0.1.0+1a2b3c4d5e6f"): what ranks compare in the handshake.
std::string SourceVersion();
// The same with compiler and build type, for `lockstep version`.
std::string BuildDescription();

}  // namespace lockstep
