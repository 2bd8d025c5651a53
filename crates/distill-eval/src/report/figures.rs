//! How figures are written, the same in the terminal and on the page.
//!
//! Shares are rounded *down*: 4,095 of 4,096 must not read as 100 %, and a figure just below its
//! limit must not read as the limit.

/// Stands for what was not measured.
pub(super) const NOT_MEASURED: &str = "—";

/// Writes a figure, or [`NOT_MEASURED`].
pub(super) fn or_dash<T>(figure: Option<T>, write: impl Fn(T) -> String) -> String {
    figure.map_or_else(|| NOT_MEASURED.to_string(), write)
}

/// `23.41`; large ones as `1.2e6`.
pub(super) fn perplexity(value: f64) -> String {
    if value.abs() < 1e5 { format!("{value:.2}") } else { short(value) }
}

/// A divergence: `0.0312`, small ones as `3.1e-9`.
pub(super) fn nats(value: f64) -> String {
    if value.abs() >= 1e-3 && value.abs() < 1e5 { format!("{value:.4}") } else { short(value) }
}

/// A share as a percentage without its sign, rounded down.
pub(super) fn percent(share: f64, decimals: i32) -> String {
    let scale = 10f64.powi(decimals);
    // The addend forgives the binary form of shares such as 0.999, not a missed position.
    let floored = (share * 100.0 * scale + 1e-7).floor() / scale;
    let places = decimals.max(0) as usize;
    if floored.is_finite() { format!("{floored:.places$}") } else { short(share) }
}

/// A share of a loss as a percentage. Beyond the loss itself it says only that: over a loss that
/// is next to nothing any gain is a thousandfold.
pub(super) fn recovered(share: f64) -> String {
    match share {
        more if more > 1.0 => "> 100 %".to_string(),
        worse if worse < -1.0 => "< −100 %".to_string(),
        share => format!("{} %", percent(share, 1)),
    }
}

/// Tokens a second.
pub(super) fn speed(value: f64) -> String {
    match value.abs() {
        large if large >= 1e6 => short(value),
        large if large >= 999.5 => grouped(value.round() as u64),
        _ => format!("{value:.1}"),
    }
}

/// Bytes in decimal units: `12.34 MB`.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.995 {
            let places = if unit == "B" { 0 } else { 2 };
            return format!("{value:.places$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.2} TB")
}

/// `1 thread`, `2 threads`.
pub(super) fn threads(count: usize) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} thread{plural}")
}

/// `1,234,567`.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Four significant digits at most, three beside a power of ten, trailing zeros cut: `0.002`, `1e-5`, `12.35`, `∞`.
pub(super) fn short(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞".to_string() } else { "−∞".to_string() };
    }
    let magnitude = value.abs();
    if magnitude == 0.0 {
        return "0".to_string();
    }
    if (1e-3..1e5).contains(&magnitude) {
        let places = (3 - magnitude.log10().floor() as i32).max(0) as usize;
        return trimmed(&format!("{value:.places$}")).to_string();
    }
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{}e{exponent}", trimmed(mantissa)),
        None => text,
    }
}

/// Without the zeros that end a fraction.
fn trimmed(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_position_missed_of_a_million_is_not_a_hundred_percent() {
        assert_eq!(percent(0.999_999, 3), "99.999");
        assert_eq!(percent(4095.0 / 4096.0, 2), "99.97");
        assert_eq!(percent(1.0, 3), "100.000");
        assert_eq!(percent(0.999, 3), "99.900");
        assert_eq!(percent(0.995, 1), "99.5");
        assert_eq!(percent(-0.25, 0), "-25");
        assert_eq!(percent(f64::NAN, 1), "NaN");
    }

    #[test]
    fn a_gain_far_above_what_rounding_cost_is_not_a_five_digit_percentage() {
        let written = [0.8349, 1.0, 995.0, -0.25, -40.0].map(recovered);
        assert_eq!(written, ["83.4 %", "100.0 %", "> 100 %", "-25.0 %", "< −100 %"]);
    }

    #[test]
    fn small_and_large_figures_keep_their_leading_digits() {
        let written = [0.0, 1e-5, 2e-3, 12.346, 1_234.6, 123_456.0, f64::INFINITY].map(short);
        assert_eq!(written, ["0", "1e-5", "0.002", "12.35", "1235", "1.23e5", "∞"]);
        assert_eq!([3.14e-9, 0.03125, 1.5].map(nats), ["3.14e-9", "0.0312", "1.5000"]);
        assert_eq!([23.406, 2.5e6].map(perplexity), ["23.41", "2.5e6"]);
    }

    #[test]
    fn sizes_and_counts_are_written_for_people() {
        let written = [0, 999, 1000, 999_999, 5_242_880, 1_000_000_000].map(size);
        assert_eq!(written, ["0 B", "999 B", "1.00 kB", "1.00 MB", "5.24 MB", "1.00 GB"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1, 2].map(threads), ["1 thread", "2 threads"]);
        assert_eq!([9.96, 999.6, 12_345.6].map(speed), ["10.0", "1,000", "12,346"]);
    }
}
