//! The one table between Hugging Face's tensor names and GGUF's, for the architecture `llama`.
//!
//! # Rotary heads
//! Hugging Face rotates element `i` of a head with element `i + head_dim / 2`; GGUF's `llama`
//! rotates neighbours, `2i` with `2i + 1`. The arithmetic is the same if the output rows of the
//! query and key projections change places:
//!
//! ```text
//! gguf[h · hd + 2i + j] = hf[h · hd + j · hd / 2 + i]     i in 0 .. hd / 2, j in 0 .. 2
//! ```

/// Which number of heads decides a reordering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heads {
    /// `num_attention_heads`.
    Query,
    /// `num_key_value_heads`.
    Key,
}

/// The order of a tensor's rows in GGUF, compared with Hugging Face.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowLayout {
    /// The same order.
    Plain,
    /// Halves in Hugging Face, neighbours in GGUF, head by head: see [`permute_rows`].
    RopeHalves {
        /// Which heads these are.
        heads: Heads,
    },
}

/// One row of the table; `{}` stands for the number of the layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    /// Hugging Face's name.
    pub hf: &'static str,
    /// GGUF's name.
    pub gguf: &'static str,
    /// How the rows are ordered.
    pub rows: RowLayout,
}

const fn plain(hf: &'static str, gguf: &'static str) -> Name {
    Name { hf, gguf, rows: RowLayout::Plain }
}

const fn rope(hf: &'static str, gguf: &'static str, heads: Heads) -> Name {
    Name { hf, gguf, rows: RowLayout::RopeHalves { heads } }
}

/// The table for `llama`, in the order of the forward pass.
pub const LLAMA: [Name; 12] = [
    plain("model.embed_tokens.weight", "token_embd.weight"),
    plain("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    rope("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", Heads::Query),
    rope("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", Heads::Key),
    plain("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    plain("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    plain("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    plain("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    plain("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    plain("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    plain("model.norm.weight", "output_norm.weight"),
    plain("lm_head.weight", "output.weight"),
];

/// GGUF's tensor of per-frequency divisors, where RoPE is scaled as Llama 3 does. It has no
/// counterpart among Hugging Face's tensors: there the configuration says it.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// GGUF's name of a Hugging Face tensor, and the order of its rows there.
#[must_use]
pub fn to_gguf(hf_name: &str) -> Option<(String, RowLayout)> {
    LLAMA.iter().find_map(|name| Some((translate(hf_name, name.hf, name.gguf)?, name.rows)))
}

/// The Hugging Face name of a GGUF tensor, and the order of its rows in GGUF.
#[must_use]
pub fn to_hf(gguf_name: &str) -> Option<(String, RowLayout)> {
    LLAMA.iter().find_map(|name| Some((translate(gguf_name, name.gguf, name.hf)?, name.rows)))
}

/// The number of the layer a GGUF tensor belongs to, if to any.
#[must_use]
pub fn gguf_layer(gguf_name: &str) -> Option<usize> {
    layer_number(gguf_name.strip_prefix("blk.")?.split_once('.')?.0)?.parse().ok()
}

/// `name` in the words of `to`, if it is an instance of `from`.
fn translate(name: &str, from: &str, to: &str) -> Option<String> {
    let Some((prefix, suffix)) = from.split_once("{}") else {
        return (name == from).then(|| to.to_owned());
    };
    let layer = layer_number(name.strip_prefix(prefix)?.strip_suffix(suffix)?)?;
    Some(to.replacen("{}", layer, 1))
}

/// Digits as a layer is numbered: no sign, no leading zero, no more than fit.
fn layer_number(text: &str) -> Option<&str> {
    let canonical = text.len() <= 9
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    canonical.then_some(text)
}

/// The Hugging Face row that GGUF stores as row `row`, for heads of `head_dim` rows.
///
/// # Panics
/// If `head_dim` is odd or zero.
#[must_use]
pub fn hf_row_of(row: usize, head_dim: usize) -> usize {
    assert!(head_dim > 0 && head_dim.is_multiple_of(2), "a rotary head of {head_dim} rows");
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

/// Rows in Hugging Face's order, given in GGUF's. `data` is row-major, elements (or bytes) of
/// `rows` rows.
///
/// # Panics
/// If `data` is not `rows` equal rows, or these are not `heads` heads of an even size.
#[must_use]
pub fn permute_rows<T: Copy>(data: &[T], rows: usize, heads: usize) -> Vec<T> {
    let (row_len, head_dim) = row_len_and_head_dim(data.len(), rows, heads);
    let mut out = Vec::with_capacity(data.len());
    for row in 0..rows {
        out.extend_from_slice(&data[hf_row_of(row, head_dim) * row_len..][..row_len]);
    }
    out
}

/// Rows in GGUF's order, given in Hugging Face's: the inverse of [`permute_rows`].
///
/// # Panics
/// As [`permute_rows`].
#[must_use]
pub fn unpermute_rows<T: Copy>(data: &[T], rows: usize, heads: usize) -> Vec<T> {
    let (row_len, head_dim) = row_len_and_head_dim(data.len(), rows, heads);
    let mut out = data.to_vec();
    for row in 0..rows {
        let to = hf_row_of(row, head_dim) * row_len;
        out[to..to + row_len].copy_from_slice(&data[row * row_len..][..row_len]);
    }
    out
}

#[track_caller]
fn row_len_and_head_dim(len: usize, rows: usize, heads: usize) -> (usize, usize) {
    assert!(
        rows > 0 && heads > 0 && len.is_multiple_of(rows) && rows.is_multiple_of(heads),
        "{len} elements in {rows} rows of {heads} heads",
    );
    (len / rows, rows / heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_table_translates_both_ways() {
        for name in LLAMA {
            for layer in ["0", "7", "29", "101"] {
                let (hf, gguf) = (name.hf.replace("{}", layer), name.gguf.replace("{}", layer));
                assert_eq!(to_gguf(&hf), Some((gguf.clone(), name.rows)));
                assert_eq!(to_hf(&gguf), Some((hf, name.rows)));
            }
        }
        assert_eq!(gguf_layer("blk.12.attn_q.weight"), Some(12));
        assert_eq!(gguf_layer("output.weight"), None);
    }

    #[test]
    fn names_that_only_look_alike_are_refused() {
        for name in [
            "model.layers.01.mlp.up_proj.weight",
            "model.layers.-1.mlp.up_proj.weight",
            "model.layers..mlp.up_proj.weight",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.9999999999.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.bias",
            "xmodel.norm.weight",
            "",
        ] {
            assert_eq!(to_gguf(name), None, "{name}");
        }
        assert_eq!(to_hf("blk.0.attn_q.weightx"), None);
        assert_eq!(to_hf(ROPE_FREQS), None);
    }

    #[test]
    fn halves_become_neighbours_head_by_head() {
        // Two heads of four rows, each row its own number twice.
        let hf: Vec<u8> = (0..8).flat_map(|row| [row, row]).collect();
        let gguf = permute_rows(&hf, 8, 2);
        assert_eq!(gguf, [0, 0, 2, 2, 1, 1, 3, 3, 4, 4, 6, 6, 5, 5, 7, 7]);
        assert_eq!(unpermute_rows(&gguf, 8, 2), hf);
    }

    #[test]
    fn permuting_follows_the_formula_and_its_inverse_undoes_it() {
        for (heads, head_dim, row_len) in [(1, 2, 1), (3, 64, 5), (9, 6, 18)] {
            let rows = heads * head_dim;
            let hf: Vec<u32> = (0..(rows * row_len) as u32).collect();
            let gguf = permute_rows(&hf, rows, heads);
            for h in 0..heads {
                for i in 0..head_dim / 2 {
                    for j in 0..2 {
                        let (to, from) =
                            (h * head_dim + 2 * i + j, h * head_dim + j * head_dim / 2 + i);
                        assert_eq!(
                            gguf[to * row_len..][..row_len],
                            hf[from * row_len..][..row_len]
                        );
                    }
                }
            }
            assert_eq!(unpermute_rows(&gguf, rows, heads), hf);
        }
    }
}
