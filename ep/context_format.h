// The file that holds the weights of compiled nodes: this header, the blobs, the index.
//
// A blob begins at a multiple of 64 bytes. The index holds for each node the size of its record and the record: numbers
// of 8 bytes, texts as their size and characters, blobs as offset, size and hash. Numbers are in the byte order of the
// machine that wrote them. Header and index are read, hashed and checked whenever the file is opened. Blobs are mapped,
// and their hashes compared only under the option `verify`, because reading gigabytes would be most of the time that a
// context saves. Whatever the bytes of a blob are, no kernel reads outside of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxpress {

// To be raised whenever the packed form of a weight or a record changes.
inline constexpr std::uint32_t kContextFormat = 5;
inline constexpr std::uint64_t kContextMagic = 0x0a1a7478746370ff;  // no text, and damaged by what mangles text
inline constexpr std::uint32_t kByteOrder = 0x01020304;

struct ContextHeader {
  std::uint64_t magic = kContextMagic;
  std::uint32_t byte_order = kByteOrder;
  std::uint32_t format = kContextFormat;
  std::uint64_t file_size = 0;
  std::uint64_t index_offset = 0;
  std::uint64_t index_size = 0;
  std::uint64_t index_hash = 0;
  std::uint64_t nodes = 0;
  std::uint64_t identity = 0;  // the hash of all before, which knows all blobs by their hashes in the index
};

// Workspace for some hundred thousand nodes. A file that says more is damaged: it could be long without holding
// anything, and the index is all that is read into memory.
inline constexpr std::uint64_t kMaxIndex = std::uint64_t{1} << 26;

inline constexpr std::size_t kHashedHeader = offsetof(ContextHeader, identity);
inline constexpr std::size_t kBlobAlignment = 64;
static_assert(sizeof(ContextHeader) == kBlobAlignment);

}  // namespace onnxpress
