#include "options.h"

#include <algorithm>
#include <exception>

#include "ort/ort.h"
#include "plan.h"

namespace onnxpress {
namespace {

constexpr const char* kPrefix = "ep.onnxpressexecutionprovider.";
constexpr const char* kQdqAccuracyLevel = "session.qdq_matmulnbits_accuracy_level";

[[noreturn]] void reject(const std::string& what) { throw ort::InvalidArgument(std::string(kEpName) + ": " + what); }

std::int64_t accuracy_level(const std::string& value) {
  if (value != "0" && value != "1" && value != "3" && value != "4") {
    reject("accuracy_level is '" + value +
           "', must be 0 or 1 (float32), 3 (activations as bfloat16) or 4 (activations as int8)");
  }
  return std::stoll(value);
}

Isa isa(const std::string& value) {
  try {
    return parse_isa(value);
  } catch (const std::exception& error) {
    reject(std::string("isa: ") + error.what());
  }
}

bool flag(const std::string& name, const std::string& value) {
  if (value != "0" && value != "1") reject(name + " is '" + value + "', must be 0 or 1");
  return value == "1";
}

std::vector<std::string> families_in(const std::string& list) {
  std::vector<std::string> names;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string name = list.substr(begin, end - begin);
    std::string known;
    bool found = false;
    for (const Family& family : families()) {
      found = found || name == family.name;
      known += (known.empty() ? "" : ", ") + std::string(family.name);
    }
    if (!found) reject("claim has '" + name + "', there is " + known);
    names.push_back(name);
    begin = end + 1;
  }
  return names;
}

void set(Options& options, const std::string& name, const std::string& value) {
  if (name == "accuracy_level") {
    options.accuracy_level = accuracy_level(value);
  } else if (name == "isa") {
    options.isa = isa(value);
  } else if (name == "claim") {
    options.claim = families_in(value);
  } else if (name == "verify") {
    options.verify = flag(name, value);
  } else {
    reject("unknown option '" + name + "'; there are accuracy_level, claim, isa and verify");
  }
}

}  // namespace

bool Options::claims(const std::string& family) const { return claim.empty() || names(family); }

bool Options::names(const std::string& family) const {
  return std::find(claim.begin(), claim.end(), family) != claim.end();
}

Options read_options(const ort::Api& api, const ort::SessionOptions* session_options) {
  ort::KeyValuePairs* pairs = nullptr;
  ort::check(api, api.GetSessionOptionsConfigEntries(session_options, &pairs));
  struct Release {
    const ort::Api& api;
    ort::KeyValuePairs* pairs;
    ~Release() { api.ReleaseKeyValuePairs(pairs); }
  } release{api, pairs};
  const char* const* keys = nullptr;
  const char* const* values = nullptr;
  std::size_t count = 0;
  api.GetKeyValuePairs(pairs, &keys, &values, &count);

  Options options;
  bool embeds = false;
  options.isa = chosen_isa();  // a wrong ONNXPRESS_ISA is an error here, not in the middle of a session
  for (std::size_t i = 0; i < count; ++i) {
    const std::string key = keys[i], value = values[i];
    if (key == "ep.context_enable") options.makes_context = value == "1";
    if (key == "ep.context_file_path") options.context_path = value;
    if (key == "ep.context_embed_mode") embeds = value == "1";
    if (key == "session.model_external_initializers_file_folder_path") options.data_folder = value;
    if (key == kQdqAccuracyLevel && (value == "0" || value == "1")) options.qdq_accuracy_level = 0;
    if (key.rfind(kPrefix, 0) == 0) set(options, key.substr(std::string(kPrefix).size()), value);
  }
  if (options.makes_context && embeds) {
    reject("ep.context_embed_mode=1 is not supported: weights are mapped, from a file of their own");
  }
  return options;
}

}  // namespace onnxpress
