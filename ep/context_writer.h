// Saves compiled nodes.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "context_format.h"
#include "kernels/blob.h"

namespace onnxpress {

class ContextWriter {
 public:
  // What follows is the record of this node, which the loader of the family reads in the same order.
  void begin_node(const std::string& family);
  void number(std::int64_t value);
  void text(const std::string& value);
  void blob(const Blob& value);  // equal ones are stored once

  struct File {
    std::string name, identity;
  };

  // Writes NAME.IDENTITY.weights beside a model NAME, whole or not at all. Throws std::runtime_error.
  File write(const std::string& model_path) const;

 private:
  struct Stored {
    Blob blob;
    std::uint64_t offset;
  };

  std::uint64_t store(const Blob& value, std::uint64_t hash);

  std::vector<std::string> records_;
  std::vector<Stored> blobs_;  // by rising offset
  std::unordered_multimap<std::uint64_t, std::size_t> by_hash_;
  std::uint64_t end_ = sizeof(ContextHeader);
};

}  // namespace onnxpress
