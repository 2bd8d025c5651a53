//! How training meets the grid: all at once or by degrees, and what gradients the clamped weights get.

use distill_models::LlamaForCausalLM;
use distill_models::parameters::{self, NamedTensors};
use distill_models::quantized::is_block_scale;
use distill_recipe::{Quantize, StraightThrough};

/// What one step computes with: weights a part of the way from the masters w to the grid,
/// w + λ·(ŵ − w).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Approach {
    /// λ, in (0, 1].
    share: f32,
    clips: bool,
}

impl Approach {
    /// That of an optimiser step, counted from 0: λ grows from 1 / `ramp_steps` by that much a step.
    pub fn at(quantize: Option<&Quantize>, step: usize) -> Self {
        let on_grid = quantize.filter(|quantize| step >= quantize.start_step);
        let Some(quantize) = on_grid else { return Self { share: 1.0, clips: true } };
        let done = step + 1 - quantize.start_step;
        let share = match quantize.ramp_steps {
            0 => 1.0,
            ramp => (done as f64 / ramp as f64).min(1.0) as f32,
        };
        Self { share, clips: quantize.straight_through == StraightThrough::Clipped }
    }

    /// The weights of the step, from those on the grid.
    pub fn weights(self, masters: &LlamaForCausalLM, live: LlamaForCausalLM) -> LlamaForCausalLM {
        if self.share == 1.0 {
            return live;
        }
        let mut of = NamedTensors::new();
        parameters::for_each_tensor(masters, |name, weights| {
            of.insert(name.to_string(), weights);
        });
        parameters::map(live, |name, _, rounded| match of.remove(name) {
            Some(weights) => weights.clone() + (rounded - weights) * self.share,
            None => rounded,
        })
    }

    /// The gradients of the masters: ∂(w + λ·(ŵ − w))/∂w by `straight_through`, which is given those of
    /// the weights that the step computed with. Block scales move only the rounded part.
    pub fn gradients(
        self,
        of_live: &mut NamedTensors,
        straight_through: impl FnOnce(&mut NamedTensors),
    ) {
        if self.clips && self.share == 1.0 {
            return straight_through(of_live);
        }
        let mut whole = of_live.clone();
        straight_through(of_live);
        let clipped = if self.clips { self.share } else { 0.0 };
        for (name, gradient) in of_live.iter_mut() {
            if is_block_scale(name) {
                *gradient = gradient.clone() * self.share;
            } else if let Some(whole) = whole.remove(name) {
                *gradient = whole * (1.0 - clipped) + gradient.clone() * clipped;
            }
        }
    }
}
