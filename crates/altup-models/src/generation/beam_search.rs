use super::logits::{Processors, log_softmax, to_rows};
use super::{BeamSearch, EarlyStopping, Generated, GenerationConfig, column, index, start};
use crate::T5;

/// Beam search as in Hugging Face transformers 5 (`GenerationMixin._beam_search`).
///
/// In each step the 2·num_beams likeliest continuations of an input's beams are found. Those that end
/// and are among the first num_beams compete for a place among the num_beams best ended targets, by
/// their scores; the first num_beams of those that don't end run on. At the last step all end.
pub(super) fn search(
    model: &T5,
    inputs: &[Vec<u32>],
    config: &GenerationConfig,
    settings: &BeamSearch,
) -> Vec<Vec<Generated>> {
    let num_beams = settings.num_beams;
    let processors = Processors::new(config, model);
    let mut cache = start(model, inputs, num_beams);
    let mut next = model.start_tokens(inputs.len() * num_beams);
    let mut searches: Vec<Search> = inputs.iter().map(|_| Search::new(num_beams)).collect();
    for length in 1..=config.max_new_tokens {
        let mut rows = to_rows(model.decode(next, &mut cache)).into_iter();
        let parents: Vec<i32> = searches
            .iter_mut()
            .enumerate()
            .flat_map(|(input, search)| {
                let candidates = search.candidates(rows.by_ref().take(num_beams), &processors);
                let ends = |token| token == model.eos_token() || length == config.max_new_tokens;
                search.advance(candidates, ends, length, settings, config.max_new_tokens);
                let first = input * num_beams;
                search.running.iter().map(move |beam| (first + beam.parent) as i32)
            })
            .collect();
        if length == config.max_new_tokens || searches.iter().all(|search| !search.open) {
            break;
        }
        cache.reorder(&index(parents, model));
        let last = |beam: &Beam| beam.tokens.last().copied().unwrap_or_default();
        next = column(searches.iter().flat_map(|search| search.running.iter().map(last)), model);
    }
    let best = |search: Search| {
        search.ended.into_iter().take(config.num_return_sequences).map(Ended::into_generated)
    };
    searches.into_iter().map(|search| best(search).collect()).collect()
}

/// The search for one input's target.
struct Search {
    num_beams: usize,
    running: Vec<Beam>,
    /// The best ended targets, best first.
    ended: Vec<Ended>,
    /// Whether more targets may end.
    open: bool,
}

/// A target that has not ended.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    /// Summed log-probability.
    sum: f64,
    /// The beam of the step before that it continues.
    parent: usize,
}

/// A target that has ended.
struct Ended {
    tokens: Vec<u32>,
    score: f64,
}

impl Ended {
    fn into_generated(self) -> Generated {
        Generated { tokens: self.tokens, score: Some(self.score) }
    }
}

/// A continuation of a running beam by a token.
#[derive(Clone, Copy)]
struct Candidate {
    sum: f64,
    beam: usize,
    token: u32,
}

impl Search {
    fn new(num_beams: usize) -> Self {
        // All beams start equal: only one counts until they differ.
        let beam = |parent| Beam {
            tokens: Vec::new(),
            sum: if parent == 0 { 0.0 } else { f64::NEG_INFINITY },
            parent,
        };
        let running = (0..num_beams).map(beam).collect();
        Self { num_beams, running, ended: Vec::new(), open: true }
    }

    /// The 2·num_beams likeliest continuations, likeliest first; of equal ones that of the lower beam
    /// and token.
    fn candidates(
        &self,
        rows: impl Iterator<Item = Vec<f64>>,
        processors: &Processors,
    ) -> Vec<Candidate> {
        let wanted = 2 * self.num_beams;
        let mut best: Vec<Candidate> = Vec::with_capacity(wanted + 1);
        for (beam, (running, mut scores)) in self.running.iter().zip(rows).enumerate() {
            assert!(
                scores.len() >= wanted,
                "Beam search needs a vocabulary of twice as many tokens as beams. Got {} tokens \
                 and {} beams",
                scores.len(),
                self.num_beams
            );
            if running.sum == f64::NEG_INFINITY {
                continue;
            }
            log_softmax(&mut scores);
            processors.apply(&mut scores, &running.tokens);
            for (token, score) in scores.into_iter().enumerate() {
                let sum = running.sum + score;
                if best.len() == wanted && best[wanted - 1].sum >= sum {
                    continue;
                }
                let place = best.partition_point(|candidate| candidate.sum >= sum);
                best.insert(place, Candidate { sum, beam, token: token as u32 });
                best.truncate(wanted);
            }
        }
        best
    }

    /// Takes the step to targets of `length` tokens.
    fn advance(
        &mut self,
        candidates: Vec<Candidate>,
        ends: impl Fn(u32) -> bool,
        length: usize,
        settings: &BeamSearch,
        max_length: usize,
    ) {
        let power = |length: usize| (length as f64).powf(settings.length_penalty);
        let mut running = Vec::with_capacity(self.num_beams);
        for (rank, Candidate { sum, beam, token }) in candidates.into_iter().enumerate() {
            let tokens = || [self.running[beam].tokens.as_slice(), &[token]].concat();
            if !ends(token) {
                if running.len() < self.num_beams {
                    running.push(Beam { tokens: tokens(), sum, parent: beam });
                }
            } else if rank < self.num_beams && self.open {
                self.ended.push(Ended { tokens: tokens(), score: sum / power(length) });
            }
        }
        // Stable: of equal scores the one that ended first stays ahead.
        self.ended.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.ended.truncate(self.num_beams);
        self.running = running;

        let is_full = self.ended.len() == self.num_beams;
        if let (true, Some(worst), Some(best)) = (is_full, self.ended.last(), self.running.first())
        {
            let best_length = match settings.early_stopping {
                EarlyStopping::Never if settings.length_penalty > 0.0 => max_length,
                _ => length,
            };
            let improvable = best.sum / power(best_length) > worst.score;
            self.open &= improvable && settings.early_stopping != EarlyStopping::Immediate;
        }
    }
}
