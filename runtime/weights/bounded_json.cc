#include "runtime/weights/bounded_json.h"

namespace lockstep {

nlohmann::json ParseBoundedJson(std::string_view text, int deepest, size_t most_values) {
  using nlohmann::json;
  struct BeyondBounds {};
  size_t values = 0;
  // The parser goes on where a callback refuses a value; only an exception ends it.
  const auto count = [&](int depth, json::parse_event_t event, json&) {
    const bool ends =
        event == json::parse_event_t::object_end || event == json::parse_event_t::array_end;
    if (depth > deepest || (!ends && ++values > most_values)) throw BeyondBounds();
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), count, /*allow_exceptions=*/false);
  } catch (const BeyondBounds&) {
    return json(json::value_t::discarded);
  }
}

}  // namespace lockstep
