use burn::tensor::Tensor;

use super::likeliest::{self, Likeliest, LikeliestOfRow};
use super::scores::{log_softmax, to_host};
use super::stream::{BEHIND_THE_END, first_tokens};
use super::{
    BeamSearch, Decode, EarlyStopping, Generated, GenerationError, Generator, PartialTarget,
};

/// Beam search as in Hugging Face transformers 5 (`GenerationMixin._beam_search`).
///
/// In each step the likeliest continuations of an input's beams are found: 2·num_beams, or with more
/// than one end token as many more as may end. Those that end and are among the first num_beams compete
/// for a place among the num_beams best ended targets, by their scores; the first num_beams of those
/// that don't end run on. At the last step all end. A continuation without probability is none.
pub(super) fn search<D: Decode>(
    generator: &Generator<'_, D>,
    inputs: &[Vec<u32>],
    settings: &BeamSearch,
) -> Result<Vec<Vec<Generated>>, GenerationError> {
    let prompts = generator.prompts(inputs)?;
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let (num_beams, max_length) = (settings.num_beams, generator.config.max_new_tokens);
    let mut cache = generator.start(inputs, num_beams);
    let mut next = first_tokens(&prompts, num_beams);
    let mut searches: Vec<Search> = inputs
        .iter()
        .zip(&prompts)
        .enumerate()
        .map(|(number, (input, prompt))| Search::new(number, input, prompt, num_beams))
        .collect();
    for length in 1..=max_length {
        let logits = generator.step(&next, &mut cache);
        let continuations = continue_all(generator, &searches, logits, length - 1)?;
        for (search, continuations) in searches.iter_mut().zip(continuations) {
            if search.open {
                let ends = |token| generator.ends(token) || length == max_length;
                search.advance(continuations, ends, length, settings, max_length)?;
            }
        }
        if length == max_length || searches.iter().all(|search| !search.open) {
            break;
        }
        let rows = searches.iter().enumerate().flat_map(|(number, search)| {
            search.running.iter().map(move |beam| (number * num_beams + beam.parent) as u32)
        });
        generator.reorder(&mut cache, &rows.collect::<Vec<_>>());
        let last = |beam: &Beam| beam.tokens.last().copied().unwrap_or(BEHIND_THE_END);
        next = searches.iter().flat_map(|search| search.running.iter().map(last)).collect();
    }
    let best = |search: Search| {
        let ended = search.ended.into_iter().take(generator.config.num_return_sequences);
        ended.map(Ended::into_generated).collect()
    };
    Ok(searches.into_iter().map(best).collect())
}

/// The search for one input's target.
struct Search<'a> {
    number: usize,
    input: &'a [u32],
    prompt: &'a [u32],
    num_beams: usize,
    /// As many as num_beams.
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
    /// Summed log-probability. One of -inf only fills its row.
    sum: f64,
    /// The beam of the step before that it continues.
    parent: usize,
}

impl Beam {
    fn without_probability(row: usize) -> Self {
        Self { tokens: Vec::new(), sum: f64::NEG_INFINITY, parent: row }
    }

    fn has_probability(&self) -> bool {
        self.sum > f64::NEG_INFINITY
    }
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

/// The likeliest continuations so far, likeliest first; of equal ones that of the lower beam and token.
struct Best {
    wanted: usize,
    candidates: Vec<Candidate>,
}

impl Best {
    fn new(wanted: usize) -> Self {
        Self { wanted, candidates: Vec::with_capacity(wanted + 1) }
    }

    /// Takes a continuation, if it is among the likeliest. They come by beam, and of a beam likelier ones or lower tokens
    /// first.
    fn consider(&mut self, sum: f64, beam: usize, token: usize) {
        let Self { wanted, candidates } = self;
        let is_full = candidates.len() == *wanted;
        if sum == f64::NEG_INFINITY || is_full && candidates[*wanted - 1].sum >= sum {
            return;
        }
        let place = candidates.partition_point(|candidate| candidate.sum >= sum);
        candidates.insert(place, Candidate { sum, beam, token: token as u32 });
        candidates.truncate(*wanted);
    }
}

/// The likeliest continuations of every input's beams, which have `step` tokens; none for an input that is done.
fn continue_all<D: Decode>(
    generator: &Generator<'_, D>,
    searches: &[Search<'_>],
    logits: Tensor<2>,
    step: usize,
) -> Result<Vec<Vec<Candidate>>, GenerationError> {
    let [rows, vocab_size] = logits.dims();
    let num_beams = rows / searches.len();
    let wanted = num_beams * (1 + generator.num_end_tokens()).max(2);
    let counts = |row: usize| {
        let search = &searches[row / num_beams];
        search.open && search.running[row % num_beams].has_probability()
    };
    let few = wanted.min(vocab_size);
    if generator.selects_on_device
        && generator.is_idle(step)
        && few <= likeliest::AT_MOST
        && let Some(found) = Likeliest::find(logits.clone(), few, 1.0, counts)
    {
        let of_search = |(number, search): (usize, &Search<'_>)| {
            let rows = (number * num_beams..(number + 1) * num_beams).map(|row| found.row(row));
            match search.open {
                true => search.continue_by_likeliest(rows, Best::new(wanted)),
                false => Vec::new(),
            }
        };
        return Ok(searches.iter().enumerate().map(of_search).collect());
    }
    let mut scores = to_host(logits);
    let of_searches = scores.chunks_exact_mut(num_beams * vocab_size);
    let of_search = |(search, scores): (&Search<'_>, &mut [f64])| {
        let rows = scores.chunks_exact_mut(vocab_size);
        match search.open {
            true => search.continue_by_all(generator, rows, Best::new(wanted)),
            false => Ok(Vec::new()),
        }
    };
    searches.iter().zip(of_searches).map(of_search).collect()
}

impl<'a> Search<'a> {
    fn new(number: usize, input: &'a [u32], prompt: &'a [u32], num_beams: usize) -> Self {
        // All beams start equal: only one counts until they differ.
        let mut running: Vec<Beam> = (0..num_beams).map(Beam::without_probability).collect();
        running[0].sum = 0.0;
        Self { number, input, prompt, num_beams, running, ended: Vec::new(), open: true }
    }

    /// The likeliest continuations, by the logits of all tokens.
    fn continue_by_all<'s, D: Decode>(
        &self,
        generator: &Generator<'_, D>,
        rows: impl Iterator<Item = &'s mut [f64]>,
        mut best: Best,
    ) -> Result<Vec<Candidate>, GenerationError> {
        for (beam, (running, scores)) in self.running.iter().zip(rows).enumerate() {
            if !running.has_probability() {
                continue;
            }
            generator.check(self.number, running.tokens.len(), scores)?;
            log_softmax(scores);
            let target =
                PartialTarget { input: self.input, prompt: self.prompt, tokens: &running.tokens };
            generator.process(self.number, &target, scores)?;
            if scores.contains(&f64::INFINITY) {
                log_softmax(scores);
            }
            for (token, score) in scores.iter().enumerate() {
                best.consider(running.sum + score, beam, token);
            }
        }
        Ok(best.candidates)
    }

    /// The likeliest continuations, by the likeliest tokens of each row.
    fn continue_by_likeliest<'s>(
        &self,
        rows: impl Iterator<Item = LikeliestOfRow<'s>>,
        mut best: Best,
    ) -> Vec<Candidate> {
        for (beam, (running, row)) in self.running.iter().zip(rows).enumerate() {
            if running.has_probability() {
                for (token, score) in row.log_probabilities() {
                    best.consider(running.sum + score, beam, token);
                }
            }
        }
        best.candidates
    }

    /// Takes the step to targets of `length` tokens.
    fn advance(
        &mut self,
        continuations: Vec<Candidate>,
        ends: impl Fn(u32) -> bool,
        length: usize,
        settings: &BeamSearch,
        max_length: usize,
    ) -> Result<(), GenerationError> {
        let power = |length: usize| (length as f64).powf(settings.length_penalty);
        let mut running = Vec::with_capacity(self.num_beams);
        for (rank, Candidate { sum, beam, token }) in continuations.into_iter().enumerate() {
            let tokens = || [self.running[beam].tokens.as_slice(), &[token]].concat();
            if !ends(token) {
                if running.len() < self.num_beams {
                    running.push(Beam { tokens: tokens(), sum, parent: beam });
                }
            } else if rank < self.num_beams {
                self.ended.push(Ended { tokens: tokens(), score: sum / power(length) });
            }
        }
        // Stable: of equal scores the one that ended first stays ahead.
        self.ended.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.ended.truncate(self.num_beams);

        let is_full = self.ended.len() == self.num_beams;
        match (running.first(), self.ended.last()) {
            (None, None) => {
                return Err(GenerationError::NoTokenLeft { input: self.number, step: length - 1 });
            }
            (None, Some(_)) => self.open = false,
            (Some(best), Some(worst)) if is_full => {
                let best_length = match settings.early_stopping {
                    EarlyStopping::Never if settings.length_penalty > 0.0 => max_length,
                    _ => length,
                };
                let improvable = best.sum / power(best_length) > worst.score;
                self.open = improvable && settings.early_stopping != EarlyStopping::Immediate;
            }
            _ => {}
        }
        running.extend((running.len()..self.num_beams).map(Beam::without_probability));
        self.running = running;
        Ok(())
    }
}
