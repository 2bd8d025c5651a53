//! Reading a model: a Hugging Face directory or a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_gguf::{GgufFile, names};
use safetensors::{SafeTensors, tensor::Dtype};

use crate::quantized::{block_scale_owner, is_block_scale};
use crate::{LlamaConfig, LlamaForCausalLM, ModelError};

/// What a load found; a load with missing or unexpected tensors is an error, so this tells of
/// what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadReport {
    /// Where the weights came from.
    pub path: PathBuf,
    /// Parameters read.
    pub parameters: usize,
    /// Elements read.
    pub elements: usize,
    /// Element types in the file, e.g. `"Q4_1"`, with the number of tensors of each.
    pub types: BTreeMap<String, usize>,
    /// Tensors that the file holds and the model does not need, e.g. a head that repeats the
    /// tied embedding.
    pub ignored: Vec<String>,
}

/// Loads a directory (`config.json` and `model.safetensors`, or its shards) or a `.gguf` file.
///
/// # Errors
/// [`ModelError`]: naming every missing and every unexpected tensor, a wrong shape, a weight
/// that is not finite, a malformed file.
pub fn load_pretrained(
    path: &Path,
    device: &Device,
) -> Result<(LlamaForCausalLM, LoadReport), ModelError> {
    if path.is_dir() && path.join("config.json").is_file() {
        let config = LlamaConfig::from_json(&path.join("config.json"))?;
        load(path, config, SafetensorsSource::open(path)?, device)
    } else if path.extension().is_some_and(|e| e == "gguf") {
        let file = GgufFile::open(path)?;
        let config = LlamaConfig::from_gguf(&file, path)?;
        let source = GgufSource::new(file, path, &config)?;
        load(path, config, source, device)
    } else {
        Err(ModelError::NotAModel { path: path.to_path_buf() })
    }
}

/// The shape of a model on disk, without its weights.
///
/// # Errors
/// As [`load_pretrained`].
pub fn read_config(path: &Path) -> Result<LlamaConfig, ModelError> {
    if path.is_dir() {
        LlamaConfig::from_json(&path.join("config.json"))
    } else {
        LlamaConfig::from_gguf(&GgufFile::open(path)?, path)
    }
}

/// Tensors by Hugging Face name.
trait Source {
    fn names(&self) -> BTreeSet<String>;
    /// Row-major dimensions and the element type's name.
    fn describe(&self, name: &str) -> Result<(Vec<usize>, String), ModelError>;
    /// Row-major f32 values in Hugging Face's row order.
    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError>;
}

fn load(
    path: &Path,
    config: LlamaConfig,
    source: impl Source,
    device: &Device,
) -> Result<(LlamaForCausalLM, LoadReport), ModelError> {
    let expected = expected(&config);
    let mut found = source.names();
    let mut ignored = Vec::new();
    if config.tie_word_embeddings && found.remove("lm_head.weight") {
        ignored.push("lm_head.weight".to_string());
    }
    let rotary: Vec<String> =
        found.iter().filter(|n| n.ends_with("rotary_emb.inv_freq")).cloned().collect();
    for name in rotary {
        found.remove(&name);
        ignored.push(name);
    }
    // Only checkpoints of a quantised student have scales of blocks.
    let scales: Vec<String> = found.iter().filter(|name| is_block_scale(name)).cloned().collect();
    found.retain(|name| !is_block_scale(name));
    let missing: Vec<String> = expected.keys().filter(|n| !found.contains(*n)).cloned().collect();
    let unexpected: Vec<String> =
        found.iter().filter(|n| !expected.contains_key(*n)).cloned().collect();
    if !missing.is_empty() || !unexpected.is_empty() {
        return Err(ModelError::Tensors { path: path.to_path_buf(), missing, unexpected });
    }

    let mut report = LoadReport {
        path: path.to_path_buf(),
        parameters: expected.len(),
        elements: 0,
        types: BTreeMap::new(),
        ignored,
    };
    let shape_of_scales = |name: &String| {
        let matrix = expected.get(&block_scale_owner(name));
        let matrix = matrix
            .filter(|dims| dims.len() == 2 && dims[1].is_multiple_of(distill_quant::BLOCK))
            .ok_or_else(|| ModelError::Tensors {
                path: path.to_path_buf(),
                missing: Vec::new(),
                unexpected: vec![name.clone()],
            })?;
        Ok::<_, ModelError>(vec![matrix[0], matrix[1] / distill_quant::BLOCK])
    };
    let of_scales = scales.iter().map(|name| Ok((name, shape_of_scales(name)?)));
    let of_scales = of_scales.collect::<Result<Vec<_>, ModelError>>()?;
    let of_scales = of_scales.iter().map(|(name, dims)| (*name, dims));
    for (name, expected) in expected.iter().chain(of_scales) {
        let (dims, dtype) = source.describe(name)?;
        if &dims != expected {
            return Err(ModelError::TensorShape {
                path: path.to_path_buf(),
                tensor: name.clone(),
                found: dims,
                expected: expected.clone(),
            });
        }
        report.elements += dims.iter().product::<usize>();
        *report.types.entry(dtype).or_default() += 1;
    }
    let mut failure = None;
    let model = LlamaForCausalLM::build(&config, device, |name, dims| {
        let elements: usize = dims.iter().product();
        let values = if failure.is_none() { source.read(name) } else { Ok(Vec::new()) };
        match values.and_then(|values| finite(path, name, values)) {
            Ok(values) if values.len() == elements => values,
            Ok(_) if failure.is_some() => vec![0.0; elements],
            Ok(values) => unreachable!("{name}: {} of {elements} elements", values.len()),
            Err(error) => {
                failure.get_or_insert(error);
                vec![0.0; elements]
            }
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let read =
        |name: &String| Ok((block_scale_owner(name), finite(path, name, source.read(name)?)?));
    let scales = scales.iter().map(read).collect::<Result<BTreeMap<_, _>, ModelError>>()?;
    Ok((model.with_block_scales(scales), report))
}

/// Every parameter of a configuration with its row-major dimensions.
fn expected(config: &LlamaConfig) -> BTreeMap<String, Vec<usize>> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_string(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_string(), vec![hidden]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert("lm_head.weight".to_string(), vec![config.vocab_size, hidden]);
    }
    for layer in 0..config.num_hidden_layers {
        for (name, dims) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), dims);
        }
    }
    shapes
}

fn finite(path: &Path, name: &str, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(index) => Err(ModelError::NonFinite {
            place: path.display().to_string(),
            tensor: name.to_string(),
            index,
            value: values[index],
        }),
    }
}

/// `model.safetensors`, or the shards of `model.safetensors.index.json`.
struct SafetensorsSource {
    shards: Vec<(PathBuf, memmap2::Mmap)>,
    /// Tensor → index of its shard.
    places: BTreeMap<String, usize>,
}

impl SafetensorsSource {
    fn open(directory: &Path) -> Result<Self, ModelError> {
        let index = directory.join("model.safetensors.index.json");
        let files: BTreeSet<PathBuf> = if index.is_file() {
            let text =
                std::fs::read_to_string(&index).map_err(ModelError::io("reading", &index))?;
            let problem = |problem: String| ModelError::Config { path: index.clone(), problem };
            let json: serde_json::Value =
                serde_json::from_str(&text).map_err(|e| problem(e.to_string()))?;
            let map = json
                .get("weight_map")
                .and_then(|m| m.as_object())
                .ok_or_else(|| problem("key `weight_map` is missing".into()))?;
            map.values().filter_map(|f| f.as_str()).map(|f| directory.join(f)).collect()
        } else {
            BTreeSet::from([directory.join("model.safetensors")])
        };
        let mut source = Self { shards: Vec::new(), places: BTreeMap::new() };
        for path in files {
            let bytes = map_file(&path)?;
            let parsed = parse(&path, &bytes)?;
            for name in parsed.names() {
                source.places.insert(name.to_string(), source.shards.len());
            }
            source.shards.push((path, bytes));
        }
        Ok(source)
    }

    fn view<R>(
        &self,
        name: &str,
        each: impl FnOnce(&Path, safetensors::tensor::TensorView<'_>) -> Result<R, ModelError>,
    ) -> Result<R, ModelError> {
        let (path, bytes) = &self.shards[self.places[name]];
        let tensors = parse(path, bytes)?;
        let view = tensors
            .tensor(name)
            .map_err(|source| ModelError::Safetensors { path: path.clone(), source })?;
        each(path, view)
    }
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, ModelError> {
    SafeTensors::deserialize(bytes)
        .map_err(|source| ModelError::Safetensors { path: path.to_path_buf(), source })
}

impl Source for SafetensorsSource {
    fn names(&self) -> BTreeSet<String> {
        self.places.keys().cloned().collect()
    }

    fn describe(&self, name: &str) -> Result<(Vec<usize>, String), ModelError> {
        self.view(name, |_, view| Ok((view.shape().to_vec(), format!("{:?}", view.dtype()))))
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.view(name, |path, view| {
            let bytes = view.data();
            let halves = |decode: fn(u16) -> f32| {
                bytes.chunks_exact(2).map(|b| decode(u16::from_le_bytes([b[0], b[1]]))).collect()
            };
            match view.dtype() {
                Dtype::F32 => Ok(bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect()),
                Dtype::F16 => Ok(halves(distill_quant::f16::to_f32)),
                Dtype::BF16 => Ok(halves(|bits| f32::from_bits(u32::from(bits) << 16))),
                other => Err(ModelError::Dtype {
                    path: path.to_path_buf(),
                    tensor: name.to_string(),
                    found: format!("{other:?}"),
                }),
            }
        })
    }
}

/// A GGUF file seen through the name table: Hugging Face names, halves instead of pairs.
struct GgufSource {
    file: GgufFile,
    /// Hugging Face name → GGUF name and the rows' order.
    places: BTreeMap<String, (String, names::RowLayout)>,
    heads: [usize; 2],
}

impl GgufSource {
    fn new(file: GgufFile, path: &Path, config: &LlamaConfig) -> Result<Self, ModelError> {
        let mut places = BTreeMap::new();
        let mut unexpected = Vec::new();
        for tensor in file.tensors() {
            match names::to_hf(&tensor.name) {
                Some((hf, layout)) => {
                    places.insert(hf, (tensor.name.clone(), layout));
                }
                None if tensor.name == "rope_freqs.weight" => {}
                None => unexpected.push(tensor.name.clone()),
            }
        }
        if !unexpected.is_empty() {
            let path = path.to_path_buf();
            return Err(ModelError::Tensors { path, missing: Vec::new(), unexpected });
        }
        let heads = [config.num_attention_heads, config.num_key_value_heads];
        Ok(Self { file, places, heads })
    }

    fn tensor(&self, name: &str) -> distill_gguf::TensorView<'_> {
        self.file.tensor(&self.places[name].0).expect("the name came from this file")
    }
}

impl Source for GgufSource {
    fn names(&self) -> BTreeSet<String> {
        self.places.keys().cloned().collect()
    }

    fn describe(&self, name: &str) -> Result<(Vec<usize>, String), ModelError> {
        let info = self.tensor(name).info;
        let dims = info.dims.iter().rev().map(|&d| d as usize).collect();
        Ok((dims, info.ty.name().to_string()))
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let view = self.tensor(name);
        let values = view.dequantize()?;
        let heads = match self.places[name].1 {
            names::RowLayout::Plain => return Ok(values),
            names::RowLayout::RopeHalves { heads: names::Heads::Query } => self.heads[0],
            names::RowLayout::RopeHalves { heads: names::Heads::Key } => self.heads[1],
        };
        Ok(names::unpermute_rows(&values, view.rows(), heads))
    }
}

#[allow(unsafe_code)]
fn map_file(path: &Path) -> Result<memmap2::Mmap, ModelError> {
    let file = std::fs::File::open(path).map_err(ModelError::io("reading", path))?;
    // SAFETY: the map is read-only and private to this load; a file changed by another process
    // meanwhile can only yield wrong weights, which the finite and shape checks see.
    unsafe { memmap2::Mmap::map(&file) }.map_err(ModelError::io("mapping", path))
}
