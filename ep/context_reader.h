// Loads compiled nodes. A file is as hostile as a model: everything is checked, and every failure is an InvalidArgument
// that names the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/blob.h"
#include "ort/ort.h"

namespace onnxpress {

// The bytes of a file, mapped as long as somebody holds it. All who map it share its pages.
class ContextFile {
 public:
  // In the first of the folders that has the file, which may be a link to one below any of them. `identity` is what the
  // model expects. With `verify`, blobs are hashed too, each time that one is read.
  ContextFile(const std::vector<std::string>& folders, const std::string& name, const std::string& identity,
              bool verify);

  [[noreturn]] void reject(const std::string& reason) const;

 private:
  friend class ContextReader;

  // Sets the path, and gives the one that it stands for.
  std::string find(const std::vector<std::string>& folders, const std::string& name);
  const std::string& record(std::size_t node) const;
  Blob blob(std::uint64_t offset, std::uint64_t size, std::uint64_t hash) const;

  std::string path_;
  bool verify_;
  Blob map_;
  std::vector<std::string> records_;
};

// The record of one node, value by value.
class ContextReader {
 public:
  ContextReader(const ContextFile& file, std::size_t node) : file_(file), record_(file.record(node)) {}

  std::int64_t number();
  // A number from `low` to `high`.
  std::int64_t number(std::int64_t low, std::int64_t high);
  std::string text();
  Blob blob();
  // Nothing may be left.
  void end() const;

  [[noreturn]] void reject(const std::string& reason) const { file_.reject(reason); }

 private:
  const char* take(std::uint64_t size);

  const ContextFile& file_;
  const std::string& record_;
  std::size_t at_ = 0;
};

}  // namespace onnxpress
