"""A GGUF file of architecture `llama`, read by other people's code.

Nothing here knows about distill: the container and the dequantisation are the `gguf` package's, the model is
transformers' `LlamaForCausalLM`, the tokenizer is Hugging Face `tokenizers`. The peer scripts compare distill with
what this module returns.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np

# GGUF name (inside a block) -> Hugging Face name (inside a layer), and which heads its rows belong to.
BLOCK_TENSORS = {
    "attn_norm.weight": ("input_layernorm.weight", None),
    "attn_q.weight": ("self_attn.q_proj.weight", "llama.attention.head_count"),
    "attn_k.weight": ("self_attn.k_proj.weight", "llama.attention.head_count_kv"),
    "attn_v.weight": ("self_attn.v_proj.weight", None),
    "attn_output.weight": ("self_attn.o_proj.weight", None),
    "ffn_norm.weight": ("post_attention_layernorm.weight", None),
    "ffn_gate.weight": ("mlp.gate_proj.weight", None),
    "ffn_up.weight": ("mlp.up_proj.weight", None),
    "ffn_down.weight": ("mlp.down_proj.weight", None),
}

# `tokenizer.ggml.token_type`: control tokens and user-defined ones are matched before pre-tokenisation.
CONTROL, USER_DEFINED = 3, 4


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class GgufLlama:
    """The metadata and the dequantised tensors of one file."""

    def __init__(self, path: Path):
        self.path = path
        self.reader = gguf.GGUFReader(path)
        self.metadata = {
            key: field.contents()
            for key, field in self.reader.fields.items()
            if not key.startswith("GGUF.")
        }
        if self.metadata["general.architecture"] != "llama":
            raise SystemExit(f"{path}: architecture {self.metadata['general.architecture']!r}, expected 'llama'")

    def tensors(self):
        """Yields (GGUF name, float32 array in row-major [out, in] order) for every tensor."""
        for tensor in self.reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(n) for n in reversed(tensor.shape))
            yield tensor.name, np.ascontiguousarray(values.reshape(shape), dtype=np.float32)

    def hugging_face_state(self) -> dict[str, np.ndarray]:
        """The tensors under Hugging Face names, with the rows of q and k back in rotate-half order."""
        state = {}
        for name, values in self.tensors():
            if name == "token_embd.weight":
                state["model.embed_tokens.weight"] = values
            elif name == "output_norm.weight":
                state["model.norm.weight"] = values
            elif name == "output.weight":
                state["lm_head.weight"] = values
            elif name == "rope_freqs.weight":
                raise SystemExit(f"{self.path}: rope_freqs.weight (Llama 3 scaling) is not handled by this script")
            else:
                _, layer, rest = name.split(".", 2)
                target, heads_key = BLOCK_TENSORS[rest]
                if heads_key is not None:
                    values = rotate_half_rows(values, self.metadata[heads_key])
                state[f"model.layers.{layer}.{target}"] = values
        return state

    def hugging_face_model(self):
        """transformers' `LlamaForCausalLM` in float32 with this file's weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        state = self.hugging_face_state()
        m = self.metadata
        config = LlamaConfig(
            vocab_size=state["model.embed_tokens.weight"].shape[0],
            hidden_size=m["llama.embedding_length"],
            intermediate_size=m["llama.feed_forward_length"],
            num_hidden_layers=m["llama.block_count"],
            num_attention_heads=m["llama.attention.head_count"],
            num_key_value_heads=m["llama.attention.head_count_kv"],
            max_position_embeddings=m["llama.context_length"],
            rms_norm_eps=m["llama.attention.layer_norm_rms_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": m["llama.rope.freq_base"]},
            tie_word_embeddings="lm_head.weight" not in state,
            attn_implementation="eager",
            dtype=torch.float32,
        )
        model = LlamaForCausalLM(config).eval()
        missing, unexpected = model.load_state_dict(
            {name: torch.tensor(values) for name, values in state.items()}, strict=False
        )
        missing = [name for name in missing if not (config.tie_word_embeddings and name == "lm_head.weight")]
        if missing or unexpected:
            raise SystemExit(f"{self.path}: missing {missing}, unexpected {unexpected}")
        model.tie_weights()
        return model

    def tokenizer(self):
        """Hugging Face `tokenizers`, built from the vocabulary and merges of the file."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        m = self.metadata
        pre = m["tokenizer.ggml.pre"]
        if m["tokenizer.ggml.model"] != "gpt2" or pre not in ("smollm", "gpt-2"):
            raise SystemExit(f"{self.path}: tokenizer {m['tokenizer.ggml.model']!r}/{pre!r} is not handled here")
        tokens = m["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ")) for merge in m["tokenizer.ggml.merges"]]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.pre_tokenizer = (
            pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
            if pre == "smollm"
            else byte_level
        )
        tokenizer.decoder = decoders.ByteLevel()
        types = m["tokenizer.ggml.token_type"]
        tokenizer.add_special_tokens(
            [AddedToken(t, normalized=False, special=True) for t, ty in zip(tokens, types) if ty == CONTROL]
        )
        tokenizer.add_tokens(
            [AddedToken(t, normalized=False) for t, ty in zip(tokens, types) if ty == USER_DEFINED]
        )
        return tokenizer

    def write_f32(self, out: Path) -> None:
        """The same model as an F32 GGUF: what llama.cpp computes on it has no quantised activations."""
        self.write(out, gguf.LlamaFileType.ALL_F32, lambda _: gguf.GGMLQuantizationType.F32)

    def write_q4_0(self, out: Path) -> None:
        """The model as distill exports it: Q4_0 linears, a Q8_0 embedding and head, F32 norms."""

        def grid(name: str) -> gguf.GGMLQuantizationType:
            if name.endswith("norm.weight"):
                return gguf.GGMLQuantizationType.F32
            if name in ("token_embd.weight", "output.weight"):
                return gguf.GGMLQuantizationType.Q8_0
            return gguf.GGMLQuantizationType.Q4_0

        self.write(out, gguf.LlamaFileType.MOSTLY_Q4_0, grid)

    def write(self, out: Path, file_type: gguf.LlamaFileType, grid) -> None:
        """Metadata and tensors again, each tensor of the type that `grid` gives its name."""
        writer = gguf.GGUFWriter(out, "llama")
        for key, field in self.reader.fields.items():
            if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
                continue
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub)
        writer.add_file_type(file_type)
        for name, values in self.tensors():
            writer.add_tensor(name, gguf.quantize(values, grid(name)), raw_dtype=grid(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def rotate_half_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Undoes GGUF's row order for q and k.

    GGUF keeps rotation pairs side by side: its row 2i + j of a head is Hugging Face's row j * head_dim / 2 + i.
    """
    rows, columns = values.shape
    half = rows // heads // 2
    pairs = values.reshape(heads, half, 2, columns)  # [heads, i, j, columns]
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
