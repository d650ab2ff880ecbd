// The page at GET /: one file of HTML with its style and script inside (page/index.html), built
// into the program.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/http/server.h"

namespace lockstep {

// The file.
std::string_view PageText();
// The Content-Security-Policy of a page whose style and script are what `html` has between its
// tags, and nothing else: they are named by their digests.
std::string PagePolicy(std::string_view html);
std::unique_ptr<HttpReply> PageReply();

}  // namespace lockstep
