#![doc = include_str!("../README.md")]

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
pub mod trainer;

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
