// Writes the logits that llama.cpp computes, as float32 rows: `llama_logits MODEL.gguf OUT ID...`.
// Built by install_llama_cpp.sh against the llama.cpp that it builds; see compare_logits.py.
#include <llama.h>

#include <cstdio>
#include <cstdlib>

namespace {

void PrintErrors(ggml_log_level level, const char* text, void*) {
  if (level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) std::fputs(text, stderr);
}

int Run(const char* model_path, const char* out_path, int count, char** ids) {
  llama_model* model = llama_model_load_from_file(model_path, llama_model_default_params());
  if (model == nullptr) return 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(count < 512 ? 512 : count);
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) return 1;
  llama_batch batch = llama_batch_init(count, 0, 1);
  for (int i = 0; i < count; ++i) {
    batch.token[i] = std::atoi(ids[i]);
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  batch.n_tokens = count;
  if (llama_decode(context, batch) != 0) return 1;
  std::FILE* out = std::fopen(out_path, "wb");
  if (out == nullptr) return 1;
  const auto rows = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
  bool written = true;
  for (int i = 0; i < count; ++i) {
    written =
        std::fwrite(llama_get_logits_ith(context, i), sizeof(float), rows, out) == rows && written;
  }
  written = std::fclose(out) == 0 && written;
  llama_batch_free(batch);
  llama_free(context);
  llama_model_free(model);
  return written ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: llama_logits MODEL.gguf OUT ID...\n");
    return 2;
  }
  llama_log_set(PrintErrors, nullptr);
  llama_backend_init();
  return Run(argv[1], argv[2], argc - 3, argv + 3);
}
