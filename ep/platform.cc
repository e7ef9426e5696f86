#include "platform.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>

namespace onnxpress {
namespace {

[[noreturn]] void fail(const std::string& path) {
  throw std::runtime_error("onnxpress: " + path + ": cannot write: " + std::strerror(errno));
}

void sync_folder_of(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/') + 1) + ".";
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail(folder);
  const bool is_synced = fsync(descriptor) == 0 || errno == EINVAL;  // of file systems that cannot do it for folders
  const int reason = errno;
  close(descriptor);
  errno = reason;
  if (!is_synced) fail(folder);
}

}  // namespace

std::optional<std::string> real_path(const std::string& path) {
  const std::unique_ptr<char, void (*)(void*)> real(realpath(path.c_str(), nullptr), std::free);
  if (real == nullptr) return std::nullopt;
  return real.get();
}

InputFile::InputFile(const std::string& path)
    : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)) {
  struct stat status;
  if (!is_open() || fstat(descriptor_, &status) != 0) return;
  is_regular_ = S_ISREG(status.st_mode);
  size_ = static_cast<std::uint64_t>(status.st_size);
}

InputFile::~InputFile() {
  if (is_open()) close(descriptor_);
}

bool InputFile::read(std::uint64_t offset, void* bytes, std::size_t size) const {
  auto* at = static_cast<char*>(bytes);
  while (size > 0) {
    const ssize_t got = pread(descriptor_, at, size, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    offset += static_cast<std::uint64_t>(got);
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

const std::uint8_t* InputFile::map() const {
  void* bytes = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (bytes == MAP_FAILED) return nullptr;
  madvise(bytes, size_, MADV_WILLNEED);  // a hint: read ahead while the rest of the model is loaded
  return static_cast<const std::uint8_t*>(bytes);
}

NewFile::NewFile(const std::string& folder, const std::string& name) {
  static std::atomic<unsigned> count{0};
  do {
    const std::string unique = std::to_string(getpid()) + "." + std::to_string(count++);
    path_ = folder + "." + name + "." + unique + ".part";
    descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (descriptor_ < 0) fail(path_);
}

NewFile::~NewFile() {
  if (descriptor_ >= 0) close(descriptor_);
  if (!path_.empty()) unlink(path_.c_str());
}

void NewFile::write(const void* bytes, std::size_t size) {
  const auto* at = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path_);
    at += written;
    size -= static_cast<std::size_t>(written);
  }
}

void NewFile::finish(const std::string& path) {
  if (fsync(descriptor_) != 0) fail(path_);
  // Some file systems tell of a full disk only now.
  if (close(std::exchange(descriptor_, -1)) != 0) fail(path_);
  if (std::rename(path_.c_str(), path.c_str()) != 0) fail(path);
  path_.clear();
  sync_folder_of(path);
}

}  // namespace onnxpress
