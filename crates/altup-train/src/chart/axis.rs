//! Axes: what they measure, how far they reach, and where their ticks fall.

/// What an axis measures, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// What it measures, with its unit.
    pub label: String,
    /// How it measures.
    pub scale: Scale,
}

/// How an axis measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// By differences.
    Linear,
    /// By ratios. What isn't positive is left out.
    Log,
}

impl Axis {
    /// An axis that measures by differences.
    pub fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear }
    }

    /// An axis that measures by ratios.
    pub fn log(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Log }
    }

    /// Its label with a word on its scale.
    pub(super) fn caption(&self) -> String {
        match self.scale {
            Scale::Linear => self.label.clone(),
            Scale::Log => format!("{} (log scale)", self.label),
        }
    }
}

impl Scale {
    /// Where a value lies on a scale of equal steps; nowhere if it isn't finite or has no logarithm.
    pub(super) fn position(self, value: f64) -> Option<f64> {
        let position = match self {
            Self::Linear => value,
            Self::Log => value.log10(),
        };
        position.is_finite().then_some(position)
    }

    /// The value at a position.
    pub(super) fn value(self, position: f64) -> f64 {
        match self {
            Self::Linear => position,
            Self::Log => 10f64.powf(position),
        }
    }
}

/// A tick's position, and the value that stands there as text.
pub(super) type Tick = (f64, String);

/// The positions that an axis shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) scale: Scale,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Range {
    /// From `low` to `high`, or around them where they are one.
    pub(super) fn exact(scale: Scale, low: f64, high: f64) -> Self {
        if is_apart(low, high) {
            return Self { scale, low, high };
        }
        Self::padded(scale, low, high)
    }

    /// With a little room around the values, and enough for a single value to have an axis at all. It doesn't go
    /// below zero for values that don't.
    pub(super) fn padded(scale: Scale, low: f64, high: f64) -> Self {
        let room = match scale {
            _ if is_apart(low, high) => 0.05 * (high - low),
            Scale::Linear if high != 0.0 => 0.1 * high.abs(),
            Scale::Linear => 1.0,
            // A tenth of the value, as above.
            Scale::Log => 0.045,
        };
        let bottom = match scale {
            Scale::Linear if low >= 0.0 => (low - room).max(0.0),
            _ => low - room,
        };
        Self { scale, low: bottom, high: high + room }
    }

    /// How far along a position lies, from 0 to 1.
    pub(super) fn share(&self, position: f64) -> f64 {
        (position - self.low) / (self.high - self.low)
    }

    /// At most `most` ticks, at round values.
    pub(super) fn ticks(&self, most: usize) -> Vec<Tick> {
        let most = most.max(2);
        match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, most),
            Scale::Log => log_ticks(self.low, self.high, most),
        }
    }
}

fn is_apart(low: f64, high: f64) -> bool {
    high - low > 1e-9 * high.abs().max(low.abs())
}

/// Ticks at multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let multiples = |step: f64| (low / step).ceil() as i64..=(high / step).floor() as i64;
    let magnitude = ((high - low) / most as f64).log10().floor() as i32;
    let mut steps = (magnitude..).flat_map(|power| {
        // A negative power is divided by: 3 / 10 is 0.3, 3 × 0.1 isn't.
        [1.0, 2.0, 5.0].map(|factor| (factor, power))
    });
    let step_of = |(factor, power): (f64, i32)| factor * 10f64.powi(power);
    let fits = |&step: &(f64, i32)| multiples(step_of(step)).count() <= most;
    // There is one: of a step beyond the range no multiple but 0 lies in it.
    let Some(step) = steps.find(fits) else { return Vec::new() };
    let value = |multiple: i64| match step {
        (factor, power @ ..0) => multiple as f64 * factor / 10f64.powi(-power),
        _ => multiple as f64 * step_of(step),
    };
    multiples(step_of(step))
        .map(|multiple| (value(multiple), number(value(multiple), step_of(step))))
        .collect()
}

/// Ticks on decimal logarithms, as the values themselves.
fn log_ticks(low: f64, high: f64, most: usize) -> Vec<Tick> {
    let ticks = |factors: &[f64], every: i32| -> Vec<Tick> {
        let powers = (low.floor() as i32..=high.ceil() as i32).filter(|p| p.rem_euclid(every) == 0);
        powers
            .flat_map(|power| factors.iter().map(move |factor| (*factor, 10f64.powi(power))))
            .map(|(factor, power)| ((factor * power).log10(), factor * power, power))
            .filter(|(position, ..)| (low..=high).contains(position))
            .map(|(position, value, power)| (position, number(value, power)))
            .collect()
    };
    let fine = ticks(&[1.0, 2.0, 5.0], 1);
    if (3..=most).contains(&fine.len()) {
        return fine;
    }
    if fine.len() < 3 {
        // Less than a decade: the axis is nearly straight.
        let values = linear_ticks(10f64.powf(low), 10f64.powf(high), most).into_iter();
        return values.map(|(value, text)| (value.log10(), text)).collect();
    }
    let decades = (1..).map(|every| ticks(&[1.0], every)).find(|ticks| ticks.len() <= most);
    decades.unwrap_or_default()
}

/// A value with the digits that tell it from its neighbours a `step` away.
pub(super) fn number(value: f64, step: f64) -> String {
    let digits = step.log10().floor() as i32;
    if value == 0.0 {
        "0".to_owned()
    } else if (3..15).contains(&digits) {
        let (size, unit) = match value.abs() {
            1e12.. => (1e12, "T"),
            1e9.. => (1e9, "G"),
            1e6.. => (1e6, "M"),
            _ => (1e3, "k"),
        };
        format!("{}{unit}", value / size)
    } else if digits >= 15 || digits <= -4 && value.abs() < 1e-2 {
        let precision = (value.abs().log10().floor() as i32 - digits).max(0) as usize;
        let text = format!("{value:.precision$e}");
        let (mantissa, power) = text.split_once('e').unwrap_or((text.as_str(), "0"));
        let mantissa = match mantissa.contains('.') {
            true => mantissa.trim_end_matches('0').trim_end_matches('.'),
            false => mantissa,
        };
        format!("{mantissa}e{power}")
    } else {
        let decimals = (-digits).max(0) as usize;
        format!("{value:.decimals$}")
    }
}

/// A value to about three digits.
pub(super) fn short_number(value: f64) -> String {
    let size = value.abs().log10().floor();
    match size as i32 {
        // Small, but no smaller than one can read.
        -3..0 if value != 0.0 => format!("{value:.*}", (2.0 - size) as usize),
        _ => {
            let step = 10f64.powf(size - 2.0);
            // Zero has no digits to count.
            let step = if step > 0.0 { step } else { 1.0 };
            number((value / step).round() * step, step)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(linear_ticks(2.9, 5.2, 5)), ["3.0", "3.5", "4.0", "4.5", "5.0"]);
        assert_eq!(labels(linear_ticks(2.9, 5.2, 4)), ["3", "4", "5"]);
        assert_eq!(labels(linear_ticks(0.0, 1.1e6, 5)), ["0", "500k", "1M"]);
        assert_eq!(labels(linear_ticks(0.0, 1.2e-4, 4)), ["0", "5e-5", "1e-4"]);
        assert_eq!(labels(linear_ticks(-1.0, 1.0, 5)), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert_eq!(labels(linear_ticks(0.2619, 0.2631, 3)), ["0.2620", "0.2625", "0.2630"]);
        assert_eq!(linear_ticks(0.0, 0.35, 4).last().unwrap().0, 0.3);
    }

    #[test]
    fn ticks_of_ratios_are_decades_or_what_fits() {
        assert_eq!(labels(log_ticks(-1.1, 2.1, 6)), ["0.1", "1", "10", "100"]);
        assert_eq!(labels(log_ticks(0.0, 1.1, 6)), ["1", "2", "5", "10"]);
        let narrow = ["2.6", "2.8", "3.0", "3.2", "3.4", "3.6", "3.8"];
        assert_eq!(labels(log_ticks(0.4, 0.6, 7)), narrow);
        let many = log_ticks(-8.0, 12.0, 5);
        assert!((3..=5).contains(&many.len()), "{many:?}");
    }

    #[test]
    fn no_axis_has_more_ticks_than_it_is_asked_for() {
        for most in 2..12 {
            for (low, high) in [(0.0, 1.0), (-3.7, 12.2), (1e9, 1e9 + 7.0), (0.1, 0.100_002)] {
                let ticks = linear_ticks(low, high, most);
                assert!((1..=most).contains(&ticks.len()), "{low} {high} {most}: {ticks:?}");
                assert!(ticks.iter().all(|tick| (low..=high).contains(&tick.0)));
            }
            for (low, high) in [(-5.0, 5.0), (0.0, 2.0), (0.3, 0.4), (-200.0, 200.0)] {
                let ticks = log_ticks(low, high, most);
                assert!(ticks.len() <= most, "{low} {high} {most}: {ticks:?}");
            }
        }
    }

    #[test]
    fn ranges_hold_their_values() {
        let range = Range::padded(Scale::Linear, 0.0, 10.0);
        assert_eq!(
            (range.low, range.high),
            (0.0, 10.5),
            "values from zero on need no room below it"
        );
        let single = Range::padded(Scale::Linear, -4.0, -4.0);
        assert!(single.low < -4.0 && single.high > -4.0);
        let zero = Range::padded(Scale::Linear, 0.0, 0.0);
        assert_eq!((zero.low, zero.high), (0.0, 1.0));
        assert_eq!(Range::exact(Scale::Linear, 1.0, 3.0).share(2.0), 0.5);
        assert_eq!(Scale::Log.position(0.0), None);
        assert_eq!(Scale::Log.position(100.0), Some(2.0));
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (90.04, "90.0"),
            (0.0, "0"),
            (1234.0, "1230"),
            (2.6543, "2.65"),
            (-0.03, "-0.0300"),
            (1.5e-7, "1.5e-7"),
        ];
        for (value, text) in cases {
            assert_eq!(short_number(value), text);
        }
    }
}
