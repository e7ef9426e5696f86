#include "context_reader.h"

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "context_format.h"
#include "hash.h"
#include "options.h"
#include "platform.h"

namespace onnxpress {
namespace {

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

bool is_below(const std::string& path, const std::string& folder) {
  const std::string begin = folder == "/" ? folder : folder + "/";
  return path.compare(0, begin.size(), begin) == 0;
}

std::uint64_t number_at(const char* bytes) {
  std::uint64_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

}  // namespace

void ContextFile::reject(const std::string& reason) const {
  throw ort::InvalidArgument(std::string(kEpName) + ": " + path_ + ": " + reason);
}

// Links of model caches and mounted volumes are followed as far as ONNX Runtime follows those of external data: others
// could lead anywhere.
std::string ContextFile::find(const std::vector<std::string>& folders, const std::string& name) {
  std::optional<std::string> found;
  int reason = ENOENT;
  for (auto folder = folders.begin(); folder != folders.end() && !found; ++folder) {
    path_ = *folder + "/" + name;
    found = real_path(path_);
    if (!found && errno != ENOENT) reason = errno;
  }
  if (!found) reject(std::string(std::strerror(reason)) + "; the model needs this file beside it");
  for (const std::string& folder : folders) {
    const std::optional<std::string> real = real_path(folder);
    if (real && is_below(*found, *real)) return *found;
  }
  reject("is a link that leaves the folder of the model; copy the file itself (cp -L)");
}

ContextFile::ContextFile(const std::vector<std::string>& folders, const std::string& name, const std::string& identity,
                         bool verify)
    : path_("ep_cache_context"), verify_(verify) {
  if (!is_plain_name(name)) reject("the file of a context must be named without a folder, and lie beside the model");
  const std::string real = find(folders, name);
  const InputFile file(real);
  if (!file.is_open()) reject(std::strerror(errno));
  if (!file.is_regular()) reject("is no regular file");

  ContextHeader header;
  if (!file.read(0, &header, sizeof header) || header.magic != kContextMagic) reject("holds no context");
  if (header.byte_order != kByteOrder) reject("was written with another byte order; compile the model here");
  if (header.format != kContextFormat) {
    reject("has version " + std::to_string(header.format) + " of the format, this library has version " +
           std::to_string(kContextFormat) + "; compile the model again");
  }
  if (header.identity != hash_of(&header, kHashedHeader)) reject("is damaged: its header has another hash");
  if (to_hex(header.identity) != identity) reject("is not the file that the model was saved with");
  const std::uint64_t size = file.size();
  if (header.file_size != size) {
    reject("is damaged: it has " + std::to_string(size) + " bytes of " + std::to_string(header.file_size));
  }
  if (header.index_offset > size || header.index_size != size - header.index_offset) reject("is damaged: no index");
  if (header.index_size > kMaxIndex) reject("is damaged: its index is too long");
  // Read rather than mapped, so that what was checked stays what it was.
  std::string index(header.index_size, '\0');
  if (!file.read(header.index_offset, index.data(), index.size()) ||
      hash_of(index.data(), index.size()) != header.index_hash) {
    reject("is damaged: its index has another hash");
  }
  for (std::size_t at = 0; at < index.size(); at += records_.back().size()) {
    const std::size_t left = index.size() - at;
    if (left < sizeof(std::uint64_t) || number_at(&index[at]) > left - sizeof(std::uint64_t)) {
      reject("is damaged: a record ends behind the index");
    }
    if (records_.size() == header.nodes) reject("is damaged: it has not as many nodes as it says");
    const std::uint64_t bytes = number_at(&index[at]);
    if (bytes == 0) reject("is damaged: a record is too short");
    at += sizeof bytes;
    records_.push_back(index.substr(at, bytes));
  }
  if (records_.size() != header.nodes) reject("is damaged: it has not as many nodes as it says");

  const std::uint8_t* bytes = file.map();
  if (bytes == nullptr) reject(std::string("cannot map: ") + std::strerror(errno));
  map_ = {std::shared_ptr<const std::uint8_t>(bytes, Free{size}), size};
}

const std::string& ContextFile::record(std::size_t node) const {
  if (node >= records_.size()) reject("has no node " + std::to_string(node));
  return records_[node];
}

Blob ContextFile::blob(std::uint64_t offset, std::uint64_t size, std::uint64_t hash) const {
  if (offset % kBlobAlignment != 0 || offset > map_.size || size > map_.size - offset) {
    reject("is damaged: bytes " + std::to_string(offset) + " and following lie outside of it");
  }
  const Blob found{std::shared_ptr<const std::uint8_t>(map_.bytes, map_.data() + offset), size};
  if (verify_ && hash_of(found.data(), size) != hash) {
    reject("is damaged: the bytes from " + std::to_string(offset) + " on have another hash");
  }
  return found;
}

const char* ContextReader::take(std::uint64_t size) {
  if (size > record_.size() - at_) reject("is damaged: a record is too short");
  const char* taken = record_.data() + at_;
  at_ += size;
  return taken;
}

std::int64_t ContextReader::number() { return static_cast<std::int64_t>(number_at(take(sizeof(std::int64_t)))); }

std::int64_t ContextReader::number(std::int64_t low, std::int64_t high) {
  const std::int64_t value = number();
  if (value < low || value > high) reject("is damaged: a record holds the impossible " + std::to_string(value));
  return value;
}

std::string ContextReader::text() {
  const auto size = static_cast<std::uint64_t>(number());
  return std::string(take(size), size);
}

Blob ContextReader::blob() {
  const auto offset = static_cast<std::uint64_t>(number()), size = static_cast<std::uint64_t>(number());
  return file_.blob(offset, size, static_cast<std::uint64_t>(number()));
}

void ContextReader::end() const {
  if (at_ != record_.size()) reject("is damaged: a record is too long");
}

}  // namespace onnxpress
