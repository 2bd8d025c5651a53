//! Floats in messages.

use std::fmt;

/// A float with the seven digits that a message needs. The standard library prints all that tell
/// it from its neighbours, by tables and big integers that are 13 KB of a program on a device.
#[derive(Clone, Copy, Debug)]
pub struct Decimal(pub f64);

/// Digits printed.
const DIGITS: i32 = 7;

impl fmt::Display for Decimal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        if value.is_nan() {
            return out.write_str("NaN");
        }
        if value.is_sign_negative() {
            out.write_str("-")?;
        }
        if value.is_infinite() {
            return out.write_str("inf");
        }
        // value = digits · 10^exponent, where the first digit is not zero.
        let (mut scaled, mut exponent) = (value.abs(), 0_i32);
        let (least, most) = (10_f64.powi(DIGITS - 1), 10_f64.powi(DIGITS));
        while scaled >= most {
            (scaled, exponent) = (scaled / 10.0, exponent + 1);
        }
        while scaled != 0.0 && scaled < least {
            (scaled, exponent) = (scaled * 10.0, exponent - 1);
        }
        let mut digits = scaled.round() as u64;
        while digits != 0 && digits.is_multiple_of(10) && exponent < 0 {
            (digits, exponent) = (digits / 10, exponent + 1);
        }
        match exponent {
            0 => write!(out, "{digits}"),
            -9..0 => {
                let unit = 10_u64.pow(exponent.unsigned_abs());
                let width = exponent.unsigned_abs() as usize;
                write!(out, "{}.{:0width$}", digits / unit, digits % unit)
            }
            _ => write!(out, "{digits}e{exponent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_with_seven_digits() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1_f32.into(), "0.1"),
            (1e-5_f32.into(), "0.00001"),
            (500_000.0, "500000"),
            (1_234_567.0, "1234567"),
            (std::f64::consts::PI, "3.141593"),
            (9.999_999_96, "10"),
            (99_999_999.0, "10000000e1"),
            (1e30, "1000000e24"),
            (-2.5e-30, "-25e-31"),
            (f64::MIN_POSITIVE, "2225074e-314"),
            (f64::MAX, "1797693e302"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(Decimal(value).to_string(), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_is_the_number_to_seven_digits(value: f64) {
            let back: f64 = Decimal(value).to_string().parse().unwrap();
            let bound = value.abs() * 0.6e-6;
            proptest::prop_assert!(back == value || (back - value).abs() <= bound, "{back} {value}");
        }
    }
}
