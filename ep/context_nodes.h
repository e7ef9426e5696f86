// EPContext nodes: what ONNX Runtime puts in the place of compiled nodes when it saves a model, and their way back.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "context_reader.h"
#include "graph.h"
#include "options.h"
#include "plan.h"

namespace onnxpress {

// Whether the node was saved by us.
bool is_saved(const GraphNode& node);

// A node to be loaded: its record, and its values, whose types are checked because nothing else vouches for them.
class SavedNode {
 public:
  // `node` is the EPContext node, `compiled` what ONNX Runtime made of it.
  SavedNode(const Claims& claims, const ContextFile& file, const GraphNode& node, const ort::Node* compiled);

  const ort::Api& api;
  const Options& options;
  const ort::Logger* const logger;
  ContextReader record;

  // Reads the index of an input as it was when it was saved, which may be `kNoInput`, and gives the index as it is.
  std::size_t input(ort::ElementType type);
  // The node must have just one.
  void check_output(ort::ElementType type) const;

 private:
  const GraphNode& node_;
  const ort::Node* compiled_;
};

// The nodes of one call of Compile.
class SavedNodes {
 public:
  std::unique_ptr<CompiledNode> load(const Claims& claims, const ort::Graph* graph, const GraphNode& node,
                                     const ort::Node* compiled);

 private:
  std::map<std::pair<std::string, std::string>, ContextFile> files_;  // by name and identity
};

// A node that takes the place of a compiled one, whose record in the file has this number. ONNX Runtime releases it.
ort::Node* make_context_node(const ort::Api& api, const ort::Node* compiled, const ContextWriter::File& file,
                             std::size_t number);

// Where the context model of this graph goes.
std::string context_path(const ort::Api& api, const Options& options, const ort::Graph* graph);

}  // namespace onnxpress
