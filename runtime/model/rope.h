// Rotary position embedding: the angles of a step's rows.
#pragma once

#include <cstdint>
#include <span>

namespace lockstep {

// cosines and sines [positions, rotary_dim / 2] of position * theta^(-2i / rotary_dim). Rounded
// where transformers rounds (frequency and angle are float32 before the cosine is taken), so that
// long prompts agree with it too.
void RotaryAngles(double theta, int64_t rotary_dim, std::span<const int32_t> positions,
                  float* cosines, float* sines);

}  // namespace lockstep
