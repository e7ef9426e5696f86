/* Runs a sentence encoder through ONNX Runtime's C interface on our execution provider:
   encode ONNXRUNTIME LIBRARY MODEL TOKENS OUTPUT
   The token ids are 1000, 1001, ...; OUTPUT gets the first output as raw float32, stdout the time of one run. */
#include <time.h>

#include "runtime.h"

enum { kRuns = 20 };

static void write_output(void* tensor, const char* path) {
  size_t count = 0;
  const float* values = values_of(tensor, &count);
  FILE* file = fopen(path, "wb");
  if (file == NULL || fwrite(values, sizeof *values, count, file) != count || fclose(file) != 0) {
    perror(path);
    exit(1);
  }
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char** argv) {
  program = "encode";
  if (argc != 6) {
    fprintf(stderr, "usage: encode ONNXRUNTIME LIBRARY MODEL TOKENS OUTPUT\n");
    return 2;
  }
  const char* version = open_runtime(argv[1]);
  void* env = make_env();
  void* options = make_options(env, argv[2]);
  void* session = make_session(env, argv[3], options);

  const int64_t tokens = strtoll(argv[4], NULL, 10), shape[2] = {1, tokens};
  const char* const names[3] = {"input_ids", "attention_mask", "token_type_ids"};
  const char* const outputs[1] = {"last_hidden_state"};
  int64_t* numbers = calloc(3 * (size_t)tokens, sizeof *numbers);
  if (tokens < 1 || numbers == NULL) return 1;
  for (int64_t i = 0; i < tokens; ++i) {
    numbers[i] = 1000 + i;
    numbers[tokens + i] = 1;
  }
  void *inputs[3], *output = NULL;
  for (int i = 0; i < 3; ++i) {
    inputs[i] = make_tensor(numbers + i * tokens, (size_t)tokens * sizeof *numbers, shape, 2, kInt64);
  }
  double best = 1e9;
  for (int i = 0; i < kRuns; ++i) {
    if (output != NULL) release_tensor(output);
    output = NULL;
    const double start = seconds();
    run(session, names, inputs, 3, outputs, 1, &output);
    const double passed = seconds() - start;
    if (passed < best) best = passed;
  }
  write_output(output, argv[5]);
  printf("ONNX Runtime %s: %.2f ms\n", version, 1e3 * best);

  for (int i = 0; i < 3; ++i) release_tensor(inputs[i]);
  release_tensor(output);
  release_session(session, options, env);
  free(numbers);
  return 0;
}
