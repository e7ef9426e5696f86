/* Continues a text with a decoder through ONNX Runtime's C interface on our execution provider:
   generate ONNXRUNTIME LIBRARY MODEL LAYERS HEADS WIDTH COUNT TOKEN...
   MODEL is an export with its past: optimum's names, LAYERS of HEADS keys and values of WIDTH numbers each. Printed are
   the COUNT tokens that follow, each the likeliest, as soon as it is known. */
#include "runtime.h"

enum { kFixed = 3, kMostLayers = 256, kMostTensors = kFixed + 2 * kMostLayers, kNameSize = 40 };

static char input_names[kMostTensors][kNameSize] = {"input_ids", "attention_mask", "position_ids"};
static char output_names[kMostTensors][kNameSize] = {"logits"};

/* By the last row of logits: [1, tokens, vocabulary], or of the last token alone. */
static int64_t likeliest(void* logits) {
  void* info = NULL;
  size_t count = 0;
  int64_t shape[3], best = 0;
  const float* last = values_of(logits, &count);
  check(((void* (*)(const void*, void**))api[65])(logits, &info));            /* GetTensorTypeAndShape */
  check(((void* (*)(const void*, int64_t*, size_t))api[62])(info, shape, 3)); /* GetDimensions */
  ((void (*)(void*))api[99])(info);                                           /* ReleaseTensorTypeAndShapeInfo */
  last += (int64_t)count - shape[2];
  for (int64_t i = 1; i < shape[2]; ++i) {
    if (last[i] > last[best]) best = i;
  }
  return best;
}

int main(int argc, char** argv) {
  program = "generate";
  if (argc < 9) {
    fprintf(stderr, "usage: generate ONNXRUNTIME LIBRARY MODEL LAYERS HEADS WIDTH COUNT TOKEN...\n");
    return 2;
  }
  const int layers = atoi(argv[4]), past_count = 2 * layers;
  const int64_t heads = atoll(argv[5]), width = atoll(argv[6]), count = atoll(argv[7]);
  if (layers < 1 || layers > kMostLayers || heads < 1 || width < 1 || count < 1) fail("wrong sizes");
  open_runtime(argv[1]);
  void* env = make_env();
  void* options = make_options(env, argv[2]);
  void* session = make_session(env, argv[3], options);

  const char *inputs_of[kMostTensors], *outputs_of[kMostTensors];
  for (int i = 0; i < past_count; ++i) {
    const char* part = i % 2 == 0 ? "key" : "value";
    snprintf(input_names[kFixed + i], kNameSize, "past_key_values.%d.%s", i / 2, part);
    snprintf(output_names[1 + i], kNameSize, "present.%d.%s", i / 2, part);
  }
  for (int i = 0; i < kMostTensors; ++i) inputs_of[i] = input_names[i], outputs_of[i] = output_names[i];

  int64_t past = 0, now = argc - 8;
  const int64_t most = now + count;
  int64_t* numbers = malloc(3 * (size_t)most * sizeof *numbers);
  if (numbers == NULL) fail("no memory");
  int64_t *tokens = numbers, *mask = numbers + most, *positions = numbers + 2 * most;
  for (int64_t i = 0; i < most; ++i) {
    tokens[i] = i < now ? atoll(argv[8 + i]) : 0;
    mask[i] = 1;
    positions[i] = i;
  }
  void* inputs[kMostTensors];
  float nothing = 0;
  const int64_t empty[4] = {1, heads, 0, width};
  for (int i = 0; i < past_count; ++i) inputs[kFixed + i] = make_tensor(&nothing, 0, empty, 4, kFloat);

  while (past + now < most) {
    const int64_t shape[2] = {1, now}, all[2] = {1, past + now};
    const size_t bytes = (size_t)now * sizeof *numbers, all_bytes = (size_t)all[1] * sizeof *numbers;
    inputs[0] = make_tensor(tokens + past, bytes, shape, 2, kInt64);
    inputs[1] = make_tensor(mask, all_bytes, all, 2, kInt64);
    inputs[2] = make_tensor(positions + past, bytes, shape, 2, kInt64);
    void* outputs[kMostTensors] = {NULL};
    run(session, inputs_of, inputs, (size_t)(kFixed + past_count), outputs_of, (size_t)(1 + past_count), outputs);
    past += now;
    tokens[past] = likeliest(outputs[0]);
    now = 1;
    printf("%lld\n", (long long)tokens[past]);
    fflush(stdout);
    for (int i = 0; i < kFixed + past_count; ++i) release_tensor(inputs[i]);
    release_tensor(outputs[0]);
    for (int i = 0; i < past_count; ++i) inputs[kFixed + i] = outputs[1 + i]; /* what is present now is past then */
  }
  for (int i = 0; i < past_count; ++i) release_tensor(inputs[kFixed + i]);
  release_session(session, options, env);
  free(numbers);
  return 0;
}
