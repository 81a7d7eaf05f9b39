#![doc = include_str!("../README.md")]

pub mod config;
pub mod device;
pub mod variant;

pub mod learner;
pub mod precision;
pub mod schedule;

pub mod checkpoint;
pub mod evaluation;
pub mod trainer;
pub mod training_batches;
pub mod validation;

pub mod fine_tuning;
pub mod task_evaluation;

pub mod data_identity;
pub mod run_data;
pub mod run_folder;
pub mod run_record;

pub mod filling;

pub mod bench;

pub mod chart;
pub mod machine;
pub mod metrics;
pub mod process;
pub mod progress;
pub mod report;
