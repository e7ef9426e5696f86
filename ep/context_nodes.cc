#include "context_nodes.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

namespace onnxpress {
namespace {

constexpr const char* kContribDomain = "com.microsoft";
constexpr const char* kOpType = "EPContext";
// Attributes of the operator, by what they hold.
constexpr const char* kFile = "ep_cache_context";
constexpr const char* kNumber = "partition_name";
constexpr const char* kIdentity = "notes";

std::string model_path(const ort::Api& api, const ort::Graph* graph) {
  const char* path = nullptr;
  ort::check(api, api.Graph_GetModelPath(graph, &path));
  return path != nullptr ? path : "";
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return path.substr(0, std::max<std::size_t>(slash, 1));
}

// The folder of a model, and where that is a link the folder of the file.
std::vector<std::string> folders_of(const std::string& path) {
  std::vector<std::string> folders{folder_of(path)};
  const std::unique_ptr<char, void (*)(void*)> real(realpath(path.c_str(), nullptr), std::free);
  if (real != nullptr) folders.push_back(folder_of(real.get()));
  return folders;
}

// Where the data of the graph's model may lie.
std::vector<std::string> data_folders(const Claims& claims, const ort::Graph* graph, const GraphNode& node) {
  const std::string path = model_path(claims.api, graph);
  if (!path.empty()) return folders_of(path);
  std::vector<std::string> folders;
  if (!claims.options.context_path.empty()) folders = folders_of(claims.options.context_path);
  if (!claims.options.data_folder.empty()) folders.push_back(claims.options.data_folder);
  if (!folders.empty()) return folders;
  node.reject(
      "the model is no file, so that nobody knows where its weights lie; say it by the session's entry "
      "session.model_external_initializers_file_folder_path");
}

std::size_t number_of(const GraphNode& node) {
  const std::string text = node.text_attribute(kNumber, "");
  const bool is_number = !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number) node.reject(std::string(kNumber) + " is '" + text + "', no number");
  return std::stoul(text);
}

const Family& family(const ContextReader& record, const std::string& name) {
  for (const Family& family : families()) {
    if (name == family.name && family.load != nullptr) return family;
  }
  record.reject("holds a node of a kind that this library cannot load");
}

// What CreateNode takes.
class Attributes {
 public:
  explicit Attributes(const ort::Api& api) : api_(api) {}
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
  ~Attributes() {
    for (ort::OpAttr* attribute : made_) {
      if (attribute != nullptr) api_.ReleaseOpAttr(attribute);
    }
  }

  void add(const char* name, std::int64_t value) { add(name, &value, 1, ort::kAttrInt); }
  void add(const char* name, const std::string& value) {
    add(name, value.data(), static_cast<int>(value.size()), ort::kAttrString);
  }

  std::vector<ort::OpAttr*>& made() { return made_; }

 private:
  void add(const char* name, const void* data, int count, ort::AttrType type) {
    made_.push_back(nullptr);
    ort::check(api_, api_.CreateOpAttr(name, data, count, type, &made_.back()));
  }

  const ort::Api& api_;
  std::vector<ort::OpAttr*> made_;
};

}  // namespace

bool is_saved(const GraphNode& node) {
  return node.is(kContribDomain, kOpType) && node.text_attribute("source", "") == kEpName;
}

SavedNode::SavedNode(const Claims& claims, const ContextFile& file, const GraphNode& node, const ort::Node* compiled)
    : api(claims.api),
      options(claims.options),
      logger(claims.logger),
      record(file, number_of(node)),
      node_(node),
      compiled_(compiled) {}

std::size_t SavedNode::input(ort::ElementType type) {
  const std::int64_t index = record.number();
  if (index == static_cast<std::int64_t>(kNoInput)) return kNoInput;
  const std::optional<GraphValue> value = node_.input(static_cast<std::size_t>(index));
  if (!value) node_.reject("input " + std::to_string(index) + " is missing");
  if (value->type().element != type) node_.reject("input " + std::to_string(index) + " has another type than saved");
  return input_index(api, compiled_, value->name());
}

void SavedNode::check_output(ort::ElementType type) const {
  if (node_.outputs() != 1 || node_.output().type().element != type) node_.reject("its output is not that saved");
}

std::unique_ptr<CompiledNode> SavedNodes::load(const Claims& claims, const ort::Graph* graph, const GraphNode& node,
                                               const ort::Node* compiled) {
  if (claims.options.makes_context) node.reject("the model is compiled already");
  if (node.attribute("embed_mode", 1) != 0) node.reject("embed_mode is not 0");
  const std::string name = node.text_attribute(kFile, ""), identity = node.text_attribute(kIdentity, "");
  auto at = files_.find({name, identity});
  if (at == files_.end()) {
    ContextFile file(data_folders(claims, graph, node), name, identity, claims.options.verify);
    at = files_.emplace(std::pair(name, identity), std::move(file)).first;
  }
  SavedNode saved(claims, at->second, node, compiled);
  std::unique_ptr<CompiledNode> loaded = family(saved.record, saved.record.text()).load(saved);
  saved.record.end();
  return loaded;
}

ort::Node* make_context_node(const ort::Api& api, const ort::Node* compiled, const ContextWriter::File& file,
                             std::size_t number) {
  Attributes attributes(api);
  attributes.add("main_context", 1);
  attributes.add("embed_mode", 0);
  attributes.add("source", kEpName);
  attributes.add("ep_sdk_version", ONNXPRESS_VERSION);
  attributes.add(kFile, file.name);
  attributes.add(kIdentity, file.identity);
  attributes.add(kNumber, std::to_string(number));

  const GraphNode node(api, compiled);
  std::vector<std::string> inputs, outputs;
  for (std::size_t i = 0; i < node.inputs(); ++i) inputs.push_back(node.required(i, "of a compiled node").name());
  for (std::size_t i = 0; i < node.outputs(); ++i) outputs.push_back(node.output(i).name());
  const auto pointers = [](const std::vector<std::string>& texts) {
    std::vector<const char*> result;
    for (const std::string& text : texts) result.push_back(text.c_str());
    return result;
  };
  const std::vector<const char*> ins = pointers(inputs), outs = pointers(outputs);
  ort::Node* made = nullptr;
  ort::check(api, api.GetModelEditorApi()->CreateNode(kOpType, kContribDomain, node.name().c_str(), ins.data(),
                                                      ins.size(), outs.data(), outs.size(), attributes.made().data(),
                                                      attributes.made().size(), &made));
  return made;
}

std::string context_path(const ort::Api& api, const Options& options, const ort::Graph* graph) {
  if (!options.context_path.empty()) return options.context_path;
  const std::string path = model_path(api, graph);
  if (path.empty()) {
    throw ort::InvalidArgument(std::string(kEpName) +
                               ": the model is no file, so ep.context_file_path must say where its context goes");
  }
  const std::size_t dot = path.rfind('.');  // as ONNX Runtime names it
  return path.substr(0, dot) + "_ctx.onnx";
}

}  // namespace onnxpress
