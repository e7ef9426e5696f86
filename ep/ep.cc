#include "ep.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "context_nodes.h"
#include "graph.h"
#include "ort/ort.h"
#include "plan.h"

namespace onnxpress {
namespace {

struct SessionEp : ort::Ep {
  SessionEp(const ort::Api& ort_api, Options given, const ort::Logger* log, bool takes_one)
      : Ep{}, api(ort_api), options(std::move(given)), logger(log), takes_one_graph(takes_one) {
    ort_version_supported = ort::kApiVersion;
    GetName = [](const ort::Ep*) { return kEpName; };
    GetCapability = [](ort::Ep* self, const ort::Graph* graph, ort::EpGraphSupportInfo* info) {
      const auto& ep = *static_cast<const SessionEp*>(self);
      return ort::guarded(ep.api, [&] { ep.claim(graph, info); });
    };
    Compile = [](ort::Ep* self, const ort::Graph** graphs, const ort::Node** fused, std::size_t count,
                 ort::NodeComputeInfo** infos, ort::Node** context) {
      auto& ep = *static_cast<SessionEp*>(self);
      return ort::guarded(ep.api, [&] { ep.compile(graphs, fused, count, infos, context); });
    };
    ReleaseNodeComputeInfos = [](ort::Ep*, ort::NodeComputeInfo** infos, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) delete static_cast<CompiledNode*>(infos[i]);
    };
  }

  struct Found {
    std::unique_ptr<Plan> plan;  // or null
    const Family* family = nullptr;
  };

  // The plan of the family of the node; null, with the reason logged, where it has none or leaves it.
  Found find_plan(const Claims& claims, const ort::Node* node) const {
    for (const Family& family : families()) {
      if (!options.claims(family.name) || (options.makes_context && family.load == nullptr)) continue;
      try {
        if (std::unique_ptr<Plan> plan = family.plan(claims, node)) {
          leave_if_slower(claims, family, *plan, GraphNode(api, node));
          leave_to_other_graph(claims, GraphNode(api, node));
          return {std::move(plan), &family};
        }
      } catch (const ort::InvalidArgument& reason) {
        log(std::string("left to others: ") + reason.what());
        return {};
      }
    }
    return {};
  }

  void leave_if_slower(const Claims& claims, const Family& family, const Plan& plan, const GraphNode& node) const {
    const bool is_asked_for = claims.compiling || options.names(family.name) || node.domain() == kDomain;
    if (!is_asked_for && !family.is_faster(plan, options.isa)) {
      node.reject(std::string("we are no faster on ") + isa_name(options.isa));
    }
  }

  void leave_to_other_graph(const Claims& claims, const GraphNode& node) const {
    if (!claims.compiling && takes_one_graph && has_compiled) {
      node.reject("ONNX Runtime 1.23 runs compiled nodes of one graph of a model, and another one has some");
    }
  }

  void claim(const ort::Graph* graph, ort::EpGraphSupportInfo* info) const {
    const bool all_stay = will_be_inlined(graph) || (options.makes_context && is_inner(graph));
    Claims claims{api, options, logger, GraphIndex(api, graph), {}};
    for (const ort::Node* node : claims.graph.nodes()) {
      if (is_saved(GraphNode(api, node))) {
        // Nobody else can run it: what is wrong with it is found, and told, when it is compiled.
        const ort::NodeFusionOptions as_it_is{ort::kApiVersion, false};
        ort::check(api, api.GetEpApi()->AddNodesToFuse(info, &node, 1, &as_it_is));
      } else if (claims.is_free(node) && !all_stay) {
        const std::unique_ptr<Plan> found = find_plan(claims, node).plan;
        if (found == nullptr) continue;
        const ort::NodeFusionOptions fusion{ort::kApiVersion, found->drops_constants};
        ort::check(api, api.GetEpApi()->AddNodesToFuse(info, found->nodes.data(), found->nodes.size(), &fusion));
        claims.taken.insert(claims.taken.end(), found->nodes.begin(), found->nodes.end());
      }
    }
  }

  // Whether the graph lies inside a node, where ONNX Runtime puts no EPContext nodes.
  bool is_inner(const ort::Graph* graph) const {
    const ort::Node* parent = nullptr;
    ort::check(api, api.Graph_GetParentNode(graph, &parent));
    return parent != nullptr;
  }

  // Whether the graph lies, at any depth, in a SequenceMap. ONNX Runtime asks of it, then makes a Loop of the node by
  // the operator's definition, which does not know nodes that were compiled meanwhile, and asks again of the Loop.
  bool will_be_inlined(const ort::Graph* graph) const {
    for (;;) {
      const ort::Node* parent = nullptr;
      ort::check(api, api.Graph_GetParentNode(graph, &parent));
      if (parent == nullptr) return false;
      if (GraphNode(api, parent).is("SequenceMap")) return true;
      ort::check(api, api.Node_GetGraph(parent, &graph));
      if (graph == nullptr) return false;
    }
  }

  void compile(const ort::Graph** graphs, const ort::Node** fused, std::size_t count, ort::NodeComputeInfo** infos,
               ort::Node** context) {
    std::vector<std::unique_ptr<CompiledNode>> made;
    SavedNodes saved;
    ContextWriter writer;
    for (std::size_t i = 0; i < count; ++i) made.push_back(compile(graphs[i], fused[i], saved, writer));
    if (options.makes_context) {
      const ContextWriter::File file = writer.write(context_path(api, options, graphs[0]));
      for (std::size_t i = 0; i < count; ++i) context[i] = make_context_node(api, fused[i], file, i);
    }
    for (std::size_t i = 0; i < count; ++i) infos[i] = made[i].release();
    has_compiled = true;
  }

  // The graph holds the nodes of one plan, or one that was saved.
  std::unique_ptr<CompiledNode> compile(const ort::Graph* graph, const ort::Node* fused, SavedNodes& saved,
                                        ContextWriter& writer) const {
    const Claims claims{api, options, logger, GraphIndex(api, graph), {}, true};
    for (const ort::Node* node : claims.graph.nodes()) {
      const GraphNode read(api, node);
      if (is_saved(read)) return saved.load(claims, graph, read, fused);
      const Found found = find_plan(claims, node);
      if (found.plan == nullptr) continue;
      if (found.plan->nodes.size() != claims.graph.nodes().size()) break;
      std::unique_ptr<CompiledNode> compiled = found.plan->compile(fused);
      if (options.makes_context) {
        writer.begin_node(found.family->name);
        compiled->save(writer);
      }
      return compiled;
    }
    throw std::runtime_error("onnxpress: the nodes of a compiled node are not those that were claimed");
  }

  void log(const std::string& message) const {
    const std::string text = std::string(kEpName) + ": " + message;
    ort::check(api, api.Logger_LogMessage(logger, ort::kInfo, text.c_str(), __FILE__, __LINE__, __func__));
  }

  const ort::Api& api;
  const Options options;
  const ort::Logger* const logger;
  const bool takes_one_graph;
  bool has_compiled = false;
};

}  // namespace

ort::Ep* create_ep(const ort::Api& api, Options options, const ort::Logger* logger, bool repeats_names) {
  return new SessionEp(api, std::move(options), logger, repeats_names);
}

void release_ep(ort::Ep* ep) { delete static_cast<SessionEp*>(ep); }

}  // namespace onnxpress
