// What a user can set for a session.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cpu_isa.h"
#include "ort/ep_abi.h"

namespace onnxpress {

inline constexpr const char* kEpName = "OnnxpressExecutionProvider";
inline constexpr const char* kDomain = "onnxpress";  // of our own operators

struct Options {
  std::optional<std::int64_t> accuracy_level;  // instead of the nodes' own
  std::int64_t qdq_accuracy_level = 4;         // of what ONNX Runtime would fuse into a MatMulNBits, its own setting
  Isa isa{};
  std::vector<std::string> claim;  // families; empty: all
  bool verify = false;

  bool makes_context = false;  // of the session: save compiled nodes
  std::string context_path;    // the context model; empty: named after the model
  std::string data_folder;     // of a model that is no file

  bool claims(const std::string& family) const;
  bool names(const std::string& family) const;  // in `claim`
};

// Throws InvalidArgument for an option that is unknown or has a wrong value.
Options read_options(const ort::Api& api, const ort::SessionOptions* session_options);

}  // namespace onnxpress
