//! The tokenizer against llama.cpp's conformance vectors, and against text made to be slow.

mod vocabularies;

use std::time::Instant;

use vocabularies::{WITH_VECTORS, open, vectors};

#[test]
fn every_conformance_vector_of_the_supported_vocabularies_has_its_ids() {
    let mut passed = 0;
    for name in WITH_VECTORS {
        let Some(vocabulary) = open(name) else { continue };
        let vectors = vectors(name);
        assert!(vectors.len() >= 46, "{name} has {} vectors", vectors.len());
        passed += vectors.len();
        for (text, ids) in vectors {
            assert_eq!(vocabulary.tokenizer.encode_plain(&text), ids, "{name}: {text:?}");
            assert_eq!(vocabulary.tokenizer.encode(&text, false), ids, "{name}: {text:?}");
            assert_eq!(vocabulary.tokenizer.decode(&ids), text, "{name}");
        }
    }
    println!("{passed} vectors");
}

#[test]
fn a_long_piece_takes_no_more_than_its_length_times_a_logarithm() {
    for name in WITH_VECTORS {
        let Some(vocabulary) = open(name) else { continue };
        for unit in ["a", "ab", " ", "\n", "=", "語", "é", "🙂", "0", "\t \n", "<", "<|", "'"] {
            let text = unit.repeat(100_000 / unit.len());
            let started = Instant::now();
            let ids = vocabulary.tokenizer.encode(&text, false);
            let seconds = started.elapsed().as_secs_f64();
            // It is some 10 ms; a quadratic method would take from 10 s up.
            assert!(seconds < 1.0, "{name}: 100 kB of {unit:?} took {seconds} s");
            assert_eq!(vocabulary.tokenizer.decode(&ids), text, "{name}: {unit:?}");
        }
    }
}
