/* Runs a sentence encoder through ONNX Runtime's C interface on our execution provider:
   encode ONNXRUNTIME LIBRARY MODEL TOKENS OUTPUT
   The token ids are 1000, 1001, ...; OUTPUT gets the first output as raw float32, stdout the time of one run.
   Written without ONNX Runtime's header, which its wheel lacks: functions are slots of a table that never move. */
#include <dlfcn.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*Slot)(void);
typedef struct {
  const Slot* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} ApiBase;

static const Slot* api;

enum { kApiVersion = 23, kWarning = 2, kInt64 = 7, kRuns = 20 };

static void check(void* status) {
  if (status == NULL) return;
  fprintf(stderr, "encode: %s\n", ((const char* (*)(const void*))api[2])(status)); /* GetErrorMessage */
  exit(1);
}

static void* open_library(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "encode: %s\n", dlerror());
    exit(1);
  }
  return library;
}

/* Session options with the devices of our execution provider. */
static void* make_options(void* env, const char* library) {
  const void* const* devices = NULL;
  const void* ours[16];
  size_t count = 0, taken = 0;
  void* options = NULL;
  /* RegisterExecutionProviderLibrary, GetEpDevices, CreateSessionOptions, SetIntraOpNumThreads */
  check(((void* (*)(void*, const char*, const char*))api[301])(env, "onnxpress", library));
  check(((void* (*)(void*, const void* const**, size_t*))api[303])(env, &devices, &count));
  for (size_t i = 0; i < count && taken < 16; ++i) {
    const char* name = ((const char* (*)(const void*))api[312])(devices[i]); /* EpDevice_EpName */
    if (strcmp(name, "OnnxpressExecutionProvider") == 0) ours[taken++] = devices[i];
  }
  check(((void* (*)(void**))api[10])(&options));
  check(((void* (*)(void*, int))api[24])(options, 2));
  /* SessionOptionsAppendExecutionProvider_V2 */
  check(((void* (*)(void*, void*, const void* const*, size_t, const char* const*, const char* const*, size_t))api[304])(
      options, env, ours, taken, NULL, NULL, 0));
  return options;
}

static void* make_input(int64_t* values, int64_t tokens) {
  const int64_t shape[2] = {1, tokens};
  void *memory = NULL, *value = NULL;
  check(((void* (*)(int, int, void**))api[69])(0, 0, &memory)); /* CreateCpuMemoryInfo */
  /* CreateTensorWithDataAsOrtValue */
  check(((void* (*)(const void*, void*, size_t, const int64_t*, size_t, int, void**))api[49])(
      memory, values, (size_t)tokens * sizeof *values, shape, 2, kInt64, &value));
  ((void (*)(void*))api[94])(memory); /* ReleaseMemoryInfo */
  return value;
}

static void write_output(void* value, const char* path) {
  void *info = NULL, *values = NULL;
  size_t count = 0;
  /* GetTensorTypeAndShape, GetTensorShapeElementCount, GetTensorMutableData */
  check(((void* (*)(const void*, void**))api[65])(value, &info));
  check(((void* (*)(const void*, size_t*))api[64])(info, &count));
  check(((void* (*)(void*, void**))api[51])(value, &values));
  ((void (*)(void*))api[99])(info); /* ReleaseTensorTypeAndShapeInfo */
  FILE* file = fopen(path, "wb");
  if (file == NULL || fwrite(values, sizeof(float), count, file) != count || fclose(file) != 0) {
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
  if (argc != 6) {
    fprintf(stderr, "usage: encode ONNXRUNTIME LIBRARY MODEL TOKENS OUTPUT\n");
    return 2;
  }
  void* runtime = open_library(argv[1]);
  const ApiBase* (*get_base)(void) = NULL;
  *(void**)&get_base = dlsym(runtime, "OrtGetApiBase");
  if (get_base == NULL || (api = get_base()->GetApi(kApiVersion)) == NULL) {
    fprintf(stderr, "encode: %s is no ONNX Runtime of version 1.23 or newer\n", argv[1]);
    return 1;
  }
  void *env = NULL, *session = NULL, *output = NULL;
  check(((void* (*)(int, const char*, void**))api[3])(kWarning, "encode", &env)); /* CreateEnv */
  void* options = make_options(env, argv[2]);
  check(((void* (*)(void*, const char*, void*, void**))api[7])(env, argv[3], options, &session)); /* CreateSession */

  const int64_t tokens = strtoll(argv[4], NULL, 10);
  const char* const names[3] = {"input_ids", "attention_mask", "token_type_ids"};
  const char* const outputs[1] = {"last_hidden_state"};
  int64_t* numbers = calloc(3 * (size_t)tokens, sizeof *numbers);
  if (tokens < 1 || numbers == NULL) return 1;
  for (int64_t i = 0; i < tokens; ++i) {
    numbers[i] = 1000 + i;
    numbers[tokens + i] = 1;
  }
  void* inputs[3];
  for (int i = 0; i < 3; ++i) inputs[i] = make_input(numbers + i * tokens, tokens);
  double best = 1e9;
  for (int i = 0; i < kRuns; ++i) {
    if (output != NULL) ((void (*)(void*))api[96])(output);
    output = NULL;
    const double start = seconds();
    check(((void* (*)(void*, const void*, const char* const*, void* const*, size_t, const char* const*, size_t,
                      void**))api[9])(session, NULL, names, inputs, 3, outputs, 1, &output)); /* Run */
    const double passed = seconds() - start;
    if (passed < best) best = passed;
  }
  write_output(output, argv[5]);
  printf("ONNX Runtime %s: %.2f ms\n", get_base()->GetVersionString(), 1e3 * best);

  for (int i = 0; i < 3; ++i) ((void (*)(void*))api[96])(inputs[i]); /* ReleaseValue */
  ((void (*)(void*))api[96])(output);
  ((void (*)(void*))api[95])(session);  /* ReleaseSession */
  ((void (*)(void*))api[100])(options); /* ReleaseSessionOptions */
  ((void (*)(void*))api[92])(env);      /* ReleaseEnv */
  free(numbers);
  return 0;
}
