// Runs a sentence encoder on our execution provider, with the ONNX Runtime that onnxruntime-node brings:
//   node encode.mjs LIBRARY MODEL TOKENS OUTPUT
// The token ids are 1000, 1001, ...; OUTPUT gets the first output as raw float32. A LIBRARY of - leaves all to ONNX Runtime.
//
// The JavaScript interface of onnxruntime-node (1.30) knows only the providers that it was built with, so this calls the
// C interface of its shared object. Functions are slots of a table that never move.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { writeFileSync } from "node:fs";

const require = createRequire(join(process.cwd(), "package.json"));
const koffi = require("koffi");
const [library, model, tokens, output] = process.argv.slice(2);

const folder = dirname(require.resolve("onnxruntime-node/package.json"));
const runtime = koffi.load(join(folder, `bin/napi-v6/${process.platform}/${process.arch}/libonnxruntime.so.1`));
const base = runtime.func("void *OrtGetApiBase()")();
const getApi = koffi.decode(koffi.decode(base, "void *"), koffi.proto("void *GetApi(uint32_t)"));
const api = getApi(23);

const slot = (index, prototype) => koffi.decode(koffi.decode(api, 8 * index, "void *"), koffi.proto(prototype));
const message = slot(2, "const char *GetErrorMessage(void *)");
const checked = (index, prototype) => {
  const call = slot(index, prototype);
  return (...values) => {
    const status = call(...values);
    if (status !== null) throw new Error(message(status));
  };
};
const made = (call, ...values) => {
  const result = [null];
  call(...values, result);
  return result[0];
};

const createEnv = checked(3, "void *CreateEnv(int, const char *, _Out_ void **)");
const createSession = checked(7, "void *CreateSession(void *, const char *, void *, _Out_ void **)");
const run = checked(
  9, "void *Run(void *, void *, const char **, void **, size_t, const char **, size_t, _Inout_ void **)");
const createOptions = checked(10, "void *CreateSessionOptions(_Out_ void **)");
const createTensor = checked(
  49, "void *CreateTensorWithDataAsOrtValue(void *, void *, size_t, int64_t *, size_t, int, _Out_ void **)");
const tensorData = checked(51, "void *GetTensorMutableData(void *, _Out_ void **)");
const tensorSize = checked(64, "void *GetTensorShapeElementCount(void *, _Out_ size_t *)");
const tensorInfo = checked(65, "void *GetTensorTypeAndShape(void *, _Out_ void **)");
const cpuMemory = checked(69, "void *CreateCpuMemoryInfo(int, int, _Out_ void **)");
const register = checked(301, "void *RegisterExecutionProviderLibrary(void *, const char *, const char *)");
const listDevices = checked(303, "void *GetEpDevices(void *, _Out_ void **, _Out_ size_t *)");
const append = checked(
  304, "void *SessionOptionsAppendExecutionProvider_V2(void *, void *, void **, size_t, void *, void *, size_t)");
const deviceName = slot(312, "const char *EpDevice_EpName(void *)");

const env = made(createEnv, 2, "encode");
const options = made(createOptions);
if (library !== "-") {
  register(env, "onnxpress", library);
  const list = [null], count = [0];
  listDevices(env, list, count);
  const devices = koffi.decode(list[0], "void *", Number(count[0]));
  const ours = devices.filter((device) => deviceName(device) === "OnnxpressExecutionProvider");
  append(options, env, ours, ours.length, null, null, 0);
}
const session = made(createSession, env, model, options);

const n = Number(tokens);
const memory = made(cpuMemory, 0, 0);
// In buffers of their own, which stay where they are: the tensors only point to them.
const numbers = [0, 1, 2].map(() => new BigInt64Array(new ArrayBuffer(8 * n)));
numbers[0].forEach((_, i, ids) => (ids[i] = BigInt(1000 + i)));
numbers[1].fill(1n);
const INT64 = 7;
const inputs = numbers.map((values) => made(createTensor, memory, values, values.byteLength, [1, n], 2, INT64));
const results = [null];
run(session, null, ["input_ids", "attention_mask", "token_type_ids"], inputs, 3, ["last_hidden_state"], 1, results);
const size = Number(made(tensorSize, made(tensorInfo, results[0])));
writeFileSync(output, Float32Array.from(koffi.decode(made(tensorData, results[0]), "float", size)));
