//! The graph, following the runtime's choices at rounding boundaries and nowhere else.
//!
//! Rounding an activation to a code is discontinuous. Two correct implementations add the same
//! numbers in another order, differ by an ulp, and where a value lies on the boundary between
//! two codes they take different ones; a few layers later their logits differ by the whole
//! rounding noise. (Measured on SmolLM2-135M: the *same* graph in f32 and in f64 agrees on the
//! top token at 94.8 % of positions, with a mean KL of 5.9e-3.) A comparison of logits alone
//! could not tell that from a fault.
//!
//! So each code is judged. The runtime tells its codes; the graph computes its own value and
//! code, and adopts the runtime's only if its value lies within a tolerance of the boundary
//! between the two. Anything else is refused: counted against [`REFUSED_SHARE`], and not
//! followed, so that it shows in the logits, which must agree as closely as float arithmetic
//! does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Tensor, TensorData};
use distill_edge::{LinearInput as EdgeInput, QuantizedInput};
use distill_models::{LinearInput, Rounding, fake_quant, parameters};
use distill_quant::BLOCK;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How far from a boundary a value may lie for its code to be the neighbour's, in code steps,
/// where only the order of float additions differs.
pub const TOLERANCE: f32 = 0.01;
/// The same with an f16 KV cache. A key or value that lies on a boundary between two f16 numbers
/// may fall to either side, and then differs by 2⁻¹⁰ of itself: up to 127 · 2⁻¹⁰ = 0.12 of a
/// step. Twice that, for two of them in one sum.
pub const TOLERANCE_HALF_CACHE: f32 = 0.25;

/// Largest share of refused codes. With an f16 cache a key that falls to the other side moves
/// all attention of its head a little, and now and then a value by more than the tolerance
/// (SmolLM2-135M: 43 of 428 million codes).
pub const REFUSED_SHARE: f64 = 1e-6;

/// Largest share of adopted codes: half of all values lie within 0.25 of a boundary, so a runtime
/// that rounds wrongly would be followed everywhere. (SmolLM2-135M: 1.2e-3.)
pub const ADOPTED_SHARE: f64 = 1e-2;

/// Codes compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Codes {
    /// All of them.
    pub compared: u64,
    /// Those on the other side of a boundary, adopted from the runtime.
    pub adopted: u64,
    /// Those that differ otherwise.
    pub refused: u64,
    /// Largest distance from the boundary of an adopted code, in code steps.
    pub furthest: f64,
}

/// The codes of one text, `[tokens, columns]` each.
type Trace = HashMap<LinearInput, (usize, Vec<i8>)>;

/// Rounding that follows a recorded trace.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    trace: Arc<Mutex<Trace>>,
    codes: Arc<Mutex<Codes>>,
    /// Whether activations are rounded at all.
    integer: bool,
    /// Whether keys and values pass through f16.
    half_cache: bool,
}

impl Replay {
    /// For a runtime with integer activations or float ones, and an f16 or an f32 cache.
    pub fn new(integer: bool, half_cache: bool) -> Self {
        Self { integer, half_cache, ..Self::default() }
    }

    /// Forgets the text before.
    pub fn begin(&self) {
        lock(&self.trace).clear();
    }

    /// Notes what the runtime's linears read, tokens in order.
    pub fn record(&self, seen: QuantizedInput<'_>) {
        let input = match seen.input {
            EdgeInput::Attention { layer } => LinearInput::Attention(layer),
            EdgeInput::AttentionOutput { layer } => LinearInput::AttentionOutput(layer),
            EdgeInput::FeedForward { layer } => LinearInput::FeedForward(layer),
            EdgeInput::Down { layer } => LinearInput::Down(layer),
            EdgeInput::Head => LinearInput::Head,
        };
        let mut trace = lock(&self.trace);
        let (columns, codes) = trace.entry(input).or_default();
        *columns = seen.columns;
        codes.truncate(seen.position * seen.columns);
        codes.extend_from_slice(seen.codes);
    }

    /// What was found so far; `None` if activations are not rounded.
    pub fn codes(&self) -> Option<Codes> {
        self.integer.then(|| *lock(&self.codes))
    }
}

impl Rounding for Replay {
    fn linear_input(&self, input: LinearInput, x: Tensor<3>) -> Tensor<3> {
        if !self.integer {
            return x;
        }
        let (dims, device) = (x.dims(), x.device());
        let mut values = parameters::values(x);
        let tolerance = if self.half_cache { TOLERANCE_HALF_CACHE } else { TOLERANCE };
        let trace = lock(&self.trace);
        let theirs = trace.get(&input).map_or(&[][..], |(_, codes)| codes);
        let found = values
            .par_chunks_mut(BLOCK)
            .enumerate()
            .map(|(block, values)| {
                let theirs = theirs.get(block * BLOCK..(block + 1) * BLOCK).unwrap_or(&[]);
                follow(values, theirs, tolerance)
            })
            .reduce(Codes::default, Codes::plus);
        drop(trace);
        let mut codes = lock(&self.codes);
        *codes = codes.plus(found);
        Tensor::from_data(TensorData::new(values, dims), &device)
    }

    fn cached(&self) -> Option<fn(Tensor<4>) -> Tensor<4>> {
        self.half_cache.then_some(fake_quant::f16)
    }
}

impl Codes {
    /// Whether no more was refused than [`REFUSED_SHARE`] and no more adopted than
    /// [`ADOPTED_SHARE`].
    pub fn agree(&self) -> bool {
        let compared = self.compared as f64;
        self.refused as f64 <= REFUSED_SHARE * compared
            && self.adopted as f64 <= ADOPTED_SHARE * compared
    }

    fn plus(self, other: Self) -> Self {
        Self {
            compared: self.compared + other.compared,
            adopted: self.adopted + other.adopted,
            refused: self.refused + other.refused,
            furthest: self.furthest.max(other.furthest),
        }
    }
}

/// Rounds a block of values in place to Q8_0, by their own scale, taking `theirs` where the
/// value lies on the boundary between the two codes.
fn follow(values: &mut [f32], theirs: &[i8], tolerance: f32) -> Codes {
    let scale = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs())) / 127.0;
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale };
    let mut found = Codes::default();
    for (index, value) in values.iter_mut().enumerate() {
        let steps = *value * inverse;
        let mut code = steps.round_ties_even().clamp(-127.0, 127.0);
        found.compared += 1;
        match theirs.get(index).map(|&c| f32::from(c)) {
            Some(their) if their == code => {}
            Some(their) if (their - code).abs() == 1.0 => {
                let distance = (steps - (their + code) / 2.0).abs();
                if distance <= tolerance {
                    found.adopted += 1;
                    found.furthest = found.furthest.max(f64::from(distance));
                    code = their;
                } else {
                    found.refused += 1;
                }
            }
            _ => found.refused += 1,
        }
        *value = if inverse == 0.0 { 0.0 } else { code * scale };
    }
    found
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere leaves plain numbers behind, which are still sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Vec<f32> {
        let mut values = vec![0.0; BLOCK];
        values[0] = 127.0;
        values[1] = 3.501;
        values[2] = -8.2;
        values
    }

    #[test]
    fn a_code_on_the_boundary_is_adopted() {
        let mut values = block();
        let mut theirs = [0i8; BLOCK];
        (theirs[0], theirs[1], theirs[2]) = (127, 3, -8);
        let found = follow(&mut values, &theirs, TOLERANCE);
        assert_eq!((found.adopted, found.refused, values[1]), (1, 0, 3.0));
    }

    #[test]
    fn a_code_away_from_the_boundary_is_refused_and_not_followed() {
        for wrong in [-7, -9, -10, 8] {
            let mut values = block();
            let mut theirs = [0i8; BLOCK];
            (theirs[0], theirs[1], theirs[2]) = (127, 4, wrong);
            let found = follow(&mut values, &theirs, TOLERANCE);
            assert_eq!((found.refused, values[2]), (1, -8.0), "{wrong}");
        }
    }

    #[test]
    fn a_missing_trace_is_refused() {
        assert_eq!(follow(&mut block(), &[], TOLERANCE).refused, BLOCK as u64);
    }
}
