// How nodes of a graph become one compiled node.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "context_writer.h"
#include "graph.h"
#include "options.h"
#include "ort/ep_abi.h"
#include "ort/ort.h"

namespace onnxpress {

// What ONNX Runtime runs instead of the nodes.
class CompiledNode : public ort::NodeComputeInfo {
 public:
  explicit CompiledNode(const ort::Api& api);
  virtual ~CompiledNode() = default;
  virtual void run(ort::KernelContext* context) const = 0;
  // What the family needs to load it. Only asked where there is a loader.
  virtual void save(ContextWriter&) const {}

 protected:
  const ort::Value* input(ort::KernelContext* context, std::size_t index) const;
  const ort::Api& api_;
};

// Nodes that can be run as one, read and checked.
class Plan {
 public:
  virtual ~Plan() = default;
  // `compiled` tells the index of each input.
  virtual std::unique_ptr<CompiledNode> compile(const ort::Node* compiled) const = 0;

  std::vector<const ort::Node*> nodes;
  // Whether constants are read when the plan is compiled, so that ONNX Runtime need not keep them. Else they come in at
  // run time.
  bool drops_constants = true;
  // Whether ONNX Runtime has a kernel for the nodes on x86, other than portable code and that of float32.
  bool has_rival = true;
};

// Where plans are made: the session's settings, the graph, and the nodes that another plan has already.
struct Claims {
  const ort::Api& api;
  const Options& options;
  const ort::Logger* logger;
  GraphIndex graph;
  std::vector<const ort::Node*> taken;
  bool compiling = false;  // the graph holds the nodes of one plan, and no others to tell what was certain of them

  bool is_free(const ort::Node* node) const;
  // The only reader of a value, if nobody has it yet.
  std::optional<GraphNode> free_reader(const GraphValue& value) const;
  // The node that computes what `reader` alone reads, if nobody has it yet.
  std::optional<GraphNode> free_source(const GraphValue& value, const GraphNode& reader) const;
};

class SavedNode;

// A kind of nodes, named in the option `claim`.
struct Family {
  const char* name;
  // The plan around this node, null where it is not of the family. Throws InvalidArgument, with the reason, where it
  // is but has to be left to others.
  std::unique_ptr<Plan> (*plan)(const Claims& claims, const ort::Node* node);
  // Whether our kernels are faster than ONNX Runtime's own. Where they are not, nodes are left to it unless `claim`
  // names the family; nodes of our own domain, for which it has none, are taken.
  bool (*is_faster)(const Plan& plan, Isa isa);
  // What `save` saved. Null where nothing is worth saving: in a context such nodes stay as they are.
  std::unique_ptr<CompiledNode> (*load)(SavedNode& saved) = nullptr;
};

const std::vector<Family>& families();

}  // namespace onnxpress
