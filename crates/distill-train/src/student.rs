//! What is trained: all weights of a model, or low-rank factors beside frozen ones.

use distill_models::parameters::{self, NamedTensors};
use distill_models::quantized::{quantize_into, reclaim, straight_through};
use distill_models::{LlamaForCausalLM, Lora, ModelError, WeightGrids};
use distill_recipe::Train;

use crate::optimizer::AdamW;

/// The student between two steps, in full precision and without autodiff.
#[derive(Clone, Debug)]
pub struct Student {
    /// All weights: those that are trained, or those that stay.
    masters: LlamaForCausalLM,
    lora: Option<Lora>,
    /// Memory of the last step's rounded weights, for those of the next.
    room: NamedTensors,
}

impl Student {
    /// A student whose weights are all trained.
    pub fn whole(masters: LlamaForCausalLM) -> Self {
        Self { masters, lora: None, room: NamedTensors::new() }
    }

    /// A student whose factors are trained.
    pub fn adapted(base: LlamaForCausalLM, lora: Lora) -> Self {
        Self { masters: base, lora: Some(lora), room: NamedTensors::new() }
    }

    /// A student at the beginning of a run.
    ///
    /// # Errors
    /// [`ModelError::LoraRank`].
    pub fn first(masters: LlamaForCausalLM, train: &Train, seed: u64) -> Result<Self, ModelError> {
        let lora = train.lora.as_ref().map(crate::prepare::lora);
        let lora = lora.map(|options| Lora::init(&masters, &options, seed)).transpose()?;
        Ok(Self { masters, lora, room: NamedTensors::new() })
    }

    /// Replaces the masters, where all weights are trained.
    ///
    /// # Panics
    /// If factors are.
    pub fn replace(&mut self, with: impl FnOnce(LlamaForCausalLM) -> LlamaForCausalLM) {
        assert!(self.lora.is_none(), "frozen weights stay as they are");
        self.room.clear();
        parameters::replace(&mut self.masters, with);
    }

    /// All weights: those that are trained, or those that stay.
    pub fn masters(&self) -> &LlamaForCausalLM {
        &self.masters
    }

    /// The factors, if these are what is trained.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// The weights that are frozen, if they are.
    pub fn base(&self) -> Option<&LlamaForCausalLM> {
        self.lora.is_some().then_some(&self.masters)
    }

    /// The model as it ships: every weight on its grid, factors merged before. It carries no graph.
    pub fn live(&mut self, grids: &WeightGrids) -> LlamaForCausalLM {
        match &self.lora {
            None => quantize_into(&self.masters, grids, std::mem::take(&mut self.room)),
            Some(lora) => lora.live(&self.masters, grids),
        }
    }

    /// Takes back a [`Student::live`] model: the next one's weights go to the same memory.
    pub fn reclaim(&mut self, live: LlamaForCausalLM, grids: &WeightGrids) {
        if self.lora.is_none() {
            self.room = reclaim(live, grids);
        }
    }

    /// Gives that memory away.
    pub fn release(&mut self) {
        self.room.clear();
    }

    /// The weights that a checkpoint holds and an export rounds: in full precision, factors merged.
    pub fn merged(&self) -> LlamaForCausalLM {
        match &self.lora {
            None => self.masters.clone(),
            Some(lora) => lora.merge(&self.masters),
        }
    }

    /// Names and dimensions of what is trained.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        match &self.lora {
            None => parameters::shapes(&self.masters),
            Some(lora) => lora.shapes(),
        }
    }

    /// Weights that are trained.
    pub fn trained(&self) -> usize {
        self.shapes().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum()
    }

    /// Turns gradients of the [`Student::live`] weights into those of what is trained. Factors have
    /// had theirs turned already, linear by linear.
    pub fn straight_through(&self, grids: &WeightGrids, gradients: &mut NamedTensors) {
        if self.lora.is_none() {
            straight_through(&self.masters, grids, gradients);
        }
    }

    /// One update from gradients times `clip`, in place if nobody else holds the weights.
    pub fn update(
        &mut self,
        optimizer: &mut AdamW,
        mut gradients: NamedTensors,
        clip: f64,
        learning_rate: f64,
    ) {
        match &mut self.lora {
            None => parameters::replace(&mut self.masters, |masters| {
                optimizer.update(masters, gradients, clip, learning_rate)
            }),
            Some(lora) => {
                let mut step = optimizer.step(clip, learning_rate);
                lora.map(|name, dims, factor| match gradients.remove(name) {
                    Some(gradient) => step.apply(name, dims, factor, gradient),
                    None => factor,
                });
            }
        }
    }
}
