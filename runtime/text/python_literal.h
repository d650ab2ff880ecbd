// Python literals, which models sometimes write where JSON was asked for.
#pragma once

#include <optional>
#include <string_view>

#include "runtime/text/json_value.h"

namespace lockstep {

// The value of a Python literal (None, True, numbers, strings, lists, tuples, dicts) as JSON:
// tuples become arrays, keys that are no strings their JSON spelling. Nothing where the text is not
// one, or has no JSON counterpart (sets, bytes, complex numbers), or is nested deeper than 100
// levels.
std::optional<JsonValue> ParsePythonLiteral(std::string_view text);

}  // namespace lockstep
