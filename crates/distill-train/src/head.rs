//! The LM head and the loss, in tiles of tokens.
//!
//! Logits of a whole batch would be the largest tensor of a step (100 MB for 512 tokens of a
//! 49,152-token vocabulary), and the loss needs several of that size. They are made, used and
//! dropped a tile at a time, with the gradients of [`crate::loss`] multiplied back at once.

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill_data::Batch;
use distill_teacher::Kind;

use crate::loss::partial::partial;
use crate::loss::{CROSS_ENTROPY, Distillation, cross_entropy, divergence};
use crate::teacher::Signal;

/// Tokens a tile.
const TILE: usize = 256;

/// The loss of a micro-batch and its gradients with respect to the head and what feeds it.
pub struct HeadLoss {
    /// Sums over the valid tokens, not yet divided.
    pub sums: LossSums,
    /// ∂loss/∂hidden, `[tokens, hidden]`.
    pub hidden_gradient: Tensor<2>,
    /// ∂loss/∂head, `[rows, hidden]`, unless it is frozen.
    pub head_gradient: Option<Tensor<2>>,
}

/// Sums over valid tokens, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Σ (1 − w)·D + w·CE.
    pub loss: f64,
    /// Σ D, as weighted by T².
    pub divergence: f64,
    /// Σ CE against the labels.
    pub cross_entropy: f64,
}

impl std::ops::AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.divergence += other.divergence;
        self.cross_entropy += other.cross_entropy;
    }
}

/// What the loss of a micro-batch is made of.
pub struct HeadInput<'a> {
    /// Final hidden states of the student, `[tokens, hidden]`, without autodiff.
    pub hidden: Tensor<2>,
    /// The student's head, `[rows, hidden]`, without autodiff; rows beyond the vocabulary are
    /// padding and take no part.
    pub head: Tensor<2>,
    /// Whether the head stays as it is and needs no gradient.
    pub frozen: bool,
    /// Tokens that exist.
    pub vocabulary: usize,
    /// Labels and mask.
    pub batch: &'a Batch,
    /// What the teacher says, and how to be held against it; `None` is plain cross-entropy.
    pub distillation: Option<(&'a Signal, &'a Distillation)>,
    /// Valid tokens of the whole accumulation window.
    pub denominator: usize,
}

impl HeadInput<'_> {
    /// Loss and gradients; the gradients are divided by the denominator, the sums are not.
    pub fn loss(&self) -> HeadLoss {
        self.fused().unwrap_or_else(|| self.in_tensors())
    }

    /// By the fused operator, where the device has it.
    fn fused(&self) -> Option<HeadLoss> {
        let weight = self.distillation.map_or(1.0, |(_, options)| options.cross_entropy);
        let share = 1.0 / self.denominator.max(1) as f32;
        let shares: Vec<f32> =
            self.batch.loss_mask.iter().map(|&valid| if valid { share } else { 0.0 }).collect();
        let input = distill_ops::HeadInput {
            hidden: self.hidden.clone(),
            head: self.head.clone(),
            frozen: self.frozen,
            vocabulary: self.vocabulary,
            teacher: self.distillation.map(|(signal, _)| told(signal)),
            labels: &self.batch.labels,
            shares: &shares,
            options: self.distillation.map_or(CROSS_ENTROPY, |(_, options)| options.fused()),
        };
        let found = input.loss()?;
        let (divergence, cross_entropy) = (found.sums.divergence, found.sums.cross_entropy);
        let loss = (1.0 - weight) * divergence + weight * cross_entropy;
        Some(HeadLoss {
            sums: LossSums { loss, divergence, cross_entropy },
            hidden_gradient: found.hidden_gradient,
            head_gradient: found.head_gradient,
        })
    }

    fn in_tensors(&self) -> HeadLoss {
        let device = self.hidden.device();
        let [tokens, width] = self.hidden.dims();
        let rows = self.head.dims()[0];
        let head = self.head.clone().narrow(0, 0, self.vocabulary);
        let mut sums = LossSums::default();
        let mut hidden_gradients = Vec::with_capacity(tokens.div_ceil(TILE));
        let zeros = || Tensor::zeros([self.vocabulary, width], &device);
        let mut head_gradient = (!self.frozen).then(zeros);
        for start in (0..tokens).step_by(TILE) {
            let tile = start..(start + TILE).min(tokens);
            let hidden = self.hidden.clone().slice([tile.clone()]);
            let logits = hidden.clone().matmul(head.clone().transpose());
            let gradient = self.tile(logits, tile, &mut sums, &device);
            hidden_gradients.push(gradient.clone().matmul(head.clone()));
            head_gradient = head_gradient.map(|sum| sum + gradient.transpose().matmul(hidden));
        }
        if rows > self.vocabulary {
            let padding = Tensor::zeros([rows - self.vocabulary, width], &device);
            head_gradient = head_gradient.map(|sum| Tensor::cat(vec![sum, padding], 0));
        }
        HeadLoss { sums, hidden_gradient: Tensor::cat(hidden_gradients, 0), head_gradient }
    }

    /// Adds the tile's losses to `sums` and returns ∂loss/∂logits, `[tile, vocab]`.
    fn tile(
        &self,
        logits: Tensor<2>,
        tile: std::ops::Range<usize>,
        sums: &mut LossSums,
        device: &Device,
    ) -> Tensor<2> {
        let tokens = tile.len();
        let labels: Vec<i32> = self.batch.labels[tile.clone()].iter().map(|&l| l as i32).collect();
        let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [tokens]), device);
        let mask = &self.batch.loss_mask[tile.clone()];
        let masked_sum = |value: Tensor<1>| -> f64 {
            let values = distill_models::parameters::values(value);
            mask.iter().zip(values).filter(|(m, _)| **m).map(|(_, v)| f64::from(v)).sum()
        };
        let hard = cross_entropy(logits.clone(), labels);
        let hard_sum = masked_sum(hard.value);
        sums.cross_entropy += hard_sum;
        let gradient = match self.distillation {
            None => {
                sums.loss += hard_sum;
                hard.gradient
            }
            Some((signal, options)) => {
                let weight = options.cross_entropy;
                let soft = match signal {
                    Signal::Dense(teacher) => {
                        divergence(logits, teacher.logits(tile.clone()), options)
                    }
                    Signal::Partial(said) => partial(logits, said, tile.start, options),
                };
                let soft_sum = masked_sum(soft.value);
                sums.divergence += soft_sum;
                sums.loss += (1.0 - weight) * soft_sum + weight * hard_sum;
                if weight == 0.0 {
                    soft.gradient
                } else {
                    soft.gradient.mul_scalar(1.0 - weight) + hard.gradient.mul_scalar(weight)
                }
            }
        };
        let share = 1.0 / self.denominator.max(1) as f32;
        let shares: Vec<f32> = mask.iter().map(|&m| if m { share } else { 0.0 }).collect();
        gradient * Tensor::<2>::from_data(TensorData::new(shares, [tokens, 1]), device)
    }
}

/// The same for the fused operator.
fn told(signal: &Signal) -> distill_ops::Teacher<'_> {
    match signal {
        Signal::Dense(dense) => {
            let (hidden, head) = dense.parts();
            distill_ops::Teacher::Dense(hidden, head)
        }
        Signal::Partial(said) => {
            let (starts, tokens, values) = said.parts();
            let sparse = distill_ops::Sparse { starts, tokens, values };
            match said.kind() {
                Kind::TopK => distill_ops::Teacher::Top(sparse),
                Kind::Sampled => distill_ops::Teacher::Sampled(sparse),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation;

    use super::*;
    use crate::loss::Divergence;
    use crate::teacher::Dense;

    /// More than one tile, the last one not whole.
    const TOKENS: usize = TILE + 44;
    const WIDTH: usize = 8;
    const ROWS: usize = 40;
    const VOCABULARY: usize = 37;

    fn tensor(rows: usize, columns: usize, seed: f32, device: &Device) -> Tensor<2> {
        let values: Vec<f32> =
            (0..rows * columns).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        Tensor::from_data(TensorData::new(values, [rows, columns]), device)
    }

    fn batch() -> Batch {
        Batch {
            batch: 1,
            sequence: TOKENS,
            input_ids: vec![0; TOKENS],
            labels: (0..TOKENS).map(|i| (i * 7 % VOCABULARY) as u32).collect(),
            loss_mask: (0..TOKENS).map(|i| i % 5 != 3).collect(),
            document_ids: vec![0; TOKENS],
            position_ids: vec![0; TOKENS],
        }
    }

    /// (1 − w)·KL(teacher ‖ student) + w·CE over valid tokens, by autodiff over whole logits.
    fn by_autodiff(weight: f64, device: &Device) -> (f64, Vec<f32>, Vec<f32>) {
        let device = device.clone().autodiff();
        let batch = batch();
        let hidden = tensor(TOKENS, WIDTH, 0.1, &device).require_grad();
        let head = tensor(ROWS, WIDTH, 0.7, &device).require_grad();
        let logits = hidden.clone().matmul(head.clone().narrow(0, 0, VOCABULARY).transpose());
        let log_q = activation::log_softmax(logits, 1);
        let teacher = tensor(TOKENS, WIDTH, 1.3, &device)
            .matmul(tensor(VOCABULARY, WIDTH, 2.9, &device).transpose());
        let log_p = activation::log_softmax(teacher, 1);
        let kl = (log_p.clone().exp() * (log_p - log_q.clone())).sum_dim(1);
        let labels: Vec<i32> = batch.labels.iter().map(|&l| l as i32).collect();
        let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [TOKENS, 1]), &device);
        let ce = log_q.gather(1, labels).neg();
        let valid = batch.valid_tokens() as f32;
        let mask: Vec<f32> = batch.loss_mask.iter().map(|&m| f32::from(u8::from(m))).collect();
        let mask = Tensor::<2>::from_data(TensorData::new(mask, [TOKENS, 1]), &device);
        let loss = (kl.mul_scalar(1.0 - weight) + ce.mul_scalar(weight)) * mask;
        let loss = loss.sum().div_scalar(valid);
        let gradients = loss.backward();
        let values = distill_models::parameters::values::<2>;
        (
            f64::from(loss.into_scalar::<f32>()),
            values(hidden.grad(&gradients).expect("tracked")),
            values(head.grad(&gradients).expect("tracked")),
        )
    }

    #[test]
    fn tiled_loss_and_gradients_equal_autodiff_over_whole_logits() {
        let device = Device::flex();
        let batch = batch();
        let (hidden, head) =
            (tensor(TOKENS, WIDTH, 1.3, &device), tensor(VOCABULARY, WIDTH, 2.9, &device));
        let signal = Signal::Dense(Dense::new(hidden, head));
        for weight in [0.0, 0.3, 1.0] {
            let options = Distillation {
                divergence: Divergence::ForwardKl,
                temperature: 1.0,
                scale_by_temperature_squared: true,
                cross_entropy: weight,
            };
            let found = HeadInput {
                hidden: tensor(TOKENS, WIDTH, 0.1, &device),
                head: tensor(ROWS, WIDTH, 0.7, &device),
                frozen: false,
                vocabulary: VOCABULARY,
                batch: &batch,
                distillation: Some((&signal, &options)),
                denominator: batch.valid_tokens(),
            }
            .loss();
            let (loss, hidden, head) = by_autodiff(weight, &device);
            let mean = found.sums.loss / batch.valid_tokens() as f64;
            assert!((mean - loss).abs() < 1e-5, "w {weight}: {mean} {loss}");
            let of_head = found.head_gradient.expect("the head is not frozen");
            for (found, expected) in [(found.hidden_gradient, hidden), (of_head, head)] {
                let found = distill_models::parameters::values(found);
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-6, "w {weight}: {found} {expected}");
                }
            }
        }
    }
}
