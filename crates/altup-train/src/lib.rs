#![doc = include_str!("../README.md")]

pub mod chart;
pub mod data;
pub mod metrics;
pub mod progress;
pub mod report;
