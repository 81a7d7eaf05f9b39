//! The optimizers' arithmetic over Burn's [`Backend`] trait: default bodies of primitive tensor operations,
//! and few passes over memory on a CPU in f32.

// Burn marks ndarray and libtorch as deprecated; while it ships them they are supported here.
#![allow(deprecated)]

#[cfg(any(feature = "flex", feature = "ndarray", feature = "tch"))]
mod cpu;
mod primitive;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

/// The numbers of a step of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// What is kept of the first moment.
    pub beta_1: f32,
    /// What is kept of the second moment.
    pub beta_2: f32,
    /// 1 − β₁ᵗ
    pub correction_1: f32,
    /// 1 − β₂ᵗ
    pub correction_2: f32,
    /// ε
    pub epsilon: f32,
    /// What decay leaves of a weight.
    pub kept: f32,
    /// The learning rate.
    pub rate: f32,
}

/// The numbers of a step of Adafactor.
#[derive(Clone, Copy, Debug)]
pub struct AdafactorStep {
    /// The weight of this gradient in the second moment.
    pub new_weight: f32,
    /// What decay leaves of a weight.
    pub kept: f32,
    /// The learning rate, relative to the size of the parameter.
    pub rate: f32,
}

/// A step of an optimizer on one parameter. All tensors are f32.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda"))
)]
pub trait OptimizerBackend: Backend {
    /// The parameter and its two moments after a step of AdamW. All are of one shape.
    fn adamw_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        primitive::adamw_step::<Self>(param, grad, moment_1, moment_2, step)
    }

    /// The parameter and the means of the squared gradients of its rows and columns after a step of
    /// Adafactor.
    ///
    /// # Shapes
    ///
    /// - param, grad: `[..., R, C]`
    /// - rows: `[..., R, 1]`
    /// - columns: `[..., 1, C]`
    fn adafactor_matrix_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        columns: FloatTensor<Self>,
        step: AdafactorStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        primitive::adafactor_matrix_step::<Self>(param, grad, rows, columns, step)
    }

    /// The parameter and its second moment after a step of Adafactor, of one shape.
    fn adafactor_vector_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdafactorStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitive::adafactor_vector_step::<Self>(param, grad, second_moment, step)
    }
}

#[cfg(feature = "wgpu")]
impl OptimizerBackend for burn::backend::Wgpu {}

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
impl OptimizerBackend for burn::backend::Cuda {}
