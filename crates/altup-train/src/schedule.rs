//! Learning rates by step, as pure functions: a schedule has no state to save.

use serde::{Deserialize, Serialize};

/// How the learning rate goes over a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The curve. Default: inverse_sqrt
    pub kind: ScheduleKind,
    /// Steps of warm-up. Default: 10000
    pub warmup_steps: u64,
    /// Share of the peak that `cosine` and `linear` end at. Default: 0.0
    pub final_share: f64,
}

/// The curve of a learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// rate / √max(step, warmup_steps): T5's pre-training, which holds 1/√warmup_steps through the
    /// warm-up.
    InverseSqrt,
    /// Linear warm-up to the rate, then half a cosine down to the final share at the last step.
    Cosine,
    /// Linear warm-up to the rate, then linearly down to the final share at the last step.
    Linear,
    /// Linear warm-up to the rate, which then stays.
    Constant,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::InverseSqrt, warmup_steps: 10_000, final_share: 0.0 }
    }
}

impl ScheduleConfig {
    /// The learning rate of `step`, counted from 1, of `total_steps`.
    pub fn learning_rate(&self, rate: f64, step: u64, total_steps: u64) -> f64 {
        let (now, warmup) = (step as f64, self.warmup_steps as f64);
        if self.kind == ScheduleKind::InverseSqrt {
            return rate / now.max(warmup).sqrt();
        }
        if step <= self.warmup_steps {
            return rate * now / warmup;
        }
        let progress = ((now - warmup) / (total_steps as f64 - warmup).max(1.0)).min(1.0);
        let share = match self.kind {
            ScheduleKind::Cosine => (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Constant | ScheduleKind::InverseSqrt => return rate,
        };
        rate * (self.final_share + (1.0 - self.final_share) * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates<const N: usize>(kind: ScheduleKind, steps: [u64; N]) -> [f64; N] {
        let schedule = ScheduleConfig { kind, warmup_steps: 4, final_share: 0.1 };
        steps.map(|step| (schedule.learning_rate(2.0, step, 12) * 1e9).round() / 1e9)
    }

    #[test]
    fn curves_by_hand() {
        assert_eq!(rates(ScheduleKind::InverseSqrt, [1, 4, 16, 100]), [1.0, 1.0, 0.5, 0.2]);
        assert_eq!(rates(ScheduleKind::Constant, [1, 2, 4, 9]), [0.5, 1.0, 2.0, 2.0]);
        // Halfway from 4 to 12 at 8; 10 % of 2 at the end and behind it.
        assert_eq!(rates(ScheduleKind::Linear, [4, 8, 12, 20]), [2.0, 1.1, 0.2, 0.2]);
        assert_eq!(rates(ScheduleKind::Cosine, [4, 8, 12, 20]), [2.0, 1.1, 0.2, 0.2]);
    }

    #[test]
    fn without_warmup_the_first_step_has_the_peak() {
        let schedule =
            ScheduleConfig { kind: ScheduleKind::Constant, warmup_steps: 0, final_share: 0.0 };
        assert_eq!(schedule.learning_rate(3.0, 1, 10), 3.0);
    }
}
