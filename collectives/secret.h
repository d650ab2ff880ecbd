// The cluster secret: proofs by HMAC-SHA256, keys derived from it, random challenges.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "transport/fabric.h"

namespace lockstep {

using Challenge = std::array<std::byte, 32>;

Proof HmacSha256(std::string_view key, std::span<const std::byte> data);
// Takes the same time whatever differs.
bool EqualProofs(const Proof& a, const Proof& b);
Challenge RandomChallenge();
// The key of one session's data connections; the secret itself is used for the handshake only.
std::string SessionKey(std::string_view secret, const Challenge& session);

}  // namespace lockstep
