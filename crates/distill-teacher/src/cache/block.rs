//! A signal as bytes: planes of like numbers, each compressed by itself.
//!
//! ```text
//! kind u8 · positions u32 · entries u32 · 6 × length u32 · 6 zstd frames with checksums
//! ```
//! All numbers are little-endian. The planes:
//!
//! | plane | holds |
//! |---|---|
//! | 0 | entries of each position, u16 |
//! | 1, 2, 3 | the low, middle and high bytes of the tokens |
//! | 4, 5 | the low and high bytes of the values' codes |
//!
//! A top-k position's entries descend in ln p; the code of x = −ln p is round(8192 · ln(1 + 8x)), and
//! all but the first of a position are stored as differences. So p is off by at most 3·10⁻⁵ however
//! likely a token is, and ln p of one in a thousand by 3·10⁻³.
//!
//! A sampled position's entries ascend in tokens. A value that is a whole number of draws is stored as
//! that number, 1 … 32,767; any other as 32,768 + round(1024 · (16 − ln w)), off by 0.05 %.

use crate::signal::{Kind, Signal};

const PLANES: usize = 6;
const HEADER: usize = 1 + 4 + 4 + 4 * PLANES;
/// zstd's effort; beyond, files hardly shrink.
const LEVEL: i32 = 6;
/// Steps of a code, and how fast they widen with x.
const STEPS: f32 = 8192.0;
const WIDENING: f32 = 8.0;
/// Where codes of weights that are no whole number of draws begin.
const NOT_COUNTED: u16 = 1 << 15;
/// Their steps, and the largest logarithm.
const WEIGHT_STEPS: f32 = 1024.0;
const LARGEST: f32 = 16.0;
/// The largest token that three bytes hold.
pub(super) const LARGEST_TOKEN: u32 = (1 << 24) - 1;
/// The most entries of a position.
pub(super) const MOST_ENTRIES: usize = u16::MAX as usize;

/// The bytes of a signal, of which `draws` is how many draws a sampled value is shares of.
///
/// # Panics
/// If a token or a number of entries is larger than the format holds; the cache has looked.
pub fn encode(signal: &Signal, draws: u32) -> Vec<u8> {
    let positions = signal.positions();
    let mut planes: [Vec<u8>; PLANES] = Default::default();
    for position in 0..positions {
        let (tokens, values) = signal.at(position);
        let count = u16::try_from(tokens.len()).expect("no more than fit");
        planes[0].extend(count.to_le_bytes());
        let mut before = 0_u16;
        for (&token, &value) in tokens.iter().zip(values) {
            assert!(token <= LARGEST_TOKEN, "a token of three bytes");
            let [low, middle, high, _] = token.to_le_bytes();
            for (plane, byte) in planes[1..4].iter_mut().zip([low, middle, high]) {
                plane.push(byte);
            }
            let code = match signal.kind() {
                Kind::TopK => {
                    let code = code_of_log(value);
                    // Servers may round so that order is lost; the difference then wraps.
                    let difference = code.wrapping_sub(before);
                    before = code;
                    difference
                }
                Kind::Sampled => code_of_weight(value, draws),
            };
            let [low, high] = code.to_le_bytes();
            planes[4].push(low);
            planes[5].push(high);
        }
    }
    let frames = planes.map(|plane| compress(&plane));
    let mut bytes = vec![match signal.kind() {
        Kind::TopK => 0,
        Kind::Sampled => 1,
    }];
    bytes.extend((positions as u32).to_le_bytes());
    bytes.extend((signal.entries() as u32).to_le_bytes());
    for frame in &frames {
        bytes.extend((frame.len() as u32).to_le_bytes());
    }
    frames.iter().for_each(|frame| bytes.extend(frame));
    bytes
}

/// What [`encode`] was given, or what is wrong with the bytes.
///
/// # Errors
/// The problem, in words that fit behind what the bytes are.
pub fn decode(bytes: &[u8], draws: u32) -> Result<Signal, String> {
    let (header, mut rest) = bytes.split_at_checked(HEADER).ok_or("it is cut short")?;
    let kind = match header[0] {
        0 => Kind::TopK,
        1 => Kind::Sampled,
        other => return Err(format!("its kind is {other}")),
    };
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i])) as usize;
    let (positions, entries) = (number(1), number(5));
    let mut planes: [Vec<u8>; PLANES] = Default::default();
    for (index, plane) in planes.iter_mut().enumerate() {
        let (frame, others) =
            rest.split_at_checked(number(9 + 4 * index)).ok_or("it is cut short")?;
        rest = others;
        let size = if index == 0 { positions.checked_mul(2) } else { Some(entries) };
        *plane = decompress(frame, size.ok_or("it is too large")?)?;
    }
    if !rest.is_empty() {
        return Err("there are bytes behind its end".to_owned());
    }
    let mut signal = Signal::new(kind);
    let mut next = 0;
    for count in planes[0].chunks_exact(2) {
        let end = next + usize::from(u16::from_le_bytes([count[0], count[1]]));
        if end > entries {
            return Err("its positions have more entries than there are".to_owned());
        }
        let mut before = 0_u16;
        signal.push((next..end).map(|i| {
            let token = u32::from_le_bytes([planes[1][i], planes[2][i], planes[3][i], 0]);
            let code = u16::from_le_bytes([planes[4][i], planes[5][i]]);
            let value = match kind {
                Kind::TopK => {
                    before = before.wrapping_add(code);
                    log_of_code(before)
                }
                Kind::Sampled => weight_of_code(code, draws),
            };
            (token, value)
        }));
        next = end;
    }
    match next == entries {
        true => Ok(signal),
        false => Err("it has more entries than its positions".to_owned()),
    }
}

fn code_of_log(log_p: f32) -> u16 {
    // Saturates: beyond x = 372, p is 0 in any case.
    (STEPS * (WIDENING * (-log_p).max(0.0)).ln_1p()).round() as u16
}

fn log_of_code(code: u16) -> f32 {
    -(f32::from(code) / STEPS).exp_m1() / WIDENING
}

fn code_of_weight(weight: f32, draws: u32) -> u16 {
    let count = weight * draws as f32;
    let is_whole = (count - count.round()).abs() < 1e-5 * count;
    if is_whole && (1.0..f32::from(NOT_COUNTED)).contains(&count.round()) {
        return count.round() as u16;
    }
    let code = WEIGHT_STEPS * (LARGEST - weight.ln()).clamp(0.0, 31.9);
    NOT_COUNTED + code.round() as u16
}

fn weight_of_code(code: u16, draws: u32) -> f32 {
    match code.checked_sub(NOT_COUNTED) {
        None => f32::from(code) / draws as f32,
        Some(code) => (LARGEST - f32::from(code) / WEIGHT_STEPS).exp(),
    }
}

fn compress(plane: &[u8]) -> Vec<u8> {
    let compressed = (|| {
        let mut encoder = zstd::bulk::Compressor::new(LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.include_contentsize(true)?;
        encoder.compress(plane)
    })();
    compressed.expect("memory is written without errors")
}

/// The bytes of a frame, which are `size`: the frame's own word for that is not believed.
fn decompress(frame: &[u8], size: usize) -> Result<Vec<u8>, String> {
    // A frame holds at most 128 KiB for three bytes of its own; more is a lie that would cost memory.
    if size / (128 << 10) > frame.len() {
        return Err("it says that it is larger than it can be".to_owned());
    }
    let plane = zstd::bulk::decompress(frame, size).map_err(|error| error.to_string())?;
    if plane.len() != size {
        return Err(format!("a part of it has {} bytes, not {size}", plane.len()));
    }
    Ok(plane)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::choose::sample;
    use distill_data::SplitMix64;

    fn top_k() -> Signal {
        let mut signal = Signal::new(Kind::TopK);
        signal.push([(70_000, -0.001), (3, -7.5), (9, -7.5), (16_000_000, -30.0)]);
        signal.push([]);
        signal.push([(1, 0.0)]);
        signal.push((0..300).map(|i| (i * 151, -0.1 - i as f32 / 20.0)));
        signal
    }

    #[test]
    fn log_probabilities_come_back_as_near_as_the_format_says() {
        let signal = top_k();
        let back = decode(&encode(&signal, 0), 0).unwrap();
        assert_eq!((back.positions(), back.entries()), (4, 305));
        for position in 0..4 {
            let ((tokens, values), (tokens_back, values_back)) =
                (signal.at(position), back.at(position));
            assert_eq!(tokens, tokens_back);
            for (a, b) in values.iter().zip(values_back) {
                assert!((a.exp() - b.exp()).abs() < 3e-5, "{a} {b}");
                assert!((a - b).abs() < 1e-3 + 4e-4 * a.abs(), "{a} {b}");
            }
        }
    }

    #[test]
    fn counted_draws_come_back_as_they_are_and_others_nearly() {
        let logits: Vec<f32> = (0..500).map(|i| 5.0 * (i as f32 * 1.7).sin()).collect();
        for (power, exact) in [(1.0, true), (0.6, false)] {
            let mut signal = Signal::new(Kind::Sampled);
            for stream in 0..40 {
                signal.push(sample(&logits, 50, power, 1.0, &mut SplitMix64::new(7, stream)));
            }
            let back = decode(&encode(&signal, 50), 50).unwrap();
            for position in 0..40 {
                let ((tokens, values), (tokens_back, values_back)) =
                    (signal.at(position), back.at(position));
                assert_eq!(tokens, tokens_back);
                for (a, b) in values.iter().zip(values_back) {
                    let allowed = if exact { 2e-7 } else { 6e-4 };
                    assert!((a / b - 1.0).abs() < allowed, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed_or_harmless() {
        let bytes = encode(&top_k(), 0);
        let whole = decode(&bytes, 0).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            if let Ok(signal) = decode(&damaged, 0) {
                // Of the head only the kind could pass; frames have checksums.
                assert!(at == 0 || signal == whole, "byte {at}");
            }
            assert!(decode(&bytes[..at], 0).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes, 50);
        }

        #[test]
        fn arbitrary_heads_never_panic(head in proptest::collection::vec(any::<u8>(), HEADER)) {
            let mut bytes = encode(&top_k(), 0);
            bytes[..HEADER].copy_from_slice(&head);
            let _ = decode(&bytes, 50);
        }
    }
}
