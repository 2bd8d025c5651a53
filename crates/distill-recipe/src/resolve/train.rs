//! `[train]`.

use super::{Resolver, or, place};
use crate::defaults;
use crate::problem::ProblemKind;
use crate::raw::{self, ScheduleKind, Written};
use crate::resolved::{
    Backend, LearningRateFactors, Lora, LoraTarget, Precision, Schedule, Student, StudentInit,
    Train,
};

impl Resolver<'_> {
    pub(super) fn train(&mut self, written: &raw::Train) -> Train {
        let steps = *written.steps.value();
        let warmup_steps = or(&written.warmup_steps, defaults::WARMUP_STEPS);
        let learning_rate = *written.learning_rate.value();
        let eval_every = or(&written.eval_every, (steps / defaults::EVAL_PART).max(1));
        if let Some(warmup) = &written.warmup_steps
            && warmup_steps > steps
        {
            let others = [(written.steps.span(), "steps")];
            self.push(ProblemKind::Warmup { warmup_steps, steps }, warmup.span(), &others);
        }
        let min_learning_rate =
            or(&written.min_learning_rate, learning_rate * defaults::MIN_LEARNING_RATE_RATIO);
        if let Some(place) = &written.min_learning_rate
            && min_learning_rate > learning_rate
        {
            let kind = ProblemKind::MinLearningRate { min: min_learning_rate, max: learning_rate };
            let others = [(written.learning_rate.span(), "the highest")];
            self.push(kind, place.span(), &others);
        }
        Train {
            steps,
            batch_size: or(&written.batch_size, defaults::BATCH_SIZE),
            gradient_accumulation: or(
                &written.gradient_accumulation,
                defaults::GRADIENT_ACCUMULATION,
            ),
            activation_checkpointing: or(&written.activation_checkpointing, false),
            learning_rate,
            min_learning_rate,
            schedule: self.schedule(written, steps, warmup_steps),
            warmup_steps,
            weight_decay: or(&written.weight_decay, defaults::WEIGHT_DECAY),
            beta1: or(&written.beta1, defaults::BETA1),
            beta2: or(&written.beta2, defaults::BETA2),
            epsilon: or(&written.epsilon, defaults::EPSILON),
            precision: or(&written.precision, defaults::PRECISION),
            optimizer_state: or(&written.optimizer_state, defaults::OPTIMIZER_STATE),
            clip_norm: or(&written.clip_norm, defaults::CLIP_NORM),
            eval_every,
            checkpoint_every: or(&written.checkpoint_every, eval_every),
            keep_checkpoints: or(&written.keep_checkpoints, defaults::KEEP_CHECKPOINTS),
            patience: written.patience.as_ref().map(|patience| *patience.value()),
            learning_rate_factors: written
                .learning_rate_factors
                .as_ref()
                .map_or(LearningRateFactors::default(), learning_rate_factors),
            lora: written.lora.as_ref().map(|lora| self.lora(lora.value())),
        }
    }

    pub(super) fn precision(&mut self, recipe: &raw::Recipe, train: &Train) {
        let written = &recipe.train;
        let Some(place) = written.precision.as_ref().filter(|_| train.precision == Precision::Bf16)
        else {
            return;
        };
        if or(&recipe.backend, defaults::BACKEND) != Backend::Cuda {
            let others = super::place(&recipe.backend, "another backend");
            self.push(ProblemKind::Bf16 { with: "this backend" }, place.span(), &others);
        } else if recipe.quantize.is_some() {
            self.push(ProblemKind::Bf16 { with: "[quantize]" }, place.span(), &[]);
        } else if let Some(lora) = &written.lora {
            let others = [(lora.span(), "factors beside frozen weights")];
            self.push(ProblemKind::Bf16 { with: "[train.lora]" }, place.span(), &others);
        }
    }

    pub(super) fn lora(&mut self, written: &raw::Lora) -> Lora {
        let rank = or(&written.rank, defaults::LORA_RANK);
        let mut targets: Vec<LoraTarget> = Vec::new();
        for target in written.targets.iter().flat_map(|targets| targets.value()) {
            if targets.contains(target.value()) {
                let target_name = target.value().name();
                self.push(ProblemKind::LoraTargetTwice { target: target_name }, target.span(), &[]);
            }
            targets.push(*target.value());
        }
        if targets.is_empty() {
            targets = defaults::LORA_TARGETS.to_vec();
        }
        Lora { rank, alpha: or(&written.alpha, rank as f64), targets }
    }

    /// Factors that are no smaller than the matrices of a new student, whose shape is known here.
    pub(super) fn lora_rank(&mut self, written: &raw::Recipe, student: &Student, train: &Train) {
        let (Some(raw), Some(lora), StudentInit::Config(config)) =
            (&written.train.lora, &train.lora, &student.init)
        else {
            return;
        };
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let least = |target: &LoraTarget| match target {
            LoraTarget::QProj | LoraTarget::OProj => queries.min(config.hidden_size),
            LoraTarget::KProj | LoraTarget::VProj => keys.min(config.hidden_size),
            LoraTarget::GateProj | LoraTarget::UpProj | LoraTarget::DownProj => {
                config.intermediate_size.min(config.hidden_size)
            }
        };
        let smallest = lora.targets.iter().map(|target| (least(target), target.name())).min();
        if let Some((limit, target)) = smallest
            && lora.rank > limit
        {
            let kind = ProblemKind::LoraRank { rank: lora.rank, limit, target };
            let span = raw.value().rank.as_ref().map_or(raw.span(), Written::span);
            self.push(kind, span, &[]);
        }
    }

    pub(super) fn schedule(
        &mut self,
        written: &raw::Train,
        steps: usize,
        warmup_steps: usize,
    ) -> Schedule {
        match (or(&written.schedule, ScheduleKind::default()), &written.decay_steps) {
            (ScheduleKind::Cosine, None) => Schedule::Cosine,
            (ScheduleKind::Cosine, Some(decay)) => {
                let others = place(&written.schedule, "the schedule");
                self.push(ProblemKind::DecayWithoutWsd, decay.span(), &others);
                Schedule::Cosine
            }
            (ScheduleKind::Wsd, None) => {
                let fifth = (steps / defaults::DECAY_PART).max(1);
                Schedule::Wsd { decay_steps: fifth.min(steps.saturating_sub(warmup_steps)) }
            }
            (ScheduleKind::Wsd, Some(decay)) => {
                let decay_steps = *decay.value();
                if warmup_steps <= steps && decay_steps > steps - warmup_steps {
                    let mut others = place(&written.warmup_steps, "warm-up");
                    others.push((written.steps.span(), "steps"));
                    let kind = ProblemKind::Decay { warmup_steps, decay_steps, steps };
                    self.push(kind, decay.span(), &others);
                }
                Schedule::Wsd { decay_steps }
            }
        }
    }
}

fn learning_rate_factors(written: &raw::LearningRateFactors) -> LearningRateFactors {
    let factor = |written| or(written, defaults::LEARNING_RATE_FACTOR);
    LearningRateFactors {
        linears: factor(&written.linears),
        embeddings: factor(&written.embeddings),
        norms: factor(&written.norms),
        scales: factor(&written.scales),
    }
}
