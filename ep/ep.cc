#include "ep.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graph.h"
#include "ort/ort.h"
#include "plan.h"

namespace onnxpress {
namespace {

struct SessionEp : ort::Ep {
  SessionEp(const ort::Api& ort_api, Options given, const ort::Logger* log)
      : Ep{}, api(ort_api), options(std::move(given)), logger(log) {
    ort_version_supported = ort::kApiVersion;
    GetName = [](const ort::Ep*) { return kEpName; };
    GetCapability = [](ort::Ep* self, const ort::Graph* graph, ort::EpGraphSupportInfo* info) {
      const auto& ep = *static_cast<const SessionEp*>(self);
      return ort::guarded(ep.api, [&] { ep.claim(graph, info); });
    };
    Compile = [](ort::Ep* self, const ort::Graph** graphs, const ort::Node** fused, std::size_t count,
                 ort::NodeComputeInfo** infos, ort::Node**) {
      const auto& ep = *static_cast<const SessionEp*>(self);
      return ort::guarded(ep.api, [&] {
        for (std::size_t i = 0; i < count; ++i) infos[i] = ep.compile(graphs[i], fused[i]);
      });
    };
    ReleaseNodeComputeInfos = [](ort::Ep*, ort::NodeComputeInfo** infos, std::size_t count) {
      for (std::size_t i = 0; i < count; ++i) delete static_cast<CompiledNode*>(infos[i]);
    };
  }

  // The plan of the first family that takes the node; null, with the reason logged, where none does.
  std::unique_ptr<Plan> plan(const Claims& claims, const ort::Node* node) const {
    for (const Family& family : families()) {
      if (!options.claims(family.name)) continue;
      try {
        if (std::unique_ptr<Plan> found = family.plan(claims, node)) return found;
      } catch (const ort::InvalidArgument& reason) {
        log(std::string("left to others: ") + reason.what());
      }
    }
    return nullptr;
  }

  void claim(const ort::Graph* graph, ort::EpGraphSupportInfo* info) const {
    Claims claims{api, options, logger, GraphIndex(api, graph), {}};
    for (const ort::Node* node : claims.graph.nodes()) {
      if (!claims.is_free(node)) continue;
      const std::unique_ptr<Plan> found = plan(claims, node);
      if (found == nullptr) continue;
      const ort::NodeFusionOptions fusion{ort::kApiVersion, found->drops_constants};
      ort::check(api, api.GetEpApi()->AddNodesToFuse(info, found->nodes.data(), found->nodes.size(), &fusion));
      claims.taken.insert(claims.taken.end(), found->nodes.begin(), found->nodes.end());
    }
  }

  // The graph holds the nodes of one plan.
  ort::NodeComputeInfo* compile(const ort::Graph* graph, const ort::Node* compiled) const {
    const Claims claims{api, options, logger, GraphIndex(api, graph), {}, true};
    for (const ort::Node* node : claims.graph.nodes()) {
      const std::unique_ptr<Plan> found = plan(claims, node);
      if (found == nullptr) continue;
      if (found->nodes.size() != claims.graph.nodes().size()) break;
      return found->compile(compiled).release();
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
};

}  // namespace

ort::Ep* create_ep(const ort::Api& api, Options options, const ort::Logger* logger) {
  return new SessionEp(api, std::move(options), logger);
}

void release_ep(ort::Ep* ep) { delete static_cast<SessionEp*>(ep); }

}  // namespace onnxpress
