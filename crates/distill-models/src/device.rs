//! Backends by name.

use burn::tensor::Device;

use crate::ModelError;

/// Where tensors live and run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Burn's CPU backend: the default, and the one results are defined on.
    Flex,
    /// The older CPU backend, kept for cross-checks.
    Ndarray,
    /// Any GPU through Vulkan, Metal or DirectX.
    Wgpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl Backend {
    /// The device, without autodiff.
    ///
    /// # Errors
    /// [`ModelError::BackendMissing`] if the cargo feature is off.
    pub fn device(self) -> Result<Device, ModelError> {
        match self {
            Self::Flex => Ok(Device::flex()),
            // Kept for cross-checks as long as Burn has it.
            #[allow(deprecated)]
            Self::Ndarray => Ok(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(not(feature = "wgpu"))]
            Self::Wgpu => Err(ModelError::BackendMissing { backend: "wgpu" }),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(Device::cuda(0usize)),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => Err(ModelError::BackendMissing { backend: "cuda" }),
        }
    }
}
