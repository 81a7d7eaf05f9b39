//! Trainers of one run, alone and as threads: their weights and metrics are those of one alone.

use super::*;
use crate::config::RunConfig;
use crate::progress::ProgressMode;
use crate::replicas::threads::on_threads;
use crate::run_data::{DataCache, RunData};
use crate::run_folder::RunFolder;
use crate::training_batches::{Longest, TextBatches};
use crate::validation::TextValidation;
use altup_models::{T5, parameter_tensors};
use burn::tensor::Device;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use tempfile::TempDir;

/// A run, and the text that it trains on.
pub(super) struct Run {
    folder: TempDir,
    config: RunConfig,
    data: RunData,
}

pub(super) const STEPS: u64 = 6;

impl Run {
    /// With dropout, and experts whose routers have noise.
    pub(super) fn new(assignments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let words = ["river", "stone", "house", "light", "water", "morning", "winter", "garden"];
        let document = |number: usize| {
            let word = |at: usize| words[(number * 7 + at * at) % words.len()];
            (0..40).map(word).collect::<Vec<_>>().join(" ")
        };
        let text = (0..300).map(document).collect::<Vec<_>>().join("\n\n");
        let path = folder.path().join("text.txt");
        std::fs::write(&path, text).unwrap();
        let text = format!("data.train=[{:?}]", path.to_string_lossy());
        let mut all = vec![
            text.as_str(),
            "data.vocab_size=200",
            "model.d_model=16",
            "model.d_ff=16",
            "model.num_heads=2",
            "model.num_layers=1",
            "model.dropout_rate=0.1",
            "model.moe.num_experts=4",
            "model.moe.expert_d_ff=4",
            "model.moe.mode=partial",
            "model.moe.router_jitter=0.1",
            "training.steps=6",
            "training.batch_size=2",
            "training.gradient_accumulation=4",
            "training.log_every=3",
            "schedule.kind=constant",
            "training.eval_every=3",
            "training.eval_examples=7",
            "training.checkpoint_every=3",
            "training.prompts=[]",
        ];
        all.extend(assignments);
        let all: Vec<String> = all.into_iter().map(String::from).collect();
        let config = RunConfig::tiny_altup().with_assignments(&all).unwrap();
        let quiet = Progress::new(ProgressMode::Silent, STEPS, 0);
        let cache = DataCache::new(&folder.path().join("cache"));
        let data = RunData::prepare(&config, None, &cache, &quiet).unwrap();
        Self { folder, config, data }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a replica goes on with: the folder `run` as it is.
    pub(super) fn trainer(&self, replicas: Replicas, run: &Path, steps: u64) -> Trainer {
        let mut config = self.config.trainer();
        config.training.steps = steps;
        let device = Device::flex().autodiff();
        let model_config = self.config.model_config(self.data.tokenizer.vocab_size()).unwrap();
        // Of another seed: weights that are not the first's would show.
        let seed = self.config.seed + replicas.place().rank as u64;
        let is_new = !run.join("metrics.jsonl").exists();
        let seed = if is_new { self.config.seed } else { seed };
        let learner = Learner { model: model_config.init(seed, &device) };
        let optimizer = learner.optimizer(&config.optimizer).unwrap();
        let mut checkpoints = Checkpoints::new(run.join("checkpoints"), 2);
        replicas.meet("the start");
        let metrics = run.join("metrics.jsonl");
        let mut restored = None;
        if !is_new {
            let read = replicas.is_first().then(|| {
                checkpoints.restore(None, &learner, &optimizer).unwrap_or_else(|e| panic!("{e}"))
            });
            restored = Some(replicas.share_restored(read, &learner, &optimizer).unwrap());
        }
        let saved = restored.as_ref().map(|restored| restored.state.clone());
        let files = replicas.is_first().then(|| {
            let metrics = match &saved {
                Some(state) => MetricsLog::resume(&metrics, state).unwrap(),
                None => MetricsLog::create(&metrics).unwrap(),
            };
            RunFiles { checkpoints, metrics }
        });
        let batch_size = config.training.batch_size;
        let (state, learner, optimizer) = match restored {
            Some(restored) => (restored.state, restored.learner, restored.optimizer),
            None => (RunState::default(), learner, optimizer),
        };
        Trainer {
            replicas,
            device,
            train_data: Arc::new(TextBatches { data: Arc::clone(&self.data.train), batch_size }),
            valid_data: Box::new(TextValidation {
                data: self.data.valid.clone(),
                training: config.training.clone(),
            }),
            config,
            learner,
            optimizer,
            state,
            saved,
            files,
            progress: Progress::new(ProgressMode::Silent, steps, 0),
            recorder: Recorder::new(model_config),
        }
    }

    /// Trains `size` replicas to `steps` in the folder `name`; the weights of each.
    fn train(&self, size: usize, name: &str, steps: u64) -> Vec<Vec<u32>> {
        let run = self.path(name);
        std::fs::create_dir_all(&run).unwrap();
        on_threads(size, |replicas| {
            let mut trainer = self.trainer(replicas, &run, steps);
            let outcome = trainer.train(&AtomicBool::new(false)).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(outcome, Outcome::Finished);
            bits(&trainer.learner.model)
        })
    }

    /// The metrics without what time decides.
    pub(super) fn rows(&self, name: &str) -> Vec<MetricsRow> {
        let mut rows = MetricsLog::read(&self.path(name).join("metrics.jsonl")).unwrap();
        for row in &mut rows {
            if let MetricsRow::Train(row) = row {
                (row.tokens_per_second, row.elapsed_seconds) = (0.0, 0.0);
                (row.data_wait_seconds, row.exchange_seconds) = (None, None);
                (row.memory_bytes, row.peak_memory_bytes) = (None, None);
                (row.flops_per_second, row.peak_share) = (None, None);
            }
        }
        rows
    }
}

pub(super) fn bits(model: &T5) -> Vec<u32> {
    let tensors = parameter_tensors(model);
    tensors.iter().flat_map(|tensor| tensor.values.iter().map(|value| value.to_bits())).collect()
}

#[test]
fn replicas_train_to_the_bits_of_one_process() {
    let run = Run::new(&[]);
    let alone = run.train(1, "alone", STEPS);
    for size in [2, 4] {
        let name = size.to_string();
        let together = run.train(size, &name, STEPS);
        assert!(together.iter().all(|weights| *weights == alone[0]), "{size} replicas");
        assert_eq!(run.rows(&name), run.rows("alone"), "{size} replicas");
    }
    let routing = run.rows("alone").into_iter().any(|row| match row {
        MetricsRow::Train(row) => row.routing.len() == 2,
        _ => false,
    });
    assert!(routing, "experts are in both stacks");
}

#[test]
fn three_replicas_train_to_the_bits_of_one_process() {
    let run = Run::new(&["training.gradient_accumulation=3"]);
    let alone = run.train(1, "alone", STEPS);
    assert_eq!(run.train(3, "3", STEPS), vec![alone[0].clone(); 3]);
    assert_eq!(run.rows("3"), run.rows("alone"));
}

#[test]
fn a_run_goes_on_with_another_number_of_replicas() {
    let run = Run::new(&[]);
    let alone = run.train(1, "alone", STEPS);
    run.train(4, "run", 3);
    // The validation of its end does not come again.
    assert_eq!(run.train(2, "run", STEPS), vec![alone[0].clone(); 2]);
    assert_eq!(run.rows("run"), run.rows("alone"));
    run.train(2, "back", 3);
    assert_eq!(run.train(1, "back", STEPS), alone);
    assert_eq!(run.rows("back"), run.rows("alone"));
}

#[test]
fn all_replicas_stop_at_the_same_step_when_one_is_told_to() {
    let run = Run::new(&[]);
    let folder = run.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    let stopped = on_threads(4, |replicas| {
        let stop = AtomicBool::new(replicas.place().rank == 2);
        let mut trainer = run.trainer(replicas, &folder, STEPS);
        (trainer.train(&stop).unwrap_or_else(|e| panic!("{e}")), trainer.state.step)
    });
    assert_eq!(stopped, vec![(Outcome::Stopped, 0); 4]);
}

#[test]
fn weights_that_differ_are_an_error_that_names_the_replica() {
    let run = Run::new(&[]);
    let folder = run.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    let saved = on_threads(3, |replicas| {
        let rank = replicas.place().rank;
        let mut trainer = run.trainer(replicas, &folder, STEPS);
        if rank == 1 {
            let weight = &mut trainer.learner.model.decoder.final_norm.gamma;
            *weight = weight.clone().map(|values| values * 1.000_001);
        }
        trainer.save().map_err(|error| error.to_string())
    });
    for saved in saved {
        let error = saved.unwrap_err();
        assert!(error.contains("the weights of replica 1 are not those of replica 0"), "{error}");
    }
    assert!(!folder.join("checkpoints").exists());
}

#[test]
fn a_step_that_replicas_cannot_share_is_refused() {
    let run = Run::new(&["training.gradient_accumulation=3"]);
    let folder = run.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    let refused = on_threads(2, |replicas| {
        let mut trainer = run.trainer(replicas, &folder, STEPS);
        trainer.train(&AtomicBool::new(false)).unwrap_err().to_string()
    });
    assert!(refused[0].contains("is 3, which 2 replicas can't share evenly"), "{refused:?}");
}

/// Of validations there is one, at the end.
#[test]
fn a_row_of_training_brings_the_report_up_to_date() {
    let run = Run::new(&["training.eval_every=1000", "training.log_every=1"]);
    let folder = run.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), run.config.to_toml()).unwrap();
    let mut trainer = run.trainer(Replicas::lone(), &folder, STEPS);
    trainer.recorder.show(&RunFolder::at(&folder));
    trainer.train(&AtomicBool::new(false)).unwrap();
    // The first is due at once, and the next half a minute later.
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("At step 1 of 6"), "{page}");
    assert!(folder.join("tensorboard").exists());
}

/// Batches that take their time. The third tells the run to stop.
struct Slow {
    batches: TextBatches,
    made: AtomicU64,
    stop: Arc<AtomicBool>,
}

impl TrainingBatches for Slow {
    fn batch(&self, number: u64) -> Batch {
        self.made.fetch_add(1, Ordering::SeqCst);
        if number == 2 {
            self.stop.store(true, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(100));
        self.batches.batch(number)
    }

    fn longest(&self) -> Longest {
        self.batches.longest()
    }

    fn epochs(&self, batches: u64) -> Vec<SourceEpochs> {
        self.batches.epochs(batches)
    }
}

#[test]
fn a_run_that_waits_for_its_batches_stops() {
    let run = Run::new(&["training.gradient_accumulation=32"]);
    let folder = run.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    let mut trainer = run.trainer(Replicas::lone(), &folder, STEPS);
    let stop = Arc::new(AtomicBool::new(false));
    let batches = TextBatches { data: Arc::clone(&run.data.train), batch_size: 2 };
    let slow = Arc::new(Slow { batches, made: AtomicU64::new(0), stop: Arc::clone(&stop) });
    trainer.train_data = Arc::clone(&slow) as Arc<dyn TrainingBatches>;
    assert_eq!(trainer.train(&stop).unwrap(), Outcome::Stopped);
    assert_eq!(trainer.state.step, 0);
    let made = slow.made.load(Ordering::SeqCst);
    assert!(made < 16, "{made} of a step's 32 batches");
}

/// What was undone took its time and its tokens: a rate is of what was done in all.
#[test]
fn what_a_rollback_undoes_counts() {
    let run = Run::new(&["training.on_divergence=rollback"]);
    let folder = run.path("run");
    std::fs::create_dir_all(&folder).unwrap();
    let mut trainer = run.trainer(Replicas::lone(), &folder, STEPS);
    trainer.train(&AtomicBool::new(false)).unwrap();
    let before = trainer.state.clone();
    assert!(before.step == 6 && before.proven == Some(3), "{before:?}");
    trainer.state.exchange_seconds = 7.0;
    trainer.roll_back(3, 6, "loss").unwrap();
    let after = &trainer.state;
    assert_eq!((after.step, after.tokens), (3, before.tokens));
    assert_eq!((after.elapsed_seconds, after.exchange_seconds), (before.elapsed_seconds, 7.0));
}
