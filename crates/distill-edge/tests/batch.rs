//! Many sequences at a time: each gets the bits that it would get alone.

mod tiny_model;

use distill_edge::{
    Activations, Batch, BatchOptions, EdgeError, Generated, KvType, LoadOptions, Model, Request,
    Sampler, SamplerOptions, Session, SessionOptions, StopReason, Texts,
};
use distill_gguf::GgmlType;
use tiny_model::{Draft, SHAPE, Shape, TinyModel};

fn load(tiny: &TinyModel, activations: Activations) -> Model {
    let options =
        LoadOptions { activations: Some(activations), threads: 1, ..LoadOptions::default() };
    Model::load(&tiny.path, &options).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// The tokens of a sequence: each has its own, of another length.
fn tokens(sequence: usize, context: usize) -> Vec<u32> {
    let count = (7 + 41 * sequence) % (context - 20) + 12;
    (0..count).map(|i| ((i * 67 + sequence * 31) % SHAPE.vocab) as u32).collect()
}

/// How many of its tokens a sequence reads at once, before it decodes the others: sequences stand
/// at different positions.
fn prompt(sequence: usize, tokens: &[u32]) -> usize {
    (1 + 29 * sequence) % tokens.len() + 1
}

/// The logits after each token from the prompt's last on, one sequence after the other.
fn alone(model: &Model, sequences: usize, context: usize, kv: KvType) -> Vec<Vec<Vec<u32>>> {
    let mut session = Session::new(model, SessionOptions { context, kv, threads: 1 }).unwrap();
    let mut one = |sequence: usize| {
        let tokens = tokens(sequence, context);
        session.reset();
        let (prompt, rest) = tokens.split_at(prompt(sequence, &tokens));
        let mut logits = vec![bits(session.prefill(prompt).unwrap())];
        logits.extend(rest.iter().map(|&token| bits(session.decode(token).unwrap())));
        logits
    };
    (0..sequences).map(&mut one).collect()
}

/// The same in a batch of fewer sequences than there are: when one ends, the next takes its place.
fn together(model: &Model, sequences: usize, options: &BatchOptions) -> Vec<Vec<Vec<u32>>> {
    let mut batch = Batch::new(model, options).unwrap();
    let mut logits: Vec<Vec<Vec<u32>>> = vec![Vec::new(); sequences];
    let mut live: Vec<Option<usize>> = vec![None; options.sequences];
    let mut waiting = 0..sequences;
    loop {
        for (slot, place) in live.iter_mut().enumerate() {
            while place.is_none()
                && let Some(sequence) = waiting.next()
            {
                let tokens = tokens(sequence, options.context);
                let prompt = prompt(sequence, &tokens);
                batch.reset(slot);
                logits[sequence].push(bits(batch.prefill(slot, &tokens[..prompt]).unwrap()));
                *place = (prompt < tokens.len()).then_some(sequence);
            }
        }
        let next = |(slot, sequence): (usize, &Option<usize>)| {
            let position = batch.position(slot);
            sequence.map(|sequence| (slot, tokens(sequence, options.context)[position]))
        };
        let row: Vec<(usize, u32)> = live.iter().enumerate().filter_map(next).collect();
        if row.is_empty() {
            return logits;
        }
        let mut seen = 0;
        let each = |t: usize, found: &[f32]| {
            assert_eq!(t, seen);
            seen += 1;
            logits[live[row[t].0].unwrap()].push(bits(found));
        };
        batch.decode(&row, each).unwrap();
        assert_eq!(seen, row.len());
        for &(slot, _) in &row {
            let sequence = live[slot].unwrap();
            if batch.position(slot) == tokens(sequence, options.context).len() {
                live[slot] = None;
            }
        }
    }
}

#[test]
fn a_sequence_in_a_batch_gets_the_bits_that_it_gets_alone() {
    for (activations, kv, packed) in [
        (Activations::Q8_0, KvType::F16, true),
        (Activations::Q8_0, KvType::Q8_0, false),
        (Activations::Q8_0, KvType::F32, false),
        (Activations::Float, KvType::F16, false),
        (Activations::Float, KvType::Q8_0, true),
    ] {
        let draft = Draft::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
        let tiny = if packed { draft.packed().finish() } else { draft.finish() };
        let model = load(&tiny, activations);
        // More than one chunk of positions in some sequences.
        let context = 300;
        let want = alone(&model, 9, context, kv);
        for (sequences, threads) in [(1, 1), (2, 2), (3, 1), (5, 3), (9, 2)] {
            let options = BatchOptions { sequences, context, kv, threads };
            let got = together(&model, 9, &options);
            assert_eq!(got, want, "{options:?} {activations:?}");
        }
    }
}

#[test]
fn matrices_of_floats_give_a_batch_the_same_bits() {
    for ty in [GgmlType::F16, GgmlType::F32] {
        let shape = Shape { heads: 8, kv_heads: 1, head_dim: 12, hidden: 96, ..SHAPE };
        let model = load(&TinyModel::new(shape, ty, ty), Activations::Float);
        let want = alone(&model, 6, 64, KvType::F16);
        for (sequences, threads) in [(1, 2), (4, 1), (6, 2)] {
            let options = BatchOptions { sequences, context: 64, kv: KvType::F16, threads };
            assert_eq!(together(&model, 6, &options), want, "{options:?}");
        }
    }
}

#[test]
fn more_sequences_than_a_tile_has_tokens_are_computed_tile_by_tile() {
    let model = load(&TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0), Activations::Q8_0);
    let options = BatchOptions { sequences: 150, context: 40, kv: KvType::F16, threads: 2 };
    assert_eq!(together(&model, 150, &options), alone(&model, 150, 40, KvType::F16));
}

fn request(index: u64) -> Request {
    Request {
        prompt: (0..index % 3 + 1).map(|i| (i * 5 + index) as u32 % 26).collect(),
        max_new: 30,
        end: vec![27, 40],
        sampler: SamplerOptions {
            temperature: 3.0,
            top_p: if index.is_multiple_of(2) { 1.0 } else { 0.9 },
            seed: index,
            ..SamplerOptions::default()
        },
    }
}

/// What a session and a sampler make of a request.
fn written_alone(model: &Model, index: u64, context: usize) -> Generated {
    let Request { prompt, max_new, end, sampler } = request(index);
    let options = SessionOptions { context, threads: 1, ..SessionOptions::default() };
    let mut session = Session::new(model, options).unwrap();
    let mut sampler = Sampler::new(sampler);
    let (mut tokens, mut log_prob) = (Vec::new(), 0.0);
    let mut choice = sampler.choose(session.prefill(&prompt).unwrap());
    let stop = loop {
        tokens.push(choice.token);
        log_prob += f64::from(choice.log_prob);
        if end.contains(&choice.token) {
            break StopReason::EndOfGeneration;
        }
        if tokens.len() == max_new {
            break StopReason::MaxTokens;
        }
        if session.position() == context {
            break StopReason::ContextFull;
        }
        choice = sampler.choose(session.decode(choice.token).unwrap());
    };
    Generated { index, tokens, log_prob, stop }
}

#[test]
fn texts_depend_on_their_requests_alone() {
    let model = load(&TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0), Activations::Q8_0);
    for context in [20, 100] {
        let want: Vec<Generated> = (0..40).map(|i| written_alone(&model, i, context)).collect();
        let ended = |stop| want.iter().filter(|text| text.stop == stop).count();
        let limit = if context == 20 { StopReason::ContextFull } else { StopReason::MaxTokens };
        assert!(ended(StopReason::EndOfGeneration) > 3 && ended(limit) > 3, "{want:?}");
        for (sequences, threads) in [(1, 1), (7, 2), (40, 3)] {
            let options = BatchOptions { sequences, context, kv: KvType::F16, threads };
            let mut texts = Texts::new(&model, &options).unwrap();
            let (mut waiting, mut got) = (0..40, Vec::new());
            while got.len() < 40 {
                while texts.free() > 0
                    && let Some(index) = waiting.next()
                {
                    texts.begin(index, request(index)).unwrap();
                }
                assert_eq!(texts.live(), sequences.min(40 - got.len()));
                got.extend(texts.step().unwrap());
            }
            got.sort_by_key(|text| text.index);
            assert_eq!(got, want, "{options:?}");
        }
    }
}

#[test]
fn what_a_batch_does_not_take_leaves_it_as_it_was() {
    let model = load(&TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0), Activations::Q8_0);
    let options = BatchOptions { sequences: 2, context: 4, kv: KvType::F16, threads: 1 };
    let mut batch = Batch::new(&model, &options).unwrap();
    assert!(matches!(batch.prefill(0, &[]), Err(EdgeError::NoTokens)));
    batch.read(1, &[1, 2, 3, 4]).unwrap();
    let full = batch.decode(&[(0, 5), (1, 5)], |_, _| panic!("nothing was decoded"));
    assert!(matches!(full, Err(EdgeError::ContextOverflow { position: 4, tokens: 1, context: 4 })));
    let unknown = batch.decode(&[(0, 261)], |_, _| panic!("nothing was decoded"));
    assert!(matches!(unknown, Err(EdgeError::TokenId { index: 0, id: 261, .. })));
    assert_eq!([batch.position(0), batch.position(1)], [0, 4]);
    batch.decode(&[], |_, _| panic!("nothing was decoded")).unwrap();
    let mut texts = Texts::new(&model, &options).unwrap();
    let empty = texts.begin(0, Request { prompt: vec![], ..request(0) });
    assert!(matches!(empty, Err(EdgeError::NoTokens)));
    let long = texts.begin(0, Request { prompt: vec![1; 5], ..request(0) });
    assert!(matches!(long, Err(EdgeError::ContextOverflow { tokens: 5, .. })));
    assert_eq!((texts.live(), texts.free()), (0, 2));
    let absurd = BatchOptions { sequences: 1 << 40, context: 1 << 40, ..options };
    assert!(matches!(Batch::new(&model, &absurd), Err(EdgeError::Memory { .. })));
}
