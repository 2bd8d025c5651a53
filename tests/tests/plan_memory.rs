//! The plan's memory, against what a step allocates.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

use burn::tensor::Device;
use distill_data::Batch;
use distill_models::parameters::{self, NamedTensors};
use distill_models::{ActivationGrid, LlamaConfig, LlamaForCausalLM, WeightGrid, WeightGrids};
use distill_recipe::{Document, Lora, LoraTarget, Method, OptimizerState, Precision, Recipe};
use distill_train::backward::MicroBatch;
use distill_train::loss::{Distillation, Divergence};
use distill_train::optimizer::AdamW;
use distill_train::plan::{Calibration, Moment, Workload, memory};
use distill_train::teacher::{LocalTeacher, Teacher};
use distill_train::{Student, post_training, prepare};

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator; counts what all threads hold.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call is passed on as it came; those that are not written here end in these.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn config(layers: usize, tied: bool) -> LlamaConfig {
    LlamaConfig {
        vocab_size: 4096,
        hidden_size: 256,
        intermediate_size: 704,
        num_hidden_layers: layers,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        rope_theta: 10_000.0,
        rope_scaling: None,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 512,
        tie_word_embeddings: tied,
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn batch(sequences: usize, tokens: usize) -> Batch {
    let count = sequences * tokens;
    let id = |i: usize| (i * 7919 % 4096) as u32;
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

/// A recipe for the optimiser's constants.
fn recipe() -> Recipe {
    let text = "name = \"a\"\n[student]\nfrom = \"a\"\n[data]\nsources = [\"a\"]\n[train]\nsteps = 2\n\
                learning_rate = 1e-4\n";
    let document = Document { path: "a.toml".into(), text: text.into() };
    Recipe::from_document(&document, &[]).expect("a good recipe")
}

fn lora() -> Lora {
    Lora { rank: 8, alpha: 16.0, targets: vec![LoraTarget::QProj, LoraTarget::DownProj] }
}

/// The most bytes of the second of two steps, as the trainer makes them.
fn peak_of_a_step(work: &Workload<'_>) -> f64 {
    let device = Device::flex();
    let before = LIVE.load(Relaxed);
    let teacher = work.teacher.map(|config| {
        let model = LlamaForCausalLM::init(config, 2, &device);
        LocalTeacher::new(model, work.vocabulary, device.clone())
    });
    let mut train = recipe().train;
    train.optimizer_state = work.optimizer_state;
    train.lora = work.factors.map(|_| lora());
    let masters = LlamaForCausalLM::init(work.student, 1, &device);
    let mut student = Student::first(masters, &train, 1).expect("factors that fit");
    let mut optimizer = AdamW::new(&train, 0);
    let batch = batch(work.batch, work.sequence);
    for _ in 0..2 {
        PEAK.store(LIVE.load(Relaxed), Relaxed);
        let live = student.live(&work.grids);
        let mut gradients = NamedTensors::new();
        for _ in 0..work.accumulation {
            let signal = teacher.as_ref().map(|teacher| teacher.signal(&batch).expect("a signal"));
            let micro_batch = MicroBatch {
                batch: &batch,
                distillation: signal.as_ref().zip(work.distillation.as_ref()),
                vocabulary: work.vocabulary,
                denominator: work.accumulation * batch.valid_tokens(),
                activation_checkpointing: work.activation_checkpointing,
                precision: Precision::F32,
            };
            micro_batch.backward(&live, &mut gradients);
        }
        student.straight_through(&work.grids, &mut gradients);
        student.reclaim(live, &work.grids);
        student.update(&mut optimizer, gradients, 1.0, 1e-4);
    }
    (PEAK.load(Relaxed) - before) as f64
}

/// The most bytes while a method puts a model on the grid.
fn peak_of_a_method(work: &Workload<'_>, method: Method, sequences: usize) -> f64 {
    let device = Device::flex();
    let text: Vec<Batch> = (0..sequences).map(|_| batch(1, work.sequence)).collect();
    let before = LIVE.load(Relaxed);
    // Weights are made when they are first asked for, by every copy anew.
    let model = LlamaForCausalLM::init(work.student, 1, &device);
    let model = parameters::map(model, |_, _, weights| weights);
    PEAK.store(LIVE.load(Relaxed), Relaxed);
    let grids = &work.grids;
    // The student of a run stays beside it.
    let quiet = &mut |_, _| {};
    let found = post_training::quantize(model.clone(), grids, method, &text, &device, quiet);
    drop(found);
    (PEAK.load(Relaxed) - before) as f64
}

/// Buffers of the matrix product, tables of the graph, the batch itself: what the plan leaves out.
const UNCOUNTED: f64 = 4e6;

/// One test, because all threads are counted.
#[test]
fn a_step_allocates_what_the_plan_counts() {
    let (deep, flat, untied) = (config(6, true), config(2, true), config(3, false));
    let q4_0 = WeightGrids {
        linears: WeightGrid::Q4_0,
        embeddings: WeightGrid::Q8_0,
        activations: ActivationGrid::Q8_0,
    };
    let float = Workload {
        student: &deep,
        teacher: None,
        teacher_file: None,
        cut: false,
        vocabulary: 4096,
        grids: WeightGrids::default(),
        distillation: None,
        batch: 2,
        sequence: 256,
        accumulation: 1,
        activation_checkpointing: false,
        optimizer_state: OptimizerState::F32,
        factors: None,
        calibration: None,
        exports_gguf: false,
        document_bytes: 0,
    };
    let forward_kl = Distillation {
        divergence: Divergence::ForwardKl,
        temperature: 1.0,
        scale_by_temperature_squared: true,
        cross_entropy: 0.0,
    };
    let taught = Workload {
        student: &flat,
        teacher: Some(&deep),
        grids: q4_0,
        distillation: Some(forward_kl),
        ..float.clone()
    };
    let factors = prepare::lora(&lora()).elements(&deep);
    let cases = [
        ("float", float.clone()),
        ("on a grid", Workload { grids: q4_0, ..float.clone() }),
        ("checkpointing", Workload { activation_checkpointing: true, ..float.clone() }),
        ("few tokens", Workload { batch: 1, sequence: 64, ..float.clone() }),
        ("accumulated", Workload { batch: 1, accumulation: 3, grids: q4_0, ..float.clone() }),
        ("8 bits", Workload { optimizer_state: OptimizerState::EightBit, ..float.clone() }),
        ("factors", Workload { factors: Some(factors), grids: q4_0, ..float.clone() }),
        ("untied", Workload { student: &untied, ..float.clone() }),
        ("taught", taught),
    ];
    for (name, work) in cases {
        let found = peak_of_a_step(&work);
        let of_step = |(moment, _): &(Moment, memory::Memory)| *moment != Moment::Checkpoint;
        let moments = memory::moments(&work).into_iter().filter(of_step);
        let (moment, planned) =
            moments.max_by_key(|(_, memory)| memory.total()).expect("some moments");
        let bytes = planned.total() as f64;
        let off = bytes / found - 1.0;
        println!(
            "{name}: {:.1} MB, planned {:.1} ({off:+.3}) {moment:?}",
            found / 1e6,
            bytes / 1e6
        );
        let most = UNCOUNTED + 0.03 * found;
        assert!((found - bytes).abs() < most, "{name}: {found} found, {planned:?} {moment:?}");
    }
    for (method, feeds_back) in [(Method::Search, false), (Method::Gptq, true)] {
        let calibration = Calibration { sequences: 48, feeds_back, in_training: false };
        let work = Workload { grids: q4_0, calibration: Some(calibration), ..float.clone() };
        let found = peak_of_a_method(&work, method, calibration.sequences);
        let mut moments = memory::moments(&work).into_iter();
        let planned = moments.find(|(moment, _)| *moment == Moment::Calibration);
        let bytes = planned.expect("it looks at text").1.total() as f64;
        println!("{method:?}: {:.1} MB, planned {:.1}", found / 1e6, bytes / 1e6);
        // What the forward pass of a sequence takes is left out.
        assert!(
            (found - bytes).abs() < 2.0 * UNCOUNTED + 0.05 * found,
            "{method:?}: {found} {bytes}"
        );
    }
}
