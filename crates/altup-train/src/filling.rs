//! Blanks in text: prompts with sentinels, and targets that say what belongs there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use altup_data::{DataError, TextTokenizer};
use altup_models::{
    Decode, GenerationConfig, GenerationError, Generator, LogitsProcessor, PartialTarget,
};

/// Puts what a target says of each sentinel in the place of that sentinel.
///
/// A target is sentinels, each followed by the tokens of its blank; tokens before the first are
/// dropped, and of a sentinel that occurs twice the first counts. A blank that the target doesn't
/// fill stays as its sentinel.
pub fn fill_blanks(prompt: &[u32], target: &[u32], sentinels: &[u32]) -> Vec<u32> {
    let mut fillings: HashMap<u32, &[u32]> = HashMap::new();
    let mut rest = target;
    while let Some(start) = rest.iter().position(|token| sentinels.contains(token)) {
        let (sentinel, behind) = (rest[start], &rest[start + 1..]);
        let end = behind.iter().position(|token| sentinels.contains(token)).unwrap_or(behind.len());
        fillings.entry(sentinel).or_insert(&behind[..end]);
        rest = &behind[end..];
    }
    let mut filled = Vec::with_capacity(prompt.len() + target.len());
    for token in prompt {
        match fillings.get(token) {
            Some(filling) => filled.extend_from_slice(filling),
            None => filled.push(*token),
        }
    }
    filled
}

/// The blanks of a text, each once, in its order.
fn blanks(text: &[u32], sentinels: &[u32]) -> Vec<u32> {
    let mut blanks: Vec<u32> = Vec::new();
    for token in text.iter().filter(|token| sentinels.contains(token)) {
        if !blanks.contains(token) {
            blanks.push(*token);
        }
    }
    blanks
}

/// How many tokens it takes at least to fill all blanks of a text: a sentinel and a visible token each.
pub fn least_new_tokens(text: &[u32], sentinels: &[u32]) -> usize {
    2 * blanks(text, sentinels).len()
}

/// Keeps a target to the form that fills every blank of its input.
///
/// The sentinels of the input come in its order. Each is followed by a token with a visible letter before the next
/// sentinel or the end may come, and the end may come when all blanks have one. Near the last token that may be
/// generated, the next blank is begun, so that each still gets its share, if there are [enough tokens](least_new_tokens)
/// for all. An input without sentinels is not bound to anything, nor is what comes behind the last blank.
#[derive(Clone, Debug)]
pub struct BlankFilling {
    sentinels: Vec<u32>,
    end: u32,
    /// By token, whether it shows anything.
    is_visible: Vec<bool>,
    max_new_tokens: usize,
}

impl BlankFilling {
    /// For targets of at most `max_new_tokens` tokens of a tokenizer.
    ///
    /// # Errors
    ///
    /// If the tokenizer can't decode its own tokens.
    pub fn new(tokenizer: &TextTokenizer, max_new_tokens: usize) -> Result<Self, DataError> {
        let special = [tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()];
        let sentinels = tokenizer.sentinels().to_vec();
        let is_visible = (0..tokenizer.vocab_size() as u32).map(|token| {
            let shows = !tokenizer.decode(&[token], false)?.trim().is_empty();
            Ok(shows && !special.contains(&token) && !sentinels.contains(&token))
        });
        let is_visible = is_visible.collect::<Result<_, DataError>>()?;
        Ok(Self { sentinels, end: tokenizer.eos_id(), is_visible, max_new_tokens })
    }

    fn is_visible(&self, token: u32) -> bool {
        self.is_visible.get(token as usize).is_some_and(|&visible| visible)
    }

    /// What may follow a target.
    fn next(&self, target: &PartialTarget<'_>) -> Next {
        let blanks = blanks(target.input, &self.sentinels);
        let last = target.tokens.iter().rposition(|token| self.sentinels.contains(token));
        let Some(last) = last else {
            return blanks.first().map_or(Next::Anything, |&first| Next::Sentinel(first));
        };
        // The blanks are opened in order: the last sentinel tells how far it is. One of another text closes it.
        let Some(blank) = blanks.iter().position(|&blank| blank == target.tokens[last]) else {
            return Next::Anything;
        };
        let is_filled = target.tokens[last + 1..].iter().any(|&token| self.is_visible(token));
        let left = self.max_new_tokens.saturating_sub(target.tokens.len());
        // The blanks behind this one: a sentinel and a token each.
        let needed = 2 * (blanks.len() - blank - 1);
        match (is_filled, blanks.get(blank + 1)) {
            (false, _) if left <= needed + 1 => Next::VisibleText,
            (false, _) => Next::Text,
            (true, None) => Next::Anything,
            (true, Some(&next)) if left <= needed => Next::Sentinel(next),
            (true, Some(&next)) => Next::TextOr(next),
        }
    }
}

/// What may come next in a target.
enum Next {
    Anything,
    Text,
    VisibleText,
    TextOr(u32),
    Sentinel(u32),
}

impl LogitsProcessor for BlankFilling {
    fn process(&self, target: &PartialTarget<'_>, scores: &mut [f64]) {
        let next = self.next(target);
        let is_text = |token: u32| token != self.end && !self.sentinels.contains(&token);
        for (token, score) in (0u32..).zip(scores) {
            let may_come = match next {
                Next::Anything => true,
                Next::Text => is_text(token),
                Next::VisibleText => self.is_visible(token),
                Next::TextOr(sentinel) => token == sentinel || is_text(token),
                Next::Sentinel(sentinel) => token == sentinel,
            };
            if !may_come {
                *score = f64::NEG_INFINITY;
            }
        }
    }
}

/// A text, and what a model made of its blanks, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// What the model wrote: sentinels, each followed by the tokens of its blank.
    pub target: Vec<u32>,
    /// The text with its blanks filled.
    pub text: Vec<u32>,
}

/// Why blanks can't be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The tokenizer can't decode.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model can't generate.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

/// Fills the blanks of texts greedily, each with at least one visible token, however many there are; a text without
/// blanks is followed by what the model writes. A text is tokens without an end token. Once it is to stop, it ends before
/// the next token, and gives nothing.
///
/// # Errors
///
/// If the model's logits are no numbers, or a token is none of its vocabulary.
pub fn fill<D: Decode>(
    model: &D,
    tokenizer: &TextTokenizer,
    texts: &[Vec<u32>],
    max_new_tokens: usize,
    stop: &AtomicBool,
) -> Result<Option<Vec<Filled>>, FillError> {
    let (eos, sentinels) = (tokenizer.eos_id(), tokenizer.sentinels());
    let needed = texts.iter().map(|text| least_new_tokens(text, sentinels)).max();
    let max_new_tokens = max_new_tokens.max(needed.unwrap_or(0));
    let generator = Generator::new(model, &GenerationConfig::greedy(max_new_tokens))?
        .with_processor(BlankFilling::new(tokenizer, max_new_tokens)?);
    let inputs: Vec<Vec<u32>> = texts.iter().map(|text| [&text[..], &[eos]].concat()).collect();
    let mut targets = vec![Vec::new(); texts.len()];
    for step in generator.stream(&inputs)? {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        for (target, token) in targets.iter_mut().zip(step?) {
            target.extend(token.filter(|&token| token != eos));
        }
    }
    let filled = texts.iter().zip(targets).map(|(text, target): (_, Vec<u32>)| {
        let text = match text.iter().any(|token| sentinels.contains(token)) {
            true => fill_blanks(text, &target, sentinels),
            false => [&text[..], &target].concat(),
        };
        Filled { target, text }
    });
    Ok(Some(filled.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENTINELS: [u32; 3] = [99, 98, 97];

    /// More blanks than there would be tokens for.
    #[test]
    fn every_blank_is_filled_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        std::fs::write(&path, "some words of a text\n".repeat(20)).unwrap();
        let corpus = altup_data::Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        let on_error = altup_data::OnError::Stop;
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, on_error).unwrap();
        let config = crate::config::RunConfig::tiny_altup();
        let config = config.model_config(tokenizer.vocab_size()).unwrap();
        let model = config.init(0, &crate::device::cpu());
        let words = (0..30).map(|blank| format!("<extra_id_{blank}> word"));
        let text = tokenizer.encode(&words.collect::<Vec<_>>().join(" ")).unwrap();
        let texts = [text, tokenizer.encode("some <extra_id_0>").unwrap()];
        assert_eq!(least_new_tokens(&texts[0], tokenizer.sentinels()), 60);
        let filled = fill(&model, &tokenizer, &texts, 8, &AtomicBool::new(false)).unwrap().unwrap();
        for filled in filled {
            let is_blank = |token: &u32| tokenizer.sentinels().contains(token);
            assert!(!filled.text.iter().any(is_blank), "{:?}", filled.text);
        }
        let stopped = fill(&model, &tokenizer, &texts, 8, &AtomicBool::new(true)).unwrap();
        assert_eq!(stopped, None);
    }

    #[test]
    fn blanks_take_their_fillings() {
        let filled = fill_blanks(&[10, 99, 11, 98, 12], &[99, 20, 21, 98, 22, 97], &SENTINELS);
        assert_eq!(filled, [10, 20, 21, 11, 22, 12]);
    }

    #[test]
    fn what_is_not_filled_stays_a_blank() {
        assert_eq!(fill_blanks(&[99, 5, 98], &[1, 2, 99, 7], &SENTINELS), [7, 5, 98]);
        assert_eq!(fill_blanks(&[99, 5], &[99, 7, 99, 8], &SENTINELS), [7, 5]);
        assert_eq!(fill_blanks(&[99], &[], &SENTINELS), [99]);
    }

    /// 100 tokens: 0 pads, 1 ends, 2 to 9 show nothing, the last three are sentinels.
    fn filling(max_new_tokens: usize) -> BlankFilling {
        let is_visible = (0..100).map(|token| (10..97).contains(&token)).collect();
        BlankFilling { sentinels: SENTINELS.to_vec(), end: 1, is_visible, max_new_tokens }
    }

    /// The tokens that may follow.
    fn allowed(filling: &BlankFilling, input: &[u32], tokens: &[u32]) -> Vec<u32> {
        let mut scores = [0.0; 100];
        filling.process(&PartialTarget { input, prompt: &[0], tokens }, &mut scores);
        (0u32..).zip(scores).filter(|(_, score)| *score == 0.0).map(|(token, _)| token).collect()
    }

    #[test]
    fn a_blank_is_not_left_before_it_shows_something() {
        let filling = filling(64);
        let input = [10, 99, 11, 98, 12, 1];
        assert_eq!(allowed(&filling, &input, &[]), [99], "the first sentinel comes first");
        let text = |token: &u32| *token != 1 && *token < 97;
        let all_text: Vec<u32> = (0..100).filter(text).collect();
        assert_eq!(allowed(&filling, &input, &[99]), all_text);
        assert_eq!(allowed(&filling, &input, &[99, 5]), all_text, "a space shows nothing");
        let with_next = [&all_text[..], &[98]].concat();
        assert_eq!(allowed(&filling, &input, &[99, 20]), with_next);
        assert_eq!(allowed(&filling, &input, &[99, 20, 98]), all_text);
        assert_eq!(allowed(&filling, &input, &[99, 20, 98, 21]).len(), 100, "it may end now");
        assert_eq!(allowed(&filling, &input, &[99, 20, 98, 21, 97]).len(), 100);
    }

    #[test]
    fn a_text_without_blanks_is_not_bound() {
        assert_eq!(allowed(&filling(64), &[10, 11, 1], &[]).len(), 100);
        assert_eq!(allowed(&filling(64), &[10, 11, 1], &[99]).len(), 100);
    }

    #[test]
    fn the_last_blank_gets_its_share() {
        // Six tokens for three blanks: a sentinel and a visible token each.
        let filling = filling(6);
        let input = [99, 10, 98, 10, 97, 1];
        assert_eq!(allowed(&filling, &input, &[99]), (10..97).collect::<Vec<u32>>());
        assert_eq!(allowed(&filling, &input, &[99, 10]), [98]);
        assert_eq!(allowed(&filling, &input, &[99, 10, 98, 11]), [97]);
        assert_eq!(
            allowed(&filling, &input, &[99, 10, 98, 11, 97]),
            (10..97).collect::<Vec<u32>>()
        );
    }
}
