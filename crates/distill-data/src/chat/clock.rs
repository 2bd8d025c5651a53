//! Dates for templates, in UTC: Python's `strftime` for the directives that templates use.

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// `format` filled in with a time in seconds since 1970.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> Result<String, Error> {
    let date = Date::new(unix_seconds);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = rest.next().unwrap_or('%');
        if directive == '-' {
            let unpadded = date.directive(rest.next().unwrap_or('-'))?;
            let digits = unpadded.trim_start_matches('0');
            text.push_str(if digits.is_empty() { "0" } else { digits });
        } else {
            text.push_str(&date.directive(directive)?);
        }
    }
    Ok(text)
}

/// A moment, in the Gregorian calendar.
struct Date {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 0, Monday.
    weekday: usize,
    /// From 1.
    day_of_year: i64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Date {
    fn new(unix_seconds: u64) -> Self {
        let days = (unix_seconds / 86_400) as i64;
        let second_of_day = unix_seconds % 86_400;
        let (mut year, mut left) = (1970, days);
        while left >= days_in(year) {
            // Whole cycles of 400 years first, so that absurd times do not take for ever.
            const CYCLE: i64 = 146_097;
            let cycles = left / CYCLE;
            year += 400 * cycles;
            left -= CYCLE * cycles;
            if left >= days_in(year) {
                left -= days_in(year);
                year += 1;
            }
        }
        let day_of_year = left + 1;
        let mut month = 0;
        while left >= days_in_month(year, month) {
            left -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: left + 1,
            // 1970-01-01 was a Thursday.
            weekday: ((days + 3) % 7) as usize,
            day_of_year,
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    fn directive(&self, directive: char) -> Result<String, Error> {
        let hour_of_twelve = if self.hour.is_multiple_of(12) { 12 } else { self.hour % 12 };
        Ok(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'B' => MONTHS[self.month].into(),
            'b' | 'h' => MONTHS[self.month][..3].into(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => WEEKDAYS[self.weekday].into(),
            'a' => WEEKDAYS[self.weekday][..3].into(),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour_of_twelve:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.into(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'Z' => "UTC".into(),
            'z' => "+0000".into(),
            '%' => "%".into(),
            other => {
                let message = format!("strftime_now: %{other} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        })
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64) -> i64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: i64, month: usize) -> i64 {
    match month {
        1 => 28 + i64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days_are_found() {
        // `date -u -d @SECONDS '+%a %d %b %Y %H:%M:%S %j'`
        let cases = [
            (0, "Thu 01 Jan 1970 00:00:00 001"),
            (951_826_153, "Tue 29 Feb 2000 12:09:13 060"),
            (1_735_689_599, "Tue 31 Dec 2024 23:59:59 366"),
            (4_107_542_400, "Mon 01 Mar 2100 00:00:00 060"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime("%a %d %b %Y %H:%M:%S %j", seconds).unwrap(), expected);
        }
    }

    #[test]
    fn padding_can_be_left_out() {
        assert_eq!(strftime("%-d %B, %I %p 100%%", 0).unwrap(), "1 January, 12 AM 100%");
    }

    #[test]
    fn unknown_directives_are_refused() {
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("%Q"));
    }

    #[test]
    fn absurd_times_end() {
        assert!(strftime("%Y", u64::MAX).is_ok());
    }
}
