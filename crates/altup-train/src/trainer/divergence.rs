//! Training that diverges: it is seen when the numbers of a step are read, one step late or before whatever needs them.

use super::together::{Run, STEPS, bits};
use super::*;
use crate::training_batches::Longest;
use burn::tensor::TensorData;
use std::fs;

/// A token that no text has, and whose embedding is no number.
const POISON: i32 = 127;

/// Batches of which those of one step hold the token.
struct Poisoned {
    inner: Arc<dyn TrainingBatches>,
    of_step: u64,
}

const BATCHES_OF_A_STEP: u64 = 4;

impl TrainingBatches for Poisoned {
    fn batch(&self, number: u64) -> Batch {
        let mut batch = self.inner.batch(number);
        assert!(!batch.input_ids.contains(&POISON) && !batch.labels.contains(&POISON));
        if number / BATCHES_OF_A_STEP + 1 == self.of_step {
            batch.input_ids[0] = POISON;
        }
        batch
    }

    fn longest(&self) -> Longest {
        self.inner.longest()
    }

    fn epochs(&self, batches: u64) -> Vec<SourceEpochs> {
        self.inner.epochs(batches)
    }
}

/// Trains in the folder `run`, with batches at step `of_step` that make the loss no number. The weights, or what it says.
fn train(of_step: u64, assignments: &[&str]) -> (Run, Result<Vec<u32>, String>) {
    // Adafactor scales by the size of the whole table, which is no number.
    let always = ["optimizer.kind=adamw", "optimizer.learning_rate=1e-3"];
    let run = Run::new(&[&always[..], assignments].concat());
    let folder = run.path("run");
    fs::create_dir_all(&folder).unwrap();
    let mut trainer = run.trainer(Replicas::lone(), &folder, STEPS);
    let inner = Arc::clone(&trainer.train_data);
    trainer.train_data = Arc::new(Poisoned { inner, of_step });
    let table = &mut trainer.learner.model.embedding.weight;
    *table = table.clone().map(|values| {
        let [_, width] = values.dims();
        let data = TensorData::new(vec![f32::NAN; width], [1, width]);
        let row = Tensor::<2>::from_data(data, &values.device());
        let place = POISON as usize;
        let poisoned = values.slice_assign([place..place + 1, 0..width], row);
        poisoned.detach().require_grad()
    });
    let outcome = trainer.train(&AtomicBool::new(false)).map_err(|error| error.to_string());
    let weights = bits(&trainer.learner.model);
    (run, outcome.map(|_| weights))
}

fn checkpoints(run: &Run) -> Vec<String> {
    let entries = fs::read_dir(run.path("run").join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The newest train row: nothing is written of a step that diverged.
fn last_step(run: &Run) -> u64 {
    let steps = run.rows("run").into_iter().filter_map(|row| match row {
        MetricsRow::Train(row) => Some(row.step),
        _ => None,
    });
    steps.max().unwrap()
}

#[test]
fn it_is_seen_one_step_late_and_said_so() {
    let (run, outcome) = train(4, &[]);
    let said = outcome.unwrap_err();
    let expected = "the loss is NaN at step 4 (seen after step 5 was begun): training has diverged";
    assert!(said.starts_with(expected), "{said}");
    assert_eq!(checkpoints(&run), ["step-00000003"]);
    assert_eq!(last_step(&run), 3);
}

/// The weights of step 4 are there, and a checkpoint is due: by the clock, or by its number.
#[test]
fn weights_that_a_bad_step_ruined_are_never_saved() {
    let (run, outcome) = train(4, &["training.checkpoint_minutes=1e-9"]);
    let said = outcome.unwrap_err();
    assert!(said.starts_with("the loss is NaN at step 4: training has diverged"), "{said}");
    assert_eq!(checkpoints(&run), ["step-00000002", "step-00000003"]);

    let (run, outcome) = train(4, &["training.checkpoint_every=2"]);
    let said = outcome.unwrap_err();
    assert!(said.starts_with("the loss is NaN at step 4: training has diverged"), "{said}");
    assert_eq!(checkpoints(&run), ["step-00000002"]);
}

/// Where each step is read at once and where it is read late, the same batches are passed over.
#[test]
fn it_goes_back_to_the_same_step_and_on_to_the_same_weights() {
    let rollback = |log_every| train(5, &["training.on_divergence=rollback", log_every]);
    let (at_once, weights) = rollback("training.log_every=1");
    let (late, of_late) = rollback("training.log_every=6");
    let rollbacks = |run: &Run| -> Vec<MetricsRow> {
        let rows = run.rows("run").into_iter();
        rows.filter(|row| matches!(row, MetricsRow::Rollback(_))).collect()
    };
    assert_eq!(rollbacks(&late).len(), 1);
    assert_eq!(rollbacks(&late), rollbacks(&at_once));
    assert!(weights.is_ok() && weights == of_late, "{:?}", of_late.err());
}
