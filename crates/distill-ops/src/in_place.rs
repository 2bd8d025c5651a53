//! Operators that need no graph: rounding weights, the optimiser.
//!
//! Rounding answers `None` where the device has no fused form of it: `distill-models` has the rule as
//! tensor operations.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::adamw::{self, Update};
use crate::cpu::rounding::{self, Grid};
use crate::flex::{contiguous, tensor, values};
use crate::profile::{Work, operator};
use crate::{is_fused, plain};

/// Rows of a table that a thread takes at a time.
const ROWS: usize = 4096;

fn host(x: &Tensor<1>) -> Option<FlexTensor> {
    host_owned(x.clone())
}

/// The same of a tensor that the caller gives away.
fn host_owned(x: Tensor<1>) -> Option<FlexTensor> {
    let fused = is_fused(&x.device()) && !x.is_autodiff();
    fused.then(|| contiguous(x.try_into_primitive::<Flex>().expect("asked before")))
}

fn device(x: FlexTensor) -> Tensor<1> {
    Tensor::from_primitive::<Flex>(x)
}

/// A flat tensor of whole blocks on a grid, in the memory of `room` if nobody else holds that.
pub fn round(grid: Grid, x: &Tensor<1>, room: Option<Tensor<1>>) -> Option<Tensor<1>> {
    let x = host(x)?;
    let elements = values(&x).len();
    let room = room.and_then(host_owned).filter(|room| values(room).len() == elements);
    Some(device(operator("weight rounding", Work::floats(2 * elements), || {
        if let Some(mut room) = room
            && let Some(out) = room.try_storage_mut()
        {
            rounding::round(grid, values(&x), out);
            return room;
        }
        tensor(rounding::rounded(grid, values(&x)), burn::backend::TensorMetadata::shape(&x))
    })))
}

/// A flat tensor of whole blocks on Q4_0, each with its scale of `scales` `[blocks]`, in the memory of
/// `room` if nobody else holds that.
pub fn round_scaled(
    x: &Tensor<1>,
    scales: &Tensor<1>,
    room: Option<Tensor<1>>,
) -> Option<Tensor<1>> {
    let (x, scales) = (host(x)?, host(scales)?);
    let elements = values(&x).len();
    let room = room.and_then(host_owned).filter(|room| values(room).len() == elements);
    Some(device(operator("weight rounding", Work::floats(2 * elements), || {
        if let Some(mut room) = room
            && let Some(out) = room.try_storage_mut()
        {
            rounding::round_scaled(values(&x), values(&scales), out);
            return room;
        }
        let mut out = vec![0.0; elements];
        rounding::round_scaled(values(&x), values(&scales), &mut out);
        tensor(out, burn::backend::TensorMetadata::shape(&x))
    })))
}

/// The gradient of weights rounded by [`round_scaled`] as those of the weights, in place if nobody
/// else holds it, and of the scales `[blocks]`.
///
/// # Panics
/// Where the device has no fused operators.
pub fn straight_through_scaled(
    weights: &Tensor<1>,
    scales: &Tensor<1>,
    gradient: Tensor<1>,
) -> (Tensor<1>, Tensor<1>) {
    let (weights, scales) = (host(weights), host(scales));
    let (weights, scales) = (weights.expect("fused operators"), scales.expect("on one device"));
    let mut gradient = host_owned(gradient).expect("on the weights' device, untracked");
    let mut of_scales = vec![0.0; values(&scales).len()];
    operator("weight rounding, backward", Work::floats(3 * values(&weights).len()), || {
        let (weights, scales) = (values(&weights), values(&scales));
        let gradient = gradient.storage_mut();
        rounding::straight_through_scaled(weights, scales, gradient, &mut of_scales);
    });
    let of_scales = tensor(of_scales, burn::backend::TensorMetadata::shape(&scales));
    (device(gradient), device(of_scales))
}

/// The gradient of rounded weights as that of the weights, through Q4_0: 0 where it clamps. In place
/// if nobody else holds the gradient.
///
/// # Panics
/// Where the device has no fused operators.
pub fn straight_through_q4_0(weights: &Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
    let weights = host(weights).expect("fused operators");
    let mut gradient = host_owned(gradient).expect("on the weights' device, untracked");
    operator("weight rounding, backward", Work::floats(3 * values(&weights).len()), || {
        rounding::straight_through_q4_0(values(&weights), gradient.storage_mut());
    });
    device(gradient)
}

/// Adds rows `[tokens · width]` to those of a flat table that `ids` names, one after the other, in
/// place if nobody else holds the table.
pub fn add_rows(table: Tensor<1>, ids: &[u32], rows: Tensor<1>, width: usize) -> Tensor<1> {
    let Some(rows) = host(&rows) else { return plain::add_rows(table, ids, rows, width) };
    let mut table = contiguous(table.try_into_primitive::<Flex>().expect("on one device"));
    operator("embedding, backward", Work::floats(3 * ids.len() * width), || {
        // Threads share out the table's rows, so that each row is added to in order.
        let parts = table.storage_mut::<f32>().par_chunks_mut(ROWS * width).enumerate();
        parts.for_each(|(part, sums)| {
            for (&id, row) in ids.iter().zip(values(&rows).chunks_exact(width)) {
                if id as usize / ROWS == part {
                    let sum = &mut sums[id as usize % ROWS * width..][..width];
                    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
            }
        });
    });
    device(table)
}

/// Σ x².
pub fn sum_of_squares(x: &Tensor<1>) -> f64 {
    match host(x) {
        Some(x) => operator("gradient norm", Work::floats(values(&x).len()), || {
            adamw::sum_of_squares(values(&x))
        }),
        None => plain::sum_of_squares(x.clone()),
    }
}

/// One AdamW update of flat tensors: weights, first and second moment, in place if nobody else
/// holds them.
pub fn adamw(state: [Tensor<1>; 3], gradient: Tensor<1>, by: Update) -> [Tensor<1>; 3] {
    let Some(gradient) = host(&gradient) else { return plain::adamw(state, gradient, by) };
    let [mut weights, mut m, mut v] =
        state.map(|x| contiguous(x.try_into_primitive::<Flex>().expect("on one device")));
    operator("adamw", Work::floats(7 * values(&gradient).len()), || {
        let all = (weights.storage_mut(), m.storage_mut(), v.storage_mut());
        adamw::update(all.0, values(&gradient), all.1, all.2, by);
    });
    [weights, m, v].map(device)
}
