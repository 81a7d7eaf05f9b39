#![doc = include_str!("../README.md")]

pub mod corpus;
mod sentencepiece;
pub mod tokenizer;

mod held_out;
pub mod store;
pub mod token_row;

mod interleaving;
pub mod mixture;
pub mod objective;
pub mod permutation;
pub mod pretraining;

pub mod batch;
pub mod prefetch;
pub mod unigram;

pub mod error;

pub mod metrics;
pub mod tasks;

pub use batch::Batch;
pub use corpus::{Corpus, OnError};
pub use error::DataError;
pub use mixture::Mixture;
pub use objective::{Example, Objective, SpanCorruption};
pub use prefetch::Prefetcher;
pub use pretraining::PretrainingData;
pub use store::{PrepareOptions, PrepareProgress, TokenStore};
pub use token_row::{ShardSource, TokenRow};
pub use tokenizer::TextTokenizer;
pub use unigram::UnigramBaseline;
