//! The learning rate of a step.

use distill_recipe::{Schedule, Train};

/// Learning rate of step `step` (from 0): linear warm-up, then cosine to the minimum, or
/// constant and a linear fall over the last steps (warm-up, stable, decay).
pub fn learning_rate(train: &Train, step: usize) -> f64 {
    let (peak, floor) = (train.learning_rate, train.min_learning_rate);
    if step < train.warmup_steps {
        return peak * (step + 1) as f64 / train.warmup_steps as f64;
    }
    let last = train.steps.saturating_sub(1);
    let progress = |from: usize| {
        if last <= from { 0.0 } else { step.saturating_sub(from) as f64 / (last - from) as f64 }
    };
    match train.schedule {
        Schedule::Cosine => {
            let turn = std::f64::consts::PI * progress(train.warmup_steps).min(1.0);
            floor + (peak - floor) * 0.5 * (1.0 + turn.cos())
        }
        Schedule::Wsd { decay_steps } => {
            let start = train.steps.saturating_sub(decay_steps + 1);
            peak - (peak - floor) * progress(start).clamp(0.0, 1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use distill_recipe::OptimizerState;

    use super::*;

    fn train(schedule: Schedule) -> Train {
        Train {
            steps: 101,
            batch_size: 1,
            gradient_accumulation: 1,
            activation_checkpointing: false,
            learning_rate: 1.0,
            min_learning_rate: 0.1,
            schedule,
            warmup_steps: 10,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            precision: distill_recipe::Precision::F32,
            optimizer_state: OptimizerState::F32,
            clip_norm: 1.0,
            eval_every: 1,
            checkpoint_every: 1,
            keep_checkpoints: 1,
            patience: None,
            learning_rate_factors: distill_recipe::LearningRateFactors::default(),
            lora: None,
        }
    }

    #[test]
    fn warm_up_rises_linearly_to_the_peak() {
        let train = train(Schedule::Cosine);
        assert_eq!(learning_rate(&train, 0), 0.1);
        assert_eq!(learning_rate(&train, 9), 1.0);
    }

    #[test]
    fn cosine_passes_the_middle_and_ends_at_the_minimum() {
        let train = train(Schedule::Cosine);
        assert_eq!(learning_rate(&train, 10), 1.0);
        assert!((learning_rate(&train, 55) - 0.55).abs() < 1e-12);
        assert!((learning_rate(&train, 100) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn wsd_stays_at_the_peak_and_falls_over_the_decay_steps() {
        let train = train(Schedule::Wsd { decay_steps: 20 });
        assert_eq!(learning_rate(&train, 80), 1.0);
        assert!((learning_rate(&train, 90) - 0.55).abs() < 1e-12);
        assert!((learning_rate(&train, 100) - 0.1).abs() < 1e-12);
    }
}
