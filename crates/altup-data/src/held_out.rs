//! Where in a token file the documents lie that are held out, and the others.

use std::ops::Range;

use crate::DataError;
use crate::store::TokenFile;

/// After so many documents held out, it is remembered how many tokens came before: fewer take more memory, more take
/// longer to be passed over on the way to an example.
const STRETCH: u64 = 64;

/// The documents of a token file that are held out, one of every so many, and how to find the tokens of these alone or of
/// the others alone.
#[derive(Debug)]
pub(crate) struct HeldOut {
    every: u64,
    /// The first document that is held out.
    first: u64,
    /// Before each stretch: before the first document, and behind every [`STRETCH`]th one that is held out.
    stretches: Vec<Counts>,
    whole: Counts,
}

/// Numbers of tokens up to a document.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    all: u64,
    held_out: u64,
}

/// Which documents of a file belong to a row, where some are held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    HeldOut,
    Rest,
}

impl Counts {
    fn of(self, side: Side) -> u64 {
        match side {
            Side::HeldOut => self.held_out,
            Side::Rest => self.all - self.held_out,
        }
    }
}

impl HeldOut {
    /// Reads the ends of a file's documents, of which every `every`-th is held out from the `first` one on.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or is damaged.
    pub(crate) fn new(file: &TokenFile, every: u64, first: u64) -> Result<Self, DataError> {
        let mut stretches = Vec::with_capacity((1 + file.documents() / every / STRETCH) as usize);
        stretches.push(Counts::default());
        let mut counts = Counts::default();
        let (mut next, mut held_out) = (first, 0);
        file.for_each_end(|document, end| {
            let tokens = end - counts.all;
            counts.all = end;
            if document == next {
                counts.held_out += tokens;
                (next, held_out) = (next.saturating_add(every), held_out + 1);
                if held_out % STRETCH == 0 {
                    stretches.push(counts);
                }
            }
        })?;
        Ok(Self { every, first, stretches, whole: counts })
    }

    /// Whether it is of documents that are held out so.
    pub(crate) fn is_of(&self, every: u64, first: u64) -> bool {
        (self.every, self.first) == (every, first)
    }

    /// The number of documents of a side, of so many in the file.
    pub(crate) fn documents(&self, side: Side, documents: u64) -> u64 {
        let held_out = documents.saturating_sub(self.first).div_ceil(self.every);
        match side {
            Side::HeldOut => held_out,
            Side::Rest => documents - held_out,
        }
    }

    /// The number of tokens of a side.
    pub(crate) fn tokens(&self, side: Side) -> u64 {
        self.whole.of(side)
    }

    /// Appends the tokens in a range of positions, which count the tokens of a side alone, to `ids`.
    ///
    /// # Panics
    ///
    /// If the file is damaged.
    pub(crate) fn read(&self, file: &TokenFile, side: Side, range: Range<u64>, ids: &mut Vec<u32>) {
        let stretch = self.stretches.partition_point(|before| before.of(side) <= range.start) - 1;
        let mut place = self.stretches[stretch].of(side);
        let nth = |number: u64| self.first.saturating_add(number.saturating_mul(self.every));
        let mut number = stretch as u64 * STRETCH;
        let mut document = number.checked_sub(1).map_or(0, |last| nth(last) + 1);
        while place < range.end {
            let held_out = nth(number).min(file.documents());
            let documents = match side {
                Side::HeldOut => held_out..held_out + 1,
                Side::Rest => document..held_out,
            };
            let tokens = file.tokens_of(documents).unwrap_or_else(|error| panic!("{error}"));
            let end = place + (tokens.end - tokens.start);
            let wanted = range.start.max(place)..range.end.min(end);
            if !wanted.is_empty() {
                let in_file = |position| tokens.start + (position - place);
                file.read(in_file(wanted.start)..in_file(wanted.end), ids);
            }
            (place, document, number) = (end, held_out + 1, number + 1);
        }
    }

    #[cfg(test)]
    pub(crate) fn stretches(&self) -> usize {
        self.stretches.len()
    }
}
