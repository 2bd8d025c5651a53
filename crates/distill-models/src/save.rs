//! Writing a model as a Hugging Face directory.

use std::borrow::Cow;
use std::path::Path;

use burn::tensor::Tensor;
use safetensors::tensor::{Dtype, View};

use crate::{LlamaForCausalLM, ModelError, parameters};

/// Writes `config.json` and `model.safetensors` (f32) into an existing directory.
///
/// # Errors
/// [`ModelError::NonFinite`] naming tensor and index if training diverged, [`ModelError::Io`].
pub fn save(model: &LlamaForCausalLM, directory: &Path) -> Result<(), ModelError> {
    let config = directory.join("config.json");
    let json = serde_json::to_string_pretty(&model.config.to_json()).unwrap_or_default();
    std::fs::write(&config, json).map_err(ModelError::io("writing", &config))?;

    let path = directory.join("model.safetensors");
    let mut broken = None;
    parameters::for_each(model, |name, _, values| {
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            broken.get_or_insert((name.to_string(), index, values[index]));
        }
    });
    if let Some((tensor, index, value)) = broken {
        let place = path.display().to_string();
        return Err(ModelError::NonFinite { place, tensor, index, value });
    }
    let mut shapes = parameters::shapes(model).into_iter();
    let mut tensors = Vec::new();
    parameters::for_each_tensor(model, |_, tensor| {
        tensors.extend(shapes.next().map(|(name, dims)| (name, Lazy { dims, tensor })));
    });
    let metadata = Some(std::collections::HashMap::from([("format".into(), "pt".into())]));
    safetensors::serialize_to_file(tensors, metadata, &path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => {
            ModelError::Io { action: "writing", path: path.clone(), source }
        }
        source => ModelError::Safetensors { path: path.clone(), source },
    })
}

/// A tensor of f32 that becomes bytes when its turn comes to be written, so that there
/// are copies of one at a time.
#[derive(Clone, Debug)]
struct Lazy {
    /// Row-major.
    dims: Vec<usize>,
    /// `[elements]`.
    tensor: Tensor<1>,
}

impl View for Lazy {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.dims
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = parameters::values(self.tensor.clone());
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.dims.iter().product::<usize>()
    }
}
