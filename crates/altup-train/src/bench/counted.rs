//! What a training step launches on a GPU, and the bytes that its parts move by arithmetic: figures that are the same on a
//! driver in software.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::breakdown::Part;
use super::traffic::PartTraffic;

/// The kernels of a training step, Burn's own among them, and the bytes that they move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counted {
    /// Of each part, over all layers.
    pub parts: BTreeMap<Part, PartCount>,
    /// Kernels of the whole step: also of what belongs to no part.
    pub step_kernels: usize,
}

/// What a part of a step launches and moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartCount {
    /// Kernels.
    pub kernels: usize,
    /// Bytes, in f32. None for layers with experts, which move what the router makes of the batch.
    pub traffic: Option<PartTraffic>,
}

#[cfg(feature = "cube")]
impl Counted {
    /// Of a model in f32 or another type, on a device with autodiff; none if the device launches no kernels.
    pub(super) fn of(
        model: &altup_models::T5,
        config: &altup_models::T5Config,
        batch: &super::BenchBatch,
        device: &burn::tensor::Device,
        dtype: burn::tensor::DType,
    ) -> Option<Self> {
        let kernels = super::breakdown::kernels(model, batch, device);
        if kernels.step.is_empty() {
            return None;
        }
        let lengths = [&batch.input_ids, &batch.labels].map(|rows| rows[0].len() as u64);
        let step =
            super::traffic::Step { config, batch_size: batch.input_ids.len() as u64, lengths };
        let count = |(part, names): (Part, Vec<&str>)| {
            let traffic = (dtype == burn::tensor::DType::F32).then(|| step.of_part(part)).flatten();
            (part, PartCount { kernels: names.len(), traffic })
        };
        let parts = kernels.parts.into_iter().map(count).collect();
        Some(Self { parts, step_kernels: kernels.step.len() })
    }
}
