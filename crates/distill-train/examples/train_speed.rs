//! Seconds of a training step on random weights and tokens, as JSON:
//! `train_speed LOSS BATCH TOKENS STEPS [GRID [OPTION…]]`, with LOSS `cross_entropy`, `forward_kl` or `jsd` (a
//! teacher of the same size), GRID `float`, `q4_0` or `q4_0_q8_0` (activations too), and OPTION `checkpointing`,
//! `bf16` or `8bit` (the optimiser's state), `lora=RANK`, `teacher=MODEL.gguf` (in the edge runtime), `precision=bf16`,
//! `profile` (shows the operators),
//! `backend=wgpu` or `backend=cuda` (with the cargo feature). The shape is SmolLM2-135M's. On a GPU the share of what
//! its products of matrices alone reach is told too.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use distill_data::Batch;
use distill_edge::{LoadOptions, Model};
use distill_models::parameters::NamedTensors;
use distill_models::{
    ActivationGrid, Backend, LlamaConfig, LlamaForCausalLM, WeightGrid, WeightGrids,
};
use distill_ops::memory::{self, Aligned};
use distill_ops::profile::{self, Profile};
use distill_recipe::{Lora, LoraTarget, OptimizerState, Precision, Schedule, Train};
use distill_train::Student;
use distill_train::backward::MicroBatch;
use distill_train::loss::{Distillation, Divergence};
use distill_train::optimizer::{AdamW, clip, global_norm};
use distill_train::teacher::{LocalTeacher, RuntimeTeacher, Teacher};

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    memory::keep_what_is_freed();
    rayon::scope(|_| work().map_err(|e| e.to_string())).map_err(Into::into)
}

fn work() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [loss, rest @ ..] = &arguments[..] else { return Err("which loss?".into()) };
    let number = |i: usize, default| rest.get(i).map_or(Ok(default), |text| text.parse());
    let (sequences, tokens, steps) = (number(0, 1)?, number(1, 512)?, number(2, 5)?);
    let grids = match rest.get(3).map(String::as_str) {
        None | Some("float") => WeightGrids::default(),
        Some("q4_0") => quantized(ActivationGrid::Float),
        Some("q4_0_q8_0") => quantized(ActivationGrid::Q8_0),
        Some(_) => return Err("expected float, q4_0 or q4_0_q8_0".into()),
    };
    let mut train = train();
    let (mut file, mut backend, mut profiled) = (None, Backend::Flex, false);
    for option in rest.iter().skip(4) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("checkpointing", _) => train.activation_checkpointing = true,
            ("bf16", _) => train.optimizer_state = OptimizerState::Bf16,
            ("8bit", _) => train.optimizer_state = OptimizerState::EightBit,
            ("lora", rank) => {
                let (rank, targets) = (rank.parse()?, LoraTarget::ALL.to_vec());
                train.lora = Some(Lora { rank, alpha: rank as f64, targets });
            }
            ("precision", "bf16") => train.precision = Precision::Bf16,
            ("backend", "wgpu") => backend = Backend::Wgpu,
            ("backend", "cuda") => backend = Backend::Cuda,
            ("profile", _) => profiled = true,
            ("teacher", path) => file = Some(PathBuf::from(path)),
            _ => return Err(
                "expected checkpointing, bf16, 8bit, lora=, teacher=, precision=bf16 or backend="
                    .into(),
            ),
        }
    }
    let device = backend.device()?;
    let config = smollm2();
    let distillation = match loss.as_str() {
        "cross_entropy" => None,
        "forward_kl" => Some(Divergence::ForwardKl),
        "jsd" => Some(Divergence::Jsd { beta: 0.5 }),
        _ => return Err("expected cross_entropy, forward_kl or jsd".into()),
    }
    .map(|divergence| Distillation {
        divergence,
        temperature: 1.0,
        scale_by_temperature_squared: true,
        cross_entropy: 0.0,
    });
    let teacher: Option<Box<dyn Teacher>> = match (distillation, file) {
        (None, _) => None,
        (Some(_), None) => {
            let model = LlamaForCausalLM::init(&config, 2, &device);
            Some(Box::new(LocalTeacher::new(model, config.vocab_size, device.clone())))
        }
        (Some(_), Some(path)) => {
            let model = Model::load(&path, &LoadOptions::default())?;
            let device = device.clone();
            Some(Box::new(RuntimeTeacher::new(&model, config.vocab_size, tokens, device)?))
        }
    };
    let mut student = Student::first(LlamaForCausalLM::init(&config, 1, &device), &train, 1)?;
    let mut optimizer = AdamW::new(&train, 1);
    let batch = batch(sequences, tokens, config.vocab_size);
    let mut seconds = Vec::new();
    let mut last = 0.0;
    for step in 0..steps {
        if profiled && step == 1 {
            profile::start();
        }
        let begin = Instant::now();
        let live = student.live(&grids);
        let signal = teacher.as_ref().map(|teacher| teacher.signal(&batch)).transpose()?;
        let mut gradients = NamedTensors::new();
        let valid = batch.valid_tokens();
        let micro_batch = MicroBatch {
            batch: &batch,
            distillation: signal.as_ref().zip(distillation.as_ref()),
            vocabulary: config.vocab_size,
            denominator: valid,
            activation_checkpointing: train.activation_checkpointing,
            precision: train.precision,
        };
        let sums = micro_batch.backward(&live, &mut gradients);
        last = sums.loss / valid as f64;
        student.straight_through(&grids, &mut gradients);
        student.reclaim(live, &grids);
        let clip = clip(global_norm(&gradients), 1.0);
        student.update(&mut optimizer, gradients, clip, 1e-4);
        seconds.push(begin.elapsed().as_secs_f64());
    }
    if let Some(profile) = profile::stop() {
        show(&profile, steps - 1);
    }
    let gpu = match backend {
        Backend::Flex | Backend::Ndarray => String::new(),
        _ => {
            let median = median(&seconds[1.min(steps - 1)..]);
            let limit = product_limit(&device, train.precision);
            let operations = operations(&config, sequences * tokens, tokens, teacher.is_some());
            let share = operations / median / limit;
            format!(", \"product_limit_flops\": {limit:.4e}, \"share\": {share:.3}")
        }
    };
    println!(
        "{{\"seconds\": {seconds:?}, \"tokens\": {}, \"loss\": {last}, \"trained\": {}, \
         \"state_bytes\": {}, \"peak_bytes\": {}{gpu}}}",
        sequences * tokens,
        student.trained(),
        optimizer.state_bytes(),
        peak_bytes()?
    );
    Ok(())
}

/// Milliseconds of a step and threads that worked, operator by operator.
fn show(profile: &Profile, steps: usize) {
    let mut operators: Vec<_> = profile.operators.iter().collect();
    operators.sort_by(|a, b| b.1.times.wall.total_cmp(&a.1.times.wall));
    for (name, found) in operators {
        let (wall, work) = (found.times.wall, found.times.processor / found.times.wall);
        let rate = found.flops as f64 / wall / 1e9;
        eprintln!(
            "{name:32}{:9.1} ms {work:6.2} threads {rate:8.0} GFLOP/s",
            1e3 * wall / steps as f64
        );
    }
    eprintln!("{:32}{:9.1} ms", "all", 1e3 * profile.all.wall / steps as f64);
}

/// Multiplications and additions of a step: two for a weight and token forward, four backward.
fn operations(config: &LlamaConfig, count: usize, tokens: usize, teacher: bool) -> f64 {
    let looks = config.num_hidden_layers * config.num_attention_heads * config.head_dim * tokens;
    let forward = 2.0 * (config.parameters() + looks) as f64 * count as f64;
    forward * if teacher { 4.0 } else { 3.0 }
}

/// Operations a second of large square products alone.
fn product_limit(device: &Device, precision: Precision) -> f64 {
    const SIZE: usize = 4096;
    const PRODUCTS: usize = 20;
    let square = Tensor::<2>::random([SIZE, SIZE], Distribution::Uniform(-1.0, 1.0), device);
    let square = match precision {
        Precision::F32 => square,
        Precision::Bf16 => square.cast(FloatDType::BF16),
    };
    // Reading an element waits for what it is made of.
    let wait = |x: Tensor<2>| drop(x.slice([0..1, 0..1]).into_data());
    wait(square.clone().matmul(square.clone()));
    let begin = Instant::now();
    let mut x = square.clone();
    for _ in 0..PRODUCTS {
        x = square.clone().matmul(x).div_scalar(SIZE as f32);
    }
    wait(x);
    (2 * PRODUCTS * SIZE.pow(3)) as f64 / begin.elapsed().as_secs_f64()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quantized(activations: ActivationGrid) -> WeightGrids {
    WeightGrids { linears: WeightGrid::Q4_0, embeddings: WeightGrid::Q8_0, activations }
}

fn smollm2() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        rope_theta: 10_000.0,
        rope_scaling: None,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 2048,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn train() -> Train {
    Train {
        steps: 1,
        batch_size: 1,
        gradient_accumulation: 1,
        learning_rate: 1e-4,
        min_learning_rate: 1e-5,
        schedule: Schedule::Cosine,
        warmup_steps: 0,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        precision: Precision::F32,
        optimizer_state: OptimizerState::F32,
        clip_norm: 1.0,
        activation_checkpointing: false,
        eval_every: 1,
        checkpoint_every: 1,
        keep_checkpoints: 1,
        patience: None,
        learning_rate_factors: distill_recipe::LearningRateFactors::default(),
        lora: None,
    }
}

fn batch(sequences: usize, tokens: usize, vocabulary: usize) -> Batch {
    let count = sequences * tokens;
    let id = |i: usize| (i * 7919 % vocabulary) as u32;
    Batch {
        batch: sequences,
        sequence: tokens,
        input_ids: (0..count).map(id).collect(),
        labels: (0..count).map(|i| id(i + 1)).collect(),
        loss_mask: vec![true; count],
        document_ids: vec![0; count],
        position_ids: (0..count).map(|i| (i % tokens) as u32).collect(),
    }
}

/// The most memory that this process had at a time.
fn peak_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).ok_or("no VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(1024 * kib)
}
