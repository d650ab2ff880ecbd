#include "runtime/weights/bounded_json.h"

#include <string>

namespace lockstep {
namespace {

using Json = nlohmann::json;

// Ends the parse at the first value that is too many or too deep. Limits are counted before a tree
// is built: a callback of the tree's parser could count too, but makes it look through the whole
// parent at the end of each object, 40 s for 40,000 of them.
class Limits final : public nlohmann::json_sax<Json> {
 public:
  Limits(int deepest, size_t most_values) : deepest_(deepest), left_(most_values) {}

  bool null() override { return Count(); }
  bool boolean(bool) override { return Count(); }
  bool number_integer(number_integer_t) override { return Count(); }
  bool number_unsigned(number_unsigned_t) override { return Count(); }
  bool number_float(number_float_t, const string_t&) override { return Count(); }
  bool string(string_t&) override { return Count(); }
  bool binary(binary_t&) override { return Count(); }
  bool start_object(std::size_t) override { return Count() && ++depth_ <= deepest_; }
  bool key(string_t&) override { return Count(); }
  bool end_object() override { return --depth_ >= 0; }
  bool start_array(std::size_t) override { return Count() && ++depth_ <= deepest_; }
  bool end_array() override { return --depth_ >= 0; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  bool Count() { return left_-- > 0; }

  const int deepest_;
  size_t left_;
  int depth_ = 0;
};

}  // namespace

Json ParseBoundedJson(std::string_view text, int deepest, size_t most_values) {
  Limits limits(deepest, most_values);
  if (!Json::sax_parse(text.begin(), text.end(), &limits)) return Json(Json::value_t::discarded);
  return Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

}  // namespace lockstep
