#include "context_writer.h"

#include <cstring>
#include <stdexcept>

#include "hash.h"
#include "platform.h"

namespace onnxpress {
namespace {

std::string bytes_of(std::uint64_t value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); }

std::uint64_t aligned(std::uint64_t offset) { return (offset + kBlobAlignment - 1) / kBlobAlignment * kBlobAlignment; }

}  // namespace

void ContextWriter::begin_node(const std::string& family) {
  records_.emplace_back();
  text(family);
}

void ContextWriter::number(std::int64_t value) { records_.back() += bytes_of(static_cast<std::uint64_t>(value)); }

void ContextWriter::text(const std::string& value) { records_.back() += bytes_of(value.size()) + value; }

void ContextWriter::blob(const Blob& value) {
  const std::uint64_t hash = hash_of(value.data(), value.size);
  records_.back() += bytes_of(store(value, hash)) + bytes_of(value.size) + bytes_of(hash);
}

std::uint64_t ContextWriter::store(const Blob& value, std::uint64_t hash) {
  if (value.size == 0) return 0;
  const auto [begin, end] = by_hash_.equal_range(hash);
  for (auto at = begin; at != end; ++at) {
    const Stored& known = blobs_[at->second];
    const bool same = known.blob.size == value.size;
    if (same && std::memcmp(known.blob.data(), value.data(), value.size) == 0) return known.offset;
  }
  by_hash_.emplace(hash, blobs_.size());
  blobs_.push_back({value, end_});
  end_ = aligned(end_ + value.size);
  return blobs_.back().offset;
}

ContextWriter::File ContextWriter::write(const std::string& model_path) const {
  std::string index;
  for (const std::string& record : records_) index += bytes_of(record.size()) + record;
  if (index.size() > kMaxIndex) throw std::runtime_error("onnxpress: " + model_path + ": too many nodes to be saved");
  ContextHeader header;
  header.file_size = end_ + index.size();
  header.index_offset = end_;
  header.index_size = index.size();
  header.index_hash = hash_of(index.data(), index.size());
  header.nodes = records_.size();
  header.identity = hash_of(&header, kHashedHeader);

  const std::size_t slash = model_path.rfind('/');
  const std::size_t folder_size = slash == std::string::npos ? 0 : slash + 1;
  const std::string folder = model_path.substr(0, folder_size), model = model_path.substr(folder_size);
  const std::string identity = to_hex(header.identity), name = model + "." + identity + ".weights";
  NewFile file(folder, name);
  file.write(&header, sizeof header);
  for (const Stored& stored : blobs_) {
    static const char padding[kBlobAlignment] = {};
    file.write(stored.blob.data(), stored.blob.size);
    file.write(padding, aligned(stored.blob.size) - stored.blob.size);
  }
  file.write(index.data(), index.size());
  file.finish(folder + name);
  return {name, identity};
}

}  // namespace onnxpress
