//! What the exchange of gradients between the replicas of a run costs, beside the step that it belongs to.

use altup_models::{Noise, T5Config, num_parameters};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

use super::BenchBatch;
use super::measure::{LEARNING_RATE, optimizer, seconds};
use crate::learner::{DeviceBatch, Learner, ToDevice};
use crate::machine::Machine;
use crate::precision::Precision;
use crate::replicas::{GradientSum, Place, Replicas};
use crate::statistics::median;
use crate::token_rows;
use burn::tensor::Device;

/// The exchanges of some models, as replica 0 saw them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchanges {
    /// The machine of replica 0.
    pub machine: Machine,
    /// The commit of the program, as the caller gave it.
    pub commit: Option<String>,
    /// Processes that exchange.
    pub replicas: usize,
    /// How many of them are on the machine of replica 0.
    pub on_machine: usize,
    /// Threads of replica 0.
    pub threads: usize,
    /// The backend.
    pub backend: String,
    /// Rows of a micro-batch, one of which each replica takes in a step, and tokens of its inputs and targets.
    pub batch: [usize; 3],
    /// One of each model.
    pub models: Vec<ModelExchange>,
}

/// The exchange of a model's gradients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelExchange {
    /// The size of the model.
    pub size: String,
    /// The model.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// The bytes that each replica sends: 2 (N − 1) / N of its gradients.
    pub bytes: u64,
    /// Seconds of each exchange, from when all replicas are there.
    pub exchange: Vec<f64>,
    /// Seconds of the rest of each step: the passes of a micro-batch, and AdamW.
    pub computing: Vec<f64>,
}

impl ModelExchange {
    /// Measures steps of a model, after one that warms up. Every replica does the same.
    pub fn measure(
        replicas: &Replicas,
        (size, model): (&str, &str),
        config: &T5Config,
        batch: &BenchBatch,
        device: &Device,
        precision: Precision,
        steps: usize,
    ) -> Self {
        let device = device.clone().autodiff();
        let mut learner = Learner { model: config.init(0, &device) };
        let parameters = num_parameters(&learner.model) as u64;
        let targets = token_rows::num_labels(&batch.labels) as u64;
        let noise = Noise::training(0, 1, replicas.place().rank as u32);
        let batch = DeviceBatch { noise, ..batch.to_batch().to_device(targets, &device) };
        let mut optimizer = optimizer();
        let (mut exchange, mut computing) = (Vec::new(), Vec::new());
        for step in 0..=steps {
            let mut sum = GradientSum::default();
            let passes = seconds(&device, || {
                let output = precision.step(&learner, batch.clone());
                sum.push(&learner, output.grads);
            });
            replicas.meet("a step");
            let mut gradients = None;
            let exchanged = seconds(&device, || {
                gradients = Some(sum.total(&learner, replicas, "the gradients"));
            });
            let update = seconds(&device, || {
                let gradients = gradients.take().expect("they were exchanged");
                learner = optimizer.step(LEARNING_RATE, learner.clone(), gradients);
            });
            if step > 0 {
                exchange.push(exchanged);
                computing.push(passes + update);
            }
        }
        let Place { size: count, .. } = replicas.place();
        let bytes = 2 * 4 * parameters * (count as u64 - 1) / count as u64;
        let (size, model) = (size.to_owned(), model.to_owned());
        Self { size, model, parameters, bytes, exchange, computing }
    }

    /// The share of a step that the exchange takes.
    pub fn share(&self) -> f64 {
        let (exchange, computing) = (median(&self.exchange), median(&self.computing));
        exchange / (exchange + computing)
    }
}

impl Exchanges {
    /// Markdown: how it was measured, and a table of the models.
    pub fn markdown(&self) -> String {
        let Self { machine, replicas, on_machine, threads, backend, batch, models, .. } = self;
        let [rows, inputs, targets] = batch;
        let steps = models.first().map_or(0, |model| model.exchange.len());
        let commit = self.commit.as_ref().map(|commit| format!(" Commit {commit}."));
        let mut text = format!(
            "{}, {} cores, {}. {replicas} replicas, {on_machine} of them on this machine, {threads} threads each, on \
             {backend}. A step: {rows} × {inputs} input and {targets} target tokens on each replica, the exchange, AdamW. \
             One step to warm up and {steps} timed on replica 0; medians, with the fastest and the slowest.{}\n\n\
             | size | model | parameters | sent by each replica | exchange, ms | GB/s | the rest of the step, ms | share |\n\
             |---|---|---|---|---|---|---|---|\n",
            machine.cpu,
            machine.cores,
            machine.system,
            commit.unwrap_or_default(),
        );
        for model in models {
            let ModelExchange { size, model: name, parameters, bytes, exchange, computing } = model;
            let range = |seconds: &[f64]| {
                let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
                let most = seconds.iter().copied().fold(0.0, f64::max);
                let ms = |seconds: f64| 1e3 * seconds;
                format!("{:.1} ({:.1}–{:.1})", ms(median(seconds)), ms(least), ms(most))
            };
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "| {size} | {name} | {parameters} | {:.1} MB | {} | {:.2} | {} | {:.1} % |",
                *bytes as f64 / 1e6,
                range(exchange),
                *bytes as f64 / 1e9 / median(exchange),
                range(computing),
                100.0 * model.share(),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::models;
    use crate::replicas::threads::on_threads;

    #[test]
    fn an_exchange_is_measured_on_every_replica() {
        let config = models::model("tiny", "altup-k2").unwrap();
        let config = T5Config { vocab_size: 64, ..config };
        let batch = BenchBatch::random(64, 1, [8, 4], 1, 0);
        let measured = on_threads(2, |replicas| {
            let device = crate::device::cpu();
            let name = ("tiny", "altup-k2");
            ModelExchange::measure(&replicas, name, &config, &batch, &device, Precision::F32, 2)
        });
        for model in &measured {
            assert_eq!((model.exchange.len(), model.computing.len()), (2, 2));
            assert_eq!(model.bytes, 4 * model.parameters);
            assert!(model.share() > 0.0 && model.share() < 1.0, "{model:?}");
        }
        let exchanges = Exchanges {
            machine: Machine::here(),
            commit: None,
            replicas: 2,
            on_machine: 2,
            threads: 1,
            backend: "flex".into(),
            batch: [1, 8, 4],
            models: measured,
        };
        let text = exchanges.markdown();
        assert!(text.contains("| tiny | altup-k2 | "), "{text}");
    }
}
