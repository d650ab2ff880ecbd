// What a word that is none of the known ones was meant to be.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace lockstep {

// The candidate nearest to `word`, or empty if none is near enough to be a likely slip.
std::string Nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace lockstep
