//! Generation: greedy, by sampling or by beam search, with any model that [decodes](Decode).

mod config;
mod decode;
mod error;
mod generator;
mod processor;

mod beam_search;
mod likeliest;
mod sampling;
mod scores;
mod stream;

mod t5;

pub use config::{BeamSearch, EarlyStopping, GenerationConfig, Sampling, Strategy};
pub use decode::Decode;
pub use error::GenerationError;
pub use generator::{Generated, Generator, generate, stream};
pub use processor::{LogitsProcessor, PartialTarget};
pub use stream::TokenStream;
