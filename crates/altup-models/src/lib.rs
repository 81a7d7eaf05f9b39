#![doc = include_str!("../README.md")]

mod config;
mod size;

mod attention;
mod decoder;
mod encoder;
mod feed_forward;
mod masks;
mod mixture_of_experts;
mod model;
mod noise;
mod recomputation;
mod relative_position_bias;

pub mod operations;

mod initialization;
mod kept;
mod loss;

mod generation;

mod cost;
mod directory;
mod hub;
mod parameters;
mod python;
mod step_memory;
mod tensors;
mod weight_files;
mod widen;

pub use altup_backend::philox::DropoutMask;
pub use altup_core::{BlockSelection, Widening};
pub use attention::{
    Attention, AttentionConfig, AttentionLayer, AttentionLayerConfig, KeyValue, PastKeyValue,
};
pub use config::{
    Activation, AltUpModelConfig, ConfigError, EncoderSequence, MoeConfig, MoeMode, SequenceMethod,
    T5Config,
};
pub use cost::{PartCost, forward_cost};
pub use decoder::{Decoder, DecoderBlock, DecoderBlockCache, DecoderBlockConfig, DecoderCache};
pub use directory::{DirectoryError, ModelDirectory, PartialModel, SaveOptions};
pub use encoder::{
    Encoder, EncoderBlock, EncoderBlockConfig, Memory, Reduction, ReductionConfig, Stride,
};
pub use feed_forward::{
    FeedForward, FeedForwardConfig, FeedForwardLayer, FeedForwardLayerConfig, GatedGeluFeedForward,
    ReluFeedForward,
};
pub use generation::{
    BeamSearch, Decode, EarlyStopping, Generated, GenerationConfig, GenerationError, Generator,
    LogitsProcessor, PartialTarget, Sampling, Strategy, TokenStream, generate, stream,
};
pub use hub::{DownloadProgress, HubError, HubName};
#[cfg(feature = "hub")]
pub use hub::{Hub, HubSettings};
pub use loss::{correct_tokens, cross_entropy_sum, cross_entropy_sum_with};
pub use masks::{HIDDEN, causal_bias, padding_bias};
pub use mixture_of_experts::{Experts, LayerRouting, MixtureOfExperts, MixtureOfExpertsConfig};
pub use model::T5;
pub use noise::{Noise, Place};
pub use operations::cross_entropy::{CrossEntropyOptions, cross_entropy};
pub use parameters::{
    AttentionKind, ParameterInfo, ParameterMapper, ParameterVisitor, Role, Stack, freeze,
    map_parameters, num_parameters, parameters, unfreeze, visit_parameters,
};
pub use python::PYTHON_MODULE;
pub use relative_position_bias::{
    RelativePositionBias, RelativePositionBiasConfig, relative_position_bucket,
};
pub use size::{size, size_names};
pub use step_memory::{LOGITS, PartMemory, StepShape, peak_of_backward, step_memory};
pub use tensors::{FloatType, NamedTensor, gradient_tensors, parameter_tensors, write_tensors};
pub use widen::widen;
