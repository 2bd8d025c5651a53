//! `distill verify`: the parity gate.

use std::path::{Path, PathBuf};

use distill_data::{Dataset, TextTokenizer};
use distill_eval::Parity;
use distill_eval::parity::{Comparison, ParityInput};
use distill_models::{Backend, load_pretrained};
use distill_recipe::Recipe;
use distill_train::{TrainError, prepare};
use serde::Serialize;

use super::export::Source;
use crate::failure::Failure;
use crate::output::put_line;
use crate::progress::spinner;
use crate::{cli, hardware, hub, run_directory, writer};

/// Prompts that both continue greedily, cut from the held-out text.
const GREEDY_PROMPTS: usize = 4;
/// Tokens of such a prompt.
const PROMPT_TOKENS: usize = 16;
/// Tokens of its continuation.
const GREEDY_TOKENS: usize = 48;

/// The gate's verdict on a run's export.
pub const PARITY: &str = "export/parity.json";

/// The verdict with what it was passed on.
#[derive(Serialize)]
struct Recorded<'a> {
    #[serde(flatten)]
    source: Source,
    #[serde(flatten)]
    parity: &'a Parity,
}

/// Positions below which a parity check says little.
const PROOF: usize = 4096;

/// The verb.
pub fn command(args: &cli::RunDirectory) -> Result<(), Failure> {
    let recipe = run_directory::recipe(&args.run)?;
    let (checkpoint, _) = super::export::source(&args.run)?;
    let mut paths = hub::local_paths(&recipe)?;
    if let Some(generation) = writer::open(&recipe, &mut paths)? {
        // What was measured on, if it is gone.
        writer::write(&recipe, &generation, u64::MAX)?;
    }
    let tokenizer = prepare::read_tokenizer(&checkpoint)?;
    let dataset = prepare::dataset(&recipe, &paths, &tokenizer, &mut |_| {})?;
    let parity = verify(&recipe, &args.run, &checkpoint, &tokenizer, &dataset)?;
    for comparison in [&parity.exact, &parity.shipped] {
        put_line!("{}", line(comparison))?;
    }
    if let Some(equal) = parity.packed_is_equal {
        let verdict = if equal { "agree" } else { "PART" };
        put_line!("{verdict}: model.edge and model.gguf, bit for bit")?;
    }
    if parity.passed { Ok(()) } else { Err(failure(&args.run, &parity)) }
}

/// Holds `export/model.gguf` against the checkpoint and writes `export/parity.json`.
pub fn verify(
    recipe: &Recipe,
    run: &Path,
    checkpoint: &Path,
    tokenizer: &TextTokenizer,
    dataset: &Dataset,
) -> Result<Parity, Failure> {
    let gguf = run.join("export/model.gguf");
    if !gguf.is_file() {
        return Err(Failure::NotARun {
            path: gguf,
            problem: "is not there; export it with `distill export`".into(),
        });
    }
    let packed = run.join("export/model.edge");
    // The CPU is where results are defined, whatever device trained.
    let device = Backend::Flex.device().map_err(TrainError::from)?;
    let (masters, _) = load_pretrained(checkpoint, &device).map_err(TrainError::from)?;
    let texts = texts(dataset, recipe.export.parity_positions);
    let prompts: Vec<Vec<u32>> = texts
        .iter()
        .take(GREEDY_PROMPTS)
        .map(|text| text[..PROMPT_TOKENS.min(text.len())].to_vec())
        .collect();
    let total = texts.iter().map(Vec::len).sum::<usize>();
    if total < PROOF {
        eprintln!(
            "warning: parity is judged on {total} positions, and fewer than {PROOF} prove little; \
             hold out more text (`data.held_out`) or raise `export.parity_positions`"
        );
    }
    let bar = spinner("holding the runtime against the training graph");
    let input = ParityInput {
        masters: &masters,
        grids: prepare::grids(recipe),
        device: &device,
        gguf: &gguf,
        packed: Some(packed.as_path()).filter(|path| path.is_file()),
        texts: &texts,
        prompts: &prompts,
        max_new_tokens: GREEDY_TOKENS,
        threads: hardware::threads(),
    };
    let parity = input.compare(&mut |positions| {
        bar.set_message(format!("parity: {positions} of {total} positions"));
    });
    bar.finish_and_clear();
    let mut parity = parity?;
    for comparison in [&mut parity.exact, &mut parity.shipped] {
        comparison.worst.context = tokenizer.decode(context(&texts, comparison));
    }
    let (_, source) = super::export::source(run)?;
    run_directory::write_json(&run.join(PARITY), &Recorded { source, parity: &parity })?;
    Ok(parity)
}

/// Held-out windows of the training length, without padding: at least `positions` positions if
/// there are so many.
fn texts(dataset: &Dataset, positions: usize) -> Vec<Vec<u32>> {
    let held_out = &dataset.held_out;
    let length = held_out.sequence_length();
    let wanted = positions.div_ceil(length);
    (0..wanted.min(held_out.len()))
        .map(|index| {
            let mut text = held_out.batch(&[index]).input_ids;
            text.truncate(held_out.tokens() - index * length);
            text
        })
        .collect()
}

/// The tokens before the worst position.
fn context<'a>(texts: &'a [Vec<u32>], comparison: &Comparison) -> &'a [u32] {
    let worst = &comparison.worst;
    texts.get(worst.sequence).map_or(&[], |text| {
        let end = (worst.position + 1).min(text.len());
        &text[end.saturating_sub(12)..end]
    })
}

/// One line for a configuration.
pub fn line(comparison: &Comparison) -> String {
    let verdict = if comparison.passed { "agree" } else { "PART" };
    format!(
        "{verdict}: {} on {} positions: same top {:.3} % (≥ {:.1}), mean KL {:.2e} (≤ {:.0e}), \
         max |Δlogit| {:.2e}{}{}",
        comparison.configuration,
        comparison.positions,
        100.0 * comparison.same_top,
        100.0 * comparison.limits.same_top,
        comparison.mean_kl,
        comparison.limits.mean_kl,
        comparison.max_logit_difference,
        comparison.limits.max_logit_difference.map_or(String::new(), |l| format!(" (≤ {l:.0e})")),
        comparison.codes.map_or(String::new(), |codes| {
            let share = 100.0 * codes.adopted as f64 / codes.compared.max(1) as f64;
            format!(", {share:.3} % of codes on a boundary, {} refused", codes.refused)
        }),
    )
}

/// The error of a run whose gate is shut: which configuration, and where the two part.
pub fn failure(run: &Path, parity: &Parity) -> Failure {
    let mut details = Vec::new();
    for comparison in [&parity.exact, &parity.shipped].into_iter().filter(|c| !c.passed) {
        let worst = &comparison.worst;
        details.push(format!("  {}", line(comparison)));
        details.push(format!(
            "  furthest apart in held-out text {} at position {} (KL {:.3e}): after {:?} the \
             graph prefers token {}, the runtime {}",
            worst.sequence,
            worst.position,
            worst.kl,
            worst.context,
            worst.graph_top,
            worst.runtime_top
        ));
        if let Some(codes) = comparison.codes.filter(|codes| !codes.agree()) {
            details.push(format!(
                "  of {} codes of activations {} differ on a rounding boundary and {} elsewhere",
                codes.compared, codes.adopted, codes.refused
            ));
        }
        for greedy in &comparison.greedy {
            if let Some(gap) = greedy.gap.filter(|gap| *gap > comparison.limits.near_tie) {
                details.push(format!(
                    "  greedy decoding parts after {} of {} tokens, where the two best logits \
                     are {gap:.3} apart",
                    greedy.same, greedy.tokens
                ));
            }
        }
    }
    if parity.packed_is_equal == Some(false) {
        details.push("  model.edge does not give the logits of model.gguf".into());
    }
    let path: PathBuf = run.join(PARITY);
    Failure::Parity { details: details.join("\n"), path }
}
