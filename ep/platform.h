// What the execution provider asks of the operating system: files of POSIX.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace onnxpress {

// The path without links; none, with errno set, where there is no such file.
std::optional<std::string> real_path(const std::string& path);

// A file that is read. Links are not followed, and a pipe does not make it wait. What fails sets errno.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;
  ~InputFile();

  bool is_open() const { return descriptor_ >= 0; }
  bool is_regular() const { return is_regular_; }
  std::uint64_t size() const { return size_; }

  // False where the file ends before.
  bool read(std::uint64_t offset, void* bytes, std::size_t size) const;

  // All of it, to be given back by `unmap_pages`; null where that fails.
  const std::uint8_t* map() const;

 private:
  const int descriptor_;
  bool is_regular_ = false;
  std::uint64_t size_ = 0;
};

// A file that gets its name when it is whole, and leaves no trace otherwise. Throws std::runtime_error where it cannot
// be written.
class NewFile {
 public:
  NewFile(const std::string& folder, const std::string& name);
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile();

  void write(const void* bytes, std::size_t size);

  // The bytes are on the disk before the name is, and the name before this returns: no model that is written next can
  // name a file that a crash of the machine leaves empty.
  void finish(const std::string& path);

 private:
  std::string path_;  // empty once it is renamed
  int descriptor_ = -1;
};

}  // namespace onnxpress
