//! Writing a model as a Hugging Face directory.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

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
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut broken = None;
    parameters::for_each(model, |name, dims, values| {
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            broken.get_or_insert((name.to_string(), index, values[index]));
        }
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((name.to_string(), dims.to_vec(), bytes));
    });
    if let Some((tensor, index, value)) = broken {
        let place = path.display().to_string();
        return Err(ModelError::NonFinite { place, tensor, index, value });
    }
    let views = tensors.iter().map(|(name, dims, bytes)| {
        let view = TensorView::new(Dtype::F32, dims.clone(), bytes);
        (name.as_str(), view.expect("the bytes were made from these dimensions"))
    });
    let metadata = Some(std::collections::HashMap::from([("format".into(), "pt".into())]));
    safetensors::serialize_to_file(views, metadata, &path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => {
            ModelError::Io { action: "writing", path: path.clone(), source }
        }
        source => ModelError::Safetensors { path: path.clone(), source },
    })
}
