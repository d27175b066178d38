//! `strftime_now` for chat templates, from a time that the caller gives.

/// An instant and a zone: what `strftime_now` of a template shows. The engine asks no clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub unix_seconds: i64,
    /// Seconds that local time is ahead of UTC.
    pub utc_offset: i32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

impl Clock {
    /// Python's `datetime.now().strftime(format)` in the C locale, its time zone names left out (`%Z` and `%z` are
    /// empty, as for any time without a zone). Directives that Python does not know stay as they are.
    pub fn strftime(&self, format: &str) -> String {
        // Years outside ±9999 are nobody's clock.
        let local = self.unix_seconds.saturating_add(self.utc_offset.into()).clamp(-377_000_000_000, 253_402_300_799);
        let (days, second) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let weekday = (days + 4).rem_euclid(7);
        let year_day = days - days_before(year, 1, 1);
        let hour12 = (hour + 11) % 12 + 1;
        let (day_name, month_name) = (DAYS[weekday as usize], MONTHS[(month - 1) as usize]);

        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let directive = chars.next();
            // `%-d` of Linux and macOS: no leading zero.
            let (directive, bare) = if directive == Some('-') { (chars.next(), true) } else { (directive, false) };
            let padded = |n: i64, width: usize| if bare { n.to_string() } else { format!("{n:0width$}") };
            out.push_str(&match directive {
                Some('Y') => year.to_string(),
                Some('y') => padded(year.rem_euclid(100), 2),
                Some('C') => padded(year.div_euclid(100), 2),
                Some('m') => padded(month, 2),
                Some('d') => padded(day, 2),
                Some('e') => {
                    if bare {
                        day.to_string()
                    } else {
                        format!("{day:2}")
                    }
                }
                Some('H') => padded(hour, 2),
                Some('I') => padded(hour12, 2),
                Some('M') => padded(minute, 2),
                Some('S') => padded(second, 2),
                Some('f') => "000000".into(),
                Some('j') => padded(year_day + 1, 3),
                Some('u') => ((weekday + 6) % 7 + 1).to_string(),
                Some('w') => weekday.to_string(),
                Some('U') => padded((year_day + 7 - weekday) / 7, 2),
                Some('W') => padded((year_day + 7 - (weekday + 6) % 7) / 7, 2),
                Some('A') => day_name.into(),
                Some('a') => day_name[..3].into(),
                Some('B') => month_name.into(),
                Some('b' | 'h') => month_name[..3].into(),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
                Some('s') => self.unix_seconds.to_string(),
                Some('F') => self.strftime("%Y-%m-%d"),
                Some('T' | 'X') => self.strftime("%H:%M:%S"),
                Some('R') => self.strftime("%H:%M"),
                Some('D' | 'x') => self.strftime("%m/%d/%y"),
                Some('c') => self.strftime("%a %b %e %H:%M:%S %Y"),
                Some('r') => self.strftime("%I:%M:%S %p"),
                Some('z' | 'Z') => String::new(),
                Some('n') => "\n".into(),
                Some('t') => "\t".into(),
                Some('%') => "%".into(),
                Some(other) => format!("%{}{other}", if bare { "-" } else { "" }),
                None => if bare { "%-" } else { "%" }.into(),
            });
        }
        out
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years run from March, so leap days come last.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let month_days = (153 * ((month + 9) % 12) + 2) / 5;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + month_days + day - 1 - 719_468
}

/// Year, month and day of a day counted from 1970-01-01: the last whose `days_before` is not later.
fn civil(days: i64) -> (i64, i64, i64) {
    let guess = 1970 + days.div_euclid(366).min(days.div_euclid(365));
    let year = (guess..).take_while(|y| days_before(*y, 1, 1) <= days).last().unwrap_or(guess - 1);
    let month = (1..=12).take_while(|m| days_before(year, *m, 1) <= days).last().unwrap_or(1);
    (year, month, days - days_before(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        let at = |unix_seconds| Clock { unix_seconds, utc_offset: 0 };
        assert_eq!(
            at(1_752_148_800).strftime("%d %b %Y, %A %-d/%-m %H:%M:%S %j %I%p %U %W %%"),
            "10 Jul 2025, Thursday 10/7 12:00:00 191 12PM 27 27 %"
        );
        assert_eq!(at(951_782_400).strftime("%F %a %y %e|%c"), "2000-02-29 Tue 00 29|Tue Feb 29 00:00:00 2000");
        assert_eq!(at(-1).strftime("%F %T"), "1969-12-31 23:59:59");
        assert_eq!(Clock { unix_seconds: 0, utc_offset: -3600 }.strftime("%F %H"), "1969-12-31 23");
        assert_eq!(at(0).strftime("%Q %-Q % %"), "%Q %-Q % %");
        for day in -800_000..800_000 {
            let (y, m, d) = civil(day);
            assert_eq!(days_before(y, m, d), day);
        }
        for seconds in [i64::MIN, i64::MAX] {
            assert!(!at(seconds).strftime("%c").is_empty());
        }
    }
}
