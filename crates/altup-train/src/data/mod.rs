//! From files on disk to batches for pre-training.
//!
//! ```text
//! files ── Corpus ──────────── documents, one string after the other
//!            │
//!            ├── TextTokenizer  loaded, or trained from the corpus
//!            ▼
//!          TokenCache ───────── all tokens in one memory-mapped file, made once
//!            │
//!            ├── SpanCorruption  which tokens to hide, and how that becomes a task
//!            ▼
//!          PretrainingData ──── example n, a pure function of the seed and n
//!            │
//!            ▼
//!          Prefetcher ───────── batches, made ahead of time on other threads
//! ```
//!
//! Nothing here knows a tensor: a [`Batch`] is plain integers. Because example n depends on nothing
//! but the cache, the seed and n, the number of examples seen is all that a resumed run must know
//! about its position in the data.

pub mod corpus;
pub mod tokenizer;

pub mod token_cache;

pub mod span_corruption;

pub mod pretraining;

pub mod prefetch;
pub mod unigram;

pub mod error;

pub use corpus::Corpus;
pub use error::DataError;
pub use prefetch::Prefetcher;
pub use pretraining::{Batch, PretrainingData};
pub use span_corruption::{Example, SpanCorruption};
pub use token_cache::TokenCache;
pub use tokenizer::TextTokenizer;
pub use unigram::UnigramBaseline;
