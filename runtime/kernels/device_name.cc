#include "runtime/kernels/device_name.h"

#include <charconv>
#include <vector>

namespace lockstep::kernels {
namespace {

constexpr std::string_view kCuda = "cuda:";
constexpr int kMostDevices = 1024;

std::vector<std::string_view> Parts(std::string_view text) {
  std::vector<std::string_view> parts;
  for (size_t comma = text.find(','); comma != text.npos; comma = text.find(',')) {
    parts.push_back(text.substr(0, comma));
    text.remove_prefix(comma + 1);
  }
  parts.push_back(text);
  return parts;
}

}  // namespace

std::string DeviceName::Text() const {
  return is_cuda ? std::string(kCuda) + std::to_string(ordinal) : "cpu";
}

StatusOr<DeviceName> ParseDevice(std::string_view text, std::string_view where) {
  if (text == "cpu") return DeviceName{};
  DeviceName device{.is_cuda = true};
  if (text.substr(0, kCuda.size()) == kCuda) {
    const std::string_view number = text.substr(kCuda.size());
    const auto [end, error] =
        std::from_chars(number.data(), number.data() + number.size(), device.ordinal);
    const bool whole = error == std::errc() && end == number.data() + number.size();
    if (whole && device.ordinal >= 0 && device.ordinal < kMostDevices) return device;
  }
  return UsageError("%s: '%s' is not cpu or cuda:N, with N the number of a GPU, from 0 on",
                    std::string(where), std::string(text.substr(0, 80)));
}

StatusOr<DeviceName> DeviceOfRank(std::string_view text, int rank, int ranks,
                                  std::string_view where) {
  const std::vector<std::string_view> parts = Parts(text);
  const auto count = static_cast<int>(parts.size());
  if (count != 1 && count != ranks) {
    return UsageError("%s names %d devices for %d ranks; give one for all, or one each",
                      std::string(where), count, ranks);
  }
  // A rank that names a wrong device should end all of them alike.
  DeviceName own;
  for (int i = 0; i < count; ++i) {
    LOCKSTEP_ASSIGN_OR_RETURN(const DeviceName device, ParseDevice(parts[i], where));
    if (count == 1 || i == rank) own = device;
  }
  return own;
}

}  // namespace lockstep::kernels
