//! A device's own rates, at which it copies and multiplies matrices, and the kernels that only pass over memory beside
//! them.
//!
//! A kernel's bytes are the least that it has to read and write. What it moves beyond them lowers its rate.

use altup_core::AltUpConfig;
use altup_core::operations::combine_blocks::CombineBlocksBackend;
use altup_models::T5Config;
use altup_models::operations::attention::attention;
use altup_models::operations::cross_entropy::{CrossEntropyBackend, CrossEntropyOptions};
use altup_models::operations::gated_gelu::GatedGeluBackend;
use altup_models::operations::rms_norm::RmsNormBackend;
use altup_optim::global_square_sum;
use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::nn::LinearConfig;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::hint::black_box;

use super::measure::{LEARNING_RATE, optimizer, seconds};
use crate::machine::Machine;
use crate::precision::Precision;
use crate::statistics::median;

/// Launches that are timed together take about this long: waiting for the device is then a small part of it.
const SECONDS: f64 = 0.05;

/// What was measured on a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kernels {
    /// The machine.
    pub machine: Machine,
    /// The commit of the program, as the caller gave it.
    pub commit: Option<String>,
    /// The backend.
    pub backend: String,
    /// The device, as it calls itself.
    pub device: String,
    /// The type of values.
    pub precision: Precision,
    /// The size of the models whose widths the kernels have.
    pub size: String,
    /// Rows of a batch, and tokens of its inputs and targets.
    pub batch: [usize; 3],
    /// Each value of a large tensor times a number, into another tensor.
    pub copy: Timed,
    /// Products of matrices, and attention.
    pub products: Vec<Timed>,
    /// What passes over memory.
    pub passes: Vec<Timed>,
}

/// One kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timed {
    /// Its name.
    pub name: String,
    /// Floating-point operations of a product; of all others the bytes read and written at the least.
    pub amount: f64,
    /// Seconds of a launch, in each repeat.
    pub seconds: Vec<f64>,
}

impl Timed {
    /// What it computes or moves in a second.
    pub fn rate(&self) -> f64 {
        self.amount / median(&self.seconds)
    }
}

/// A kernel with its inputs.
struct Kernel {
    name: String,
    amount: f64,
    run: Box<dyn FnMut()>,
}

impl Kernel {
    fn new(name: impl Into<String>, amount: usize, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), amount: amount as f64, run: Box::new(run) }
    }

    /// As many launches as take [`SECONDS`], after one that warms up.
    fn time(mut self, device: &Device, repeats: usize) -> Timed {
        // Under fusion nothing would run until it is waited for, and the same over again be one kernel.
        let mut launch = || {
            (self.run)();
            device.flush().expect("the device takes what it is given");
        };
        launch();
        let once = seconds(device, &mut launch);
        let launches = (SECONDS / once).clamp(1.0, 1000.0) as usize;
        let mut several = || seconds(device, || (0..launches).for_each(|_| launch()));
        let seconds = (0..repeats).map(|_| several() / launches as f64).collect();
        Timed { name: self.name, amount: self.amount, seconds }
    }
}

/// The tensors that a step has, on a device.
struct Shapes {
    config: T5Config,
    batch: [usize; 3],
    device: Device,
    dtype: DType,
}

/// Makes a kernel and its inputs.
type Make = fn(&Shapes) -> Kernel;

/// Measures a device at the widths of a model and a batch of as many rows, input and target tokens.
pub fn measure(
    config: &T5Config,
    batch: [usize; 3],
    device: &Device,
    precision: Precision,
    repeats: usize,
) -> (Timed, [Vec<Timed>; 2]) {
    let shapes =
        Shapes { config: config.clone(), batch, device: device.clone(), dtype: precision.dtype() };
    // One after the other: together, their inputs would fill the device.
    let time = |make: &Make| make(&shapes).time(device, repeats);
    let products: [Make; 4] = [
        Shapes::square,
        |shapes| shapes.project(shapes.config.d_model, shapes.config.d_ff),
        |shapes| shapes.project(shapes.config.d_ff, shapes.config.d_model),
        Shapes::attention,
    ];
    let passes: [Make; 10] = [
        Shapes::update,
        Shapes::update_backward,
        Shapes::norm,
        Shapes::norm_backward,
        Shapes::gate,
        Shapes::gate_backward,
        Shapes::loss,
        Shapes::loss_backward,
        Shapes::gradient_norm,
        Shapes::optimizer,
    ];
    let copy = Shapes::copy(&shapes).time(device, repeats);
    (copy, [&products[..], &passes[..]].map(|kernels| kernels.iter().map(time).collect()))
}

/// K of the updates.
const BLOCKS: usize = 2;

impl Shapes {
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<D>::random(shape, normal, (&self.device, DType::F32)).cast(self.dtype)
    }

    /// The bytes of as many values.
    fn bytes(&self, values: usize) -> usize {
        values * self.dtype.size()
    }

    fn tokens(&self) -> usize {
        self.batch[0] * self.batch[1]
    }

    fn copy(&self) -> Kernel {
        let values = self.tokens() * self.config.d_ff;
        let source = self.random([values]);
        Kernel::new("copy", 2 * self.bytes(values), move || {
            black_box(source.clone().mul_scalar(2.0));
        })
    }

    /// Matrices about as large as the state of an encoder, with a power of two of rows and columns.
    fn square(&self) -> Kernel {
        let side = 1 << ((self.tokens() * self.config.d_model).ilog2() / 2);
        let [a, b] = [(); 2].map(|()| self.random([side, side]));
        Kernel::new(format!("[{side}, {side}] · [{side}, {side}]"), 2 * side.pow(3), move || {
            black_box(a.clone().matmul(b.clone()));
        })
    }

    fn project(&self, input: usize, output: usize) -> Kernel {
        let tokens = self.tokens();
        let (x, weight) = (self.random([tokens, input]), self.random([input, output]));
        let name = format!("[{tokens}, {input}] · [{input}, {output}]");
        Kernel::new(name, 2 * tokens * input * output, move || {
            black_box(x.clone().matmul(weight.clone()));
        })
    }

    fn attention(&self) -> Kernel {
        let [batch_size, length, _] = self.batch;
        let (heads, width) = (self.config.num_heads, self.config.d_kv);
        let [query, key, value] = [(); 3].map(|()| self.random([batch_size, length, heads, width]));
        let bias = self.random([1, heads, length, length]).cast(DType::F32);
        let name = format!("attention of {heads} heads of {width} over {length} tokens, forward");
        let operations = 4 * batch_size * heads * length * length * width;
        Kernel::new(name, operations, move || {
            let bias = Some(bias.clone());
            black_box(attention(query.clone(), key.clone(), value.clone(), bias, None));
        })
    }

    /// The state of K blocks, and what a layer computed on one.
    fn blocks(&self) -> (FloatTensor<Dispatch>, FloatTensor<Dispatch>, FloatTensor<Dispatch>) {
        let [batch_size, length, _] = self.batch;
        let state = self.random([BLOCKS, batch_size, length, self.config.d_model]);
        let computed = self.random([batch_size, length, self.config.d_model]);
        let coefs = AltUpConfig::new(BLOCKS).init(&self.device).coefficients(0);
        (state.into_dispatch(), computed.into_dispatch(), coefs.into_dispatch())
    }

    fn update(&self) -> Kernel {
        let (state, computed, coefs) = self.blocks();
        let bytes = self.bytes((2 * BLOCKS + 1) * self.tokens() * self.config.d_model);
        Kernel::new("AltUp update, K = 2, forward", bytes, move || {
            let (state, computed, coefs) = (state.clone(), computed.clone(), coefs.clone());
            black_box(<Dispatch as CombineBlocksBackend>::combine_blocks(state, computed, coefs));
        })
    }

    /// The gradient of the coefficients reads the gradients of the output, the state and what was computed; the others
    /// are made from the first of these.
    fn update_backward(&self) -> Kernel {
        let (state, computed, coefs) = self.blocks();
        let bytes = self.bytes((3 * BLOCKS + 2) * self.tokens() * self.config.d_model);
        Kernel::new("AltUp update, K = 2, backward", bytes, move || {
            let (grad, state) = (state.clone(), state.clone());
            black_box(<Dispatch as CombineBlocksBackend>::combine_blocks_backward(
                state,
                computed.clone(),
                coefs.clone(),
                grad,
            ));
        })
    }

    fn norm(&self) -> Kernel {
        let (tokens, width) = (self.tokens(), self.config.d_model);
        let x = self.random([tokens, width]).into_dispatch();
        let gamma = self.random([width]).into_dispatch();
        Kernel::new("RMSNorm, forward", 2 * self.bytes(tokens * width), move || {
            let (x, gamma) = (x.clone(), gamma.clone());
            black_box(<Dispatch as RmsNormBackend>::rms_norm(x, gamma, 1e-6));
        })
    }

    fn norm_backward(&self) -> Kernel {
        let (tokens, width) = (self.tokens(), self.config.d_model);
        let [x, grad] = [(); 2].map(|()| self.random([tokens, width]).into_dispatch());
        let gamma = self.random([width]).into_dispatch();
        Kernel::new("RMSNorm, backward", 3 * self.bytes(tokens * width), move || {
            let (x, gamma, grad) = (x.clone(), gamma.clone(), grad.clone());
            black_box(<Dispatch as RmsNormBackend>::rms_norm_backward(x, gamma, grad, 1e-6));
        })
    }

    fn gate(&self) -> Kernel {
        let values = self.tokens() * self.config.d_ff;
        let [gate, linear] = [(); 2].map(|()| self.random([values]).into_dispatch());
        Kernel::new("gated GELU, forward", 3 * self.bytes(values), move || {
            let (gate, linear) = (gate.clone(), linear.clone());
            black_box(<Dispatch as GatedGeluBackend>::gated_gelu(gate, linear));
        })
    }

    fn gate_backward(&self) -> Kernel {
        let values = self.tokens() * self.config.d_ff;
        let [gate, linear, grad] = [(); 3].map(|()| self.random([values]).into_dispatch());
        Kernel::new("gated GELU, backward", 5 * self.bytes(values), move || {
            let (gate, linear, grad) = (gate.clone(), linear.clone(), grad.clone());
            black_box(<Dispatch as GatedGeluBackend>::gated_gelu_backward(gate, linear, grad));
        })
    }

    /// Logits of the targets, and their labels.
    fn logits(&self) -> (Tensor<2>, Tensor<1, Int>) {
        let (targets, vocab_size) = (self.batch[0] * self.batch[2], self.config.vocab_size);
        let labels = Distribution::Uniform(1.0, vocab_size as f64);
        (self.random([targets, vocab_size]), Tensor::random([targets], labels, &self.device))
    }

    fn loss(&self) -> Kernel {
        let (logits, labels) = self.logits();
        let bytes = self.bytes(logits.shape().num_elements());
        let (logits, labels) = (logits.into_dispatch(), labels.into_dispatch());
        let options = CrossEntropyOptions::default();
        Kernel::new("cross-entropy, forward", bytes, move || {
            let (logits, labels) = (logits.clone(), labels.clone());
            black_box(<Dispatch as CrossEntropyBackend>::cross_entropy(logits, labels, options));
        })
    }

    fn loss_backward(&self) -> Kernel {
        let (logits, labels) = self.logits();
        let bytes = 2 * self.bytes(logits.shape().num_elements());
        let grad = Tensor::<1>::ones([labels.dims()[0]], (&self.device, DType::F32));
        let logits = <Dispatch as CrossEntropyBackend>::logits_to_keep(logits.into_dispatch());
        let (labels, grad) = (labels.into_dispatch(), grad.into_dispatch());
        let options = CrossEntropyOptions::default();
        Kernel::new("cross-entropy, backward", bytes, move || {
            let (logits, labels, grad) = (logits.clone(), labels.clone(), grad.clone());
            black_box(<Dispatch as CrossEntropyBackend>::cross_entropy_backward(
                logits, labels, grad, options,
            ));
        })
    }

    /// A table of the vocabulary, which is f32 in any precision.
    fn gradient_norm(&self) -> Kernel {
        let (width, vocab_size) = (self.config.d_model, self.config.vocab_size);
        let table = LinearConfig::new(width, vocab_size).with_bias(false).init(&self.device);
        let mut gradients = GradientsParams::new();
        gradients.register::<2>(table.weight.id, table.weight.val());
        Kernel::new("sum of a gradient's squares, f32", 4 * width * vocab_size, move || {
            black_box(global_square_sum(&table, &gradients));
        })
    }

    /// AdamW reads weights, gradients and two moments, and writes all but the gradients.
    fn optimizer(&self) -> Kernel {
        let (width, vocab_size) = (self.config.d_model, self.config.vocab_size);
        let device = self.device.clone().autodiff();
        let table = LinearConfig::new(width, vocab_size).with_bias(false).init(&device);
        let (id, gradient) = (table.weight.id, table.weight.val().inner());
        let (mut table, mut optimizer) = (Some(table), optimizer());
        Kernel::new("AdamW, f32", 7 * 4 * width * vocab_size, move || {
            let mut gradients = GradientsParams::new();
            gradients.register::<2>(id, gradient.clone());
            let trained = table.take().expect("every step puts it back");
            table = Some(optimizer.step(LEARNING_RATE, trained, gradients));
        })
    }
}

impl Kernels {
    /// Markdown: how it was measured, and a table of each kind.
    pub fn markdown(&self) -> String {
        let Self { machine, backend, device, precision, size, batch, copy, .. } = self;
        let [rows, inputs, targets] = batch;
        let commit = self.commit.as_ref().map(|commit| format!(" Commit {commit}."));
        let mut text = format!(
            "{device} on {backend}; {}, {} cores, {}. {}, widths of {size}, {rows} × {inputs} input and {targets} target \
             tokens. One launch to warm up, then {} times as many as take about {} ms; medians.{}\n\n\
             | product | ms | TFLOP/s |\n|---|---|---|\n",
            machine.cpu,
            machine.cores,
            machine.system,
            precision.name(),
            copy.seconds.len(),
            1e3 * SECONDS,
            commit.unwrap_or_default(),
        );
        // Writing to a string can't fail.
        for product in &self.products {
            let ms = 1e3 * median(&product.seconds);
            let _ = writeln!(text, "| {} | {ms:.3} | {:.2} |", product.name, product.rate() / 1e12);
        }
        text.push_str(
            "\n| pass over memory | MB | ms | GB/s | of the copy |\n|---|---|---|---|---|\n",
        );
        for pass in std::iter::once(copy).chain(&self.passes) {
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.3} | {:.1} | {:.0} % |",
                pass.name,
                pass.amount / 1e6,
                1e3 * median(&pass.seconds),
                pass.rate() / 1e9,
                100.0 * pass.rate() / copy.rate()
            );
        }
        text
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::bench::models;

    #[test]
    fn bytes_and_operations_by_hand() {
        let config = models::model("tiny", "dense").unwrap();
        let config = T5Config { vocab_size: 96, d_model: 32, d_ff: 64, ..config };
        let device = Device::flex();
        for (precision, bytes) in [(Precision::F32, 4.0), (Precision::Bf16, 2.0)] {
            let (copy, [products, passes]) = measure(&config, [2, 16, 5], &device, precision, 2);
            let amounts = |timed: &[Timed]| timed.iter().map(|t| t.amount).collect::<Vec<_>>();
            // 32 tokens. The square: 32 · 32 values are 1024, so 32 rows.
            let attention = (4 * 2 * config.num_heads * 16 * 16 * config.d_kv) as f64;
            let product = 2.0 * 32.0 * 32.0 * 64.0;
            assert_eq!(amounts(&products), [product / 2.0, product, product, attention]);
            let (block, hidden, logits) = (32.0 * 32.0, 32.0 * 64.0, 10.0 * 96.0);
            assert_eq!(copy.amount, bytes * 2.0 * hidden);
            let of_tensors =
                [5.0 * block, 8.0 * block, 2.0 * block, 3.0 * block, 3.0 * hidden, 5.0 * hidden];
            let expected = of_tensors.into_iter().chain([logits, 2.0 * logits]);
            let expected: Vec<f64> = expected.map(|values| bytes * values).collect();
            assert_eq!(amounts(&passes)[..8], expected);
            let table = 4.0 * 32.0 * 96.0;
            assert_eq!(amounts(&passes)[8..], [table, 7.0 * table]);
            for timed in products.iter().chain(&passes).chain([&copy]) {
                assert_eq!(timed.seconds.len(), 2, "{timed:?}");
                assert!(timed.rate() > 0.0 && timed.rate().is_finite(), "{timed:?}");
            }
        }
    }
}
