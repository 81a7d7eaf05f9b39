#![doc = include_str!("../README.md")]

pub mod coefficients_config;
pub mod config;
pub mod config_changes;
pub mod device;
pub mod variant;

pub mod learner;
pub mod optimization;
pub mod precision;
pub mod schedule;

pub mod checkpoint;
pub mod evaluation;
pub mod replicas;
pub mod trainer;
pub mod training_batches;
pub mod validation;

pub mod fine_tuning;
pub mod task_evaluation;

pub mod data_identity;
pub mod folder_lock;
pub mod run_data;
pub mod run_folder;
pub mod run_record;

pub mod coefficients;
pub mod filling;
pub mod machine;
pub mod matrix_peak;
pub mod memory;
pub mod memory_estimate;
pub mod out_of_memory;
pub mod recorder;
pub mod samples;
pub mod statistics;
pub mod summary;
pub mod tensorboard;
pub mod token_rows;

pub mod bench;

pub mod study;

pub mod chart;
mod durable;
mod json_lines;
pub mod metrics;
pub mod process;
pub mod progress;
pub mod report;
pub mod views;
