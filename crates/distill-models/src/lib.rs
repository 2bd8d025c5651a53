//! Model architectures in Burn, their weights, and fake quantisation.
//!
//! One forward pass per architecture serves training and evaluation ([`llama`]). Module fields carry the Hugging Face names, so a parameter's path *is* its
//! checkpoint name ([`parameters`]) and reading weights is nearly the identity ([`weights`]).
//! Quantisation-aware training never touches model code: [`quantized`] turns the master
//! weights into the weights that ship, once per optimiser step, with the tensor form of the
//! grids ([`fake_quant`]). Low-rank factors beside frozen weights ([`lora`]) are merged there too.
//!
//! Deliberately absent: losses, optimisers, data, and every notion of a recipe.

pub mod config;
pub mod device;
mod error;
pub mod fake_quant;
pub mod llama;
pub mod lora;
pub mod parameters;
pub mod quantized;
pub mod rope;
mod rounding;
pub mod save;
pub mod weights;

pub use config::{LlamaConfig, RopeScaling, TokenIds};
pub use device::Backend;
pub use distill_ops::Positions;
pub use error::ModelError;
pub use llama::LlamaForCausalLM;
pub use lora::{Lora, LoraOptions};
pub use quantized::{WeightGrid, WeightGrids};
pub use rounding::{ActivationGrid, LinearInput, Rounding};
pub use weights::{LoadReport, load_pretrained};
