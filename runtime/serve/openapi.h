// The API that http_api.cc serves, described for tools: openapi.json, built into the program.
#pragma once

#include <string_view>

namespace lockstep {

std::string_view OpenApiText();

}  // namespace lockstep
