#include "ep.h"

#include <optional>
#include <string>
#include <vector>

#include "nbits_node.h"
#include "ort/ort.h"

namespace onnxpress {
namespace {

constexpr const char* kOptionPrefix = "ep.onnxpressexecutionprovider.";

struct Options {
  std::optional<std::int64_t> accuracy_level;  // instead of the nodes' own
};

Options read_options(const ort::Api& api, const ort::SessionOptions* session_options) {
  ort::KeyValuePairs* pairs = nullptr;
  ort::check(api, api.GetSessionOptionsConfigEntries(session_options, &pairs));
  struct Release {
    const ort::Api& api;
    ort::KeyValuePairs* pairs;
    ~Release() { api.ReleaseKeyValuePairs(pairs); }
  } release{api, pairs};
  const char* const* keys = nullptr;
  const char* const* values = nullptr;
  std::size_t count = 0;
  api.GetKeyValuePairs(pairs, &keys, &values, &count);

  Options options;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string key = keys[i], value = values[i];
    if (key == "ep.context_enable" && value == "1") {
      throw ort::InvalidArgument(std::string(kEpName) + ": ep.context_enable is not supported");
    }
    if (key.rfind(kOptionPrefix, 0) != 0) continue;
    const std::string name = key.substr(std::string(kOptionPrefix).size());
    if (name != "accuracy_level") {
      throw ort::InvalidArgument(std::string(kEpName) + ": unknown option '" + name + "'; there is accuracy_level");
    }
    if (value != "0" && value != "1" && value != "4") {
      throw ort::InvalidArgument(std::string(kEpName) + ": accuracy_level is '" + value +
                                 "', must be 0 or 1 (float32) or 4 (activations as int8)");
    }
    options.accuracy_level = std::stoi(value);
  }
  return options;
}

std::vector<const ort::Node*> nodes_of(const ort::Api& api, const ort::Graph* graph) {
  std::size_t count = 0;
  ort::check(api, api.Graph_GetNumNodes(graph, &count));
  std::vector<const ort::Node*> nodes(count);
  ort::check(api, api.Graph_GetNodes(graph, nodes.data(), count));
  return nodes;
}

struct SessionEp : ort::Ep {
  SessionEp(const ort::Api& ort_api, const Options& given, const ort::Logger* log)
      : Ep{}, api(ort_api), options(given), logger(log) {
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
      for (std::size_t i = 0; i < count; ++i) release_nbits_node(infos[i]);
    };
  }

  void claim(const ort::Graph* graph, ort::EpGraphSupportInfo* info) const {
    // Packed weights are copies: ONNX Runtime need not keep its own.
    const ort::NodeFusionOptions fusion{ort::kApiVersion, true};
    for (const ort::Node* node : nodes_of(api, graph)) {
      if (!is_nbits_node(api, node)) continue;
      try {
        read_nbits_node(api, node);
      } catch (const ort::InvalidArgument& reason) {
        log(std::string("left to others: ") + reason.what());
        continue;
      }
      ort::check(api, api.GetEpApi()->AddNodesToFuse(info, &node, 1, &fusion));
    }
  }

  ort::NodeComputeInfo* compile(const ort::Graph* graph, const ort::Node* fused) const {
    NBitsNode node = read_nbits_node(api, nodes_of(api, graph).at(0));
    if (options.accuracy_level) node.attributes.accuracy_level = *options.accuracy_level;
    return compile_nbits_node(api, node, fused);
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

ort::Ep* create_ep(const ort::Api& api, const ort::SessionOptions* options, const ort::Logger* logger) {
  return new SessionEp(api, read_options(api, options), logger);
}

void release_ep(ort::Ep* ep) { delete static_cast<SessionEp*>(ep); }

}  // namespace onnxpress
