//! Measuring one side of a comparison, in this process.

use altup_data::Batch;
use altup_models::{Memory, ModelDirectory, Noise, T5, T5Config, cross_entropy_sum};
use anyhow::{Context, ensure};
use burn::optim::ModuleOptimizer;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

#[cfg(feature = "cube")]
use super::counted::Counted;
use super::{BenchBatch, Measured, Timing, Work, breakdown};
use crate::device::hardware_name;
use crate::learner::{DeviceBatch, Learner, ToDevice};
use crate::memory;
use crate::precision::Precision;
use crate::run_record::BURN_VERSION;
use crate::token_rows;
use altup_optim::{OptimizerConfig, OptimizerKind};

pub(super) const LEARNING_RATE: f64 = 1e-4;

impl BenchBatch {
    /// Reads a batch.
    ///
    /// # Errors
    ///
    /// If the file can't be read or is no batch, if rows differ in length or in number, or if a token is
    /// beyond a vocabulary.
    pub fn read(path: &Path, vocab_size: usize) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> {
            let batch: Self = serde_json::from_slice(&std::fs::read(path)?)?;
            token_rows::check(&batch.input_ids, &batch.labels, vocab_size)?;
            ensure!(batch.new_tokens > 0, "new_tokens is 0");
            for (name, rows) in [("input_ids", &batch.input_ids), ("labels", &batch.labels)] {
                let is_even = rows.windows(2).all(|rows| rows[0].len() == rows[1].len());
                ensure!(is_even, "rows of {name} differ in length");
            }
            Ok(batch)
        };
        read().with_context(|| format!("cannot use {}", path.display()))
    }

    pub(super) fn to_batch(&self) -> Batch {
        let ids = |rows: &[Vec<u32>]| rows.iter().flatten().map(|&id| id as i32).collect();
        Batch {
            input_ids: ids(&self.input_ids),
            labels: ids(&self.labels),
            batch_size: self.input_ids.len(),
            input_length: self.input_ids[0].len(),
            target_length: self.labels[0].len(),
        }
    }
}

/// How steps of training are measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepOptions {
    /// The rate of dropout.
    pub dropout: f64,
    /// Whether the backward pass computes each layer again.
    pub recompute_layers: bool,
}

/// Measures a model directory on a device: each work once to warm up, then `repeats` times. The loss
/// is computed in any case, without dropout.
///
/// # Errors
///
/// If the model or the batch can't be read.
pub fn measure(
    model: &Path,
    batch: &Path,
    device: &Device,
    precision: Precision,
    works: &[Work],
    repeats: usize,
    steps: StepOptions,
) -> anyhow::Result<Measured> {
    let directory = ModelDirectory::new(model);
    let config = directory.config()?.for_evaluation();
    let batch = BenchBatch::read(batch, config.vocab_size)?;
    // No second name for the model as it was loaded, which would stay in memory until the end.
    let model = precision.to_compute(&directory.load_as(config.clone(), device)?.1);
    let DeviceBatch { input_ids: inputs, padding, labels, targets, .. } =
        batch.to_batch().to_device(token_rows::num_labels(&batch.labels) as u64, device);
    let logits = model.forward(inputs.clone(), padding.clone(), labels.clone());
    let loss = cross_entropy_sum(logits, labels.clone()).into_scalar::<f64>() / targets as f64;
    let mut measured = Measured {
        program: program(),
        device: hardware_name(device).unwrap_or_else(|| "cpu".into()),
        threads: std::thread::available_parallelism().ok().map(usize::from),
        loss,
        tokens: None,
        parts: BTreeMap::new(),
        counted: None,
        measurements: BTreeMap::new(),
    };
    if repeats == 0 {
        return Ok(measured);
    }
    // A model as it is trained: what evaluation turns off is on.
    let trainable = |device: &Device| -> anyhow::Result<T5> {
        ensure!(precision.trains(), "a model of {} can't be trained", precision.name());
        let config = T5Config { dropout_rate: steps.dropout, ..directory.config()? };
        Ok(directory.load_as(config, device)?.1.recompute_layers(steps.recompute_layers))
    };
    let trains = |work: &&Work| matches!(work, Work::Train | Work::Breakdown);
    let greedy = Greedy::new(&model, &config);
    let encode = || model.encode(inputs.clone(), padding.as_ref());
    for &work in works.iter().filter(|work| !trains(work)) {
        let timing = match work {
            Work::Forward => time(
                device,
                repeats,
                || (),
                |()| {
                    model.forward(inputs.clone(), padding.clone(), labels.clone());
                },
            ),
            Work::Prefill => time(
                device,
                repeats,
                || (),
                |()| {
                    greedy.prefill(&encode());
                },
            ),
            Work::Decode => {
                let mut tokens = Vec::new();
                let memory = encode();
                let timing = time(
                    device,
                    repeats,
                    || greedy.prefill(&memory),
                    |prefilled| {
                        tokens = greedy.decode(prefilled, batch.new_tokens);
                    },
                );
                measured.tokens = Some(tokens);
                timing
            }
            Work::Train | Work::Breakdown => continue,
        };
        measured.measurements.insert(work, timing);
    }
    // Training last: the memory that it leaves with the process would be the others' peak. And it is measured without a
    // second model beside its own.
    drop(greedy);
    drop(model);
    let device = device.clone().autodiff();
    for &work in works.iter().filter(trains) {
        match work {
            Work::Train => {
                let timing = train(trainable(&device)?, &batch, &device, precision, repeats);
                measured.measurements.insert(work, timing);
            }
            _ => {
                let model = precision.to_compute(&trainable(&device)?);
                let sequence = config.altup.as_ref().and_then(|a| a.encoder_sequence.as_ref());
                ensure!(sequence.is_none(), "layers of several lengths can't be measured alone");
                measured.parts = breakdown::measure(&model, &batch, &device, repeats);
                #[cfg(feature = "cube")]
                if altup_backend::is_gpu(&device) {
                    let dtype = precision.dtype();
                    measured.counted = Counted::of(&model, &config, &batch, &device, dtype);
                }
            }
        }
    }
    Ok(measured)
}

fn program() -> String {
    format!("altup {} (Burn {BURN_VERSION})", env!("CARGO_PKG_VERSION"))
}

/// Steps of AdamW, each from where the last one ended.
fn train(
    model: T5,
    batch: &BenchBatch,
    device: &Device,
    precision: Precision,
    repeats: usize,
) -> Timing {
    let noise = Noise::training(0, 1, 0);
    let batch = batch.to_batch().to_device(token_rows::num_labels(&batch.labels) as u64, device);
    let batch = DeviceBatch { noise, ..batch };
    let mut optimizer = optimizer();
    let mut learner = Some(Learner { model });
    time(
        device,
        repeats,
        || (),
        |()| {
            let trained = learner.take().expect("every step puts it back");
            let output = precision.step(&trained, batch.clone());
            learner = Some(optimizer.step(LEARNING_RATE, trained, output.grads));
        },
    )
}

pub(super) fn optimizer() -> ModuleOptimizer {
    OptimizerConfig { kind: OptimizerKind::AdamW, ..Default::default() }.init()
}

/// Greedy decoding of as many tokens as are asked for: the end token is never taken.
struct Greedy<'a> {
    model: &'a T5,
    /// Minus infinity for the end token, `[1, 1, vocab_size]`.
    bias: Tensor<3>,
}

/// The decoder's cache and the first token of every row.
type Prefilled = (altup_models::DecoderCache, Vec<i32>);

impl<'a> Greedy<'a> {
    fn new(model: &'a T5, config: &T5Config) -> Self {
        let mut bias = vec![0.0; config.vocab_size];
        bias[model.eos_token() as usize] = f32::NEG_INFINITY;
        let bias = TensorData::new(bias, [1, 1, config.vocab_size]);
        Self { model, bias: Tensor::from_data(bias, &model.device()) }
    }

    fn prefill(&self, memory: &Memory) -> Prefilled {
        let batch_size = memory.hidden.dims()[0];
        let mut cache = self.model.decoder.start(memory);
        let start = vec![self.model.start_token() as i32; batch_size];
        let first = self.next(&start, &mut cache);
        (cache, first)
    }

    fn decode(&self, (mut cache, first): Prefilled, new_tokens: usize) -> Vec<Vec<u32>> {
        let mut rows: Vec<Vec<u32>> = first.iter().map(|&token| vec![token as u32]).collect();
        let mut last = first;
        for _ in 1..new_tokens {
            last = self.next(&last, &mut cache);
            for (row, &token) in rows.iter_mut().zip(&last) {
                row.push(token as u32);
            }
        }
        rows
    }

    fn next(&self, last: &[i32], cache: &mut altup_models::DecoderCache) -> Vec<i32> {
        let tokens = TensorData::new(last.to_vec(), [last.len(), 1]);
        let tokens = Tensor::from_data(tokens, &self.model.device());
        let logits = self.model.decode(tokens, cache).cast(DType::F32) + self.bias.clone();
        logits.argmax(2).into_data().iter::<i32>().collect()
    }
}

/// Times a run after a run that warms up, each on what `prepare` makes, which is not timed.
fn time<T>(
    device: &Device,
    repeats: usize,
    mut prepare: impl FnMut() -> T,
    mut run: impl FnMut(T),
) -> Timing {
    let mut once = || {
        let prepared = prepare();
        seconds(device, || run(prepared))
    };
    once();
    memory::reset_peak();
    let seconds = (0..repeats).map(|_| once()).collect();
    let of_device = device.memory_pool_usage().map(|usage| usage.bytes_reserved);
    Timing { seconds, peak_bytes: of_device.or_else(memory::peak) }
}

/// What a run takes, from when the device has finished all before it.
pub(super) fn seconds(device: &Device, run: impl FnOnce()) -> f64 {
    let finish = || device.sync().expect("the device finishes what it was given");
    finish();
    let started = Instant::now();
    run();
    finish();
    started.elapsed().as_secs_f64()
}
