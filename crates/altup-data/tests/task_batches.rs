//! Tasks as tokens, and as batches of little padding.

use altup_data::mixture::weights_by_size;
use altup_data::tasks::{Dataset, MaxLengths, Registry, TaskBatches, TokenizedTask};
use altup_data::{Corpus, OnError, TextTokenizer};
use std::fs;
use std::io::Write;
use std::path::Path;

const MADE: &str = "tests/fixtures/benchmarks";
const REAL: &str = "../../../shared/data";

fn read(task: &str, data: &str, split: &str) -> Dataset {
    Registry::standard().find(task).unwrap().read(Path::new(data), split).unwrap()
}

/// A tokenizer of the texts of made rows.
fn tokenizer() -> TextTokenizer {
    let folder = tempfile::tempdir().unwrap();
    let texts = read("squad", MADE, "validation").examples.into_iter();
    let text: String = texts.map(|of| of.input + "\n\nnegative positive True False\n\n").collect();
    let path = folder.path().join("text.txt");
    fs::write(&path, text.repeat(20)).unwrap();
    let corpus = Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
    TextTokenizer::train(&corpus, 300, u64::MAX, OnError::Stop).unwrap()
}

#[test]
fn inputs_are_cut_and_counted_and_targets_never_are() {
    let tokenizer = tokenizer();
    let dataset = read("squad", MADE, "validation");
    let tokenize = |input, target| {
        let lengths = MaxLengths { input, target };
        TokenizedTask::training("squad", &dataset, &tokenizer, lengths)
    };
    let whole = tokenize(512, None).unwrap();
    assert_eq!((whole.examples.len(), whole.truncated), (2, 0));
    for (example, text) in whole.examples.iter().zip(&dataset.examples) {
        let [inputs, targets] = [&example.inputs, &example.targets];
        for (tokens, text) in [(inputs, &text.input), (targets, text.target.as_ref().unwrap())] {
            let (end, tokens) = tokens.split_last().unwrap();
            assert_eq!(*end, tokenizer.eos_id());
            assert_eq!(tokens, tokenizer.encode(text).unwrap());
        }
    }
    let lengths: Vec<usize> = whole.examples.iter().map(|of| of.inputs.len()).collect();
    let [shortest, longest] = [lengths.iter().min(), lengths.iter().max()].map(|of| *of.unwrap());
    assert!(shortest < longest, "{lengths:?}");
    // What just fits is not cut.
    assert_eq!(tokenize(longest, None).unwrap().examples, whole.examples);
    assert_eq!(tokenize(longest, None).unwrap().truncated, 0);
    assert_eq!(tokenize(shortest, None).unwrap().truncated, 1);
    let cut = tokenize(8, None).unwrap();
    assert_eq!(cut.truncated, 2);
    for (cut, whole) in cut.examples.iter().zip(&whole.examples) {
        assert_eq!(cut.inputs, [&whole.inputs[..7], &[tokenizer.eos_id()]].concat());
        assert_eq!(cut.targets, whole.targets);
    }

    let longest = whole.target_length();
    assert!(tokenize(512, Some(longest)).is_ok());
    let message = tokenize(512, Some(longest - 1)).unwrap_err().to_string();
    let expected = format!("1 targets of squad have more than the {} tokens", longest - 1);
    assert!(message.starts_with(&expected) && message.contains("`q"), "{message}");
    let message = tokenize(512, Some(1)).unwrap_err().to_string();
    assert!(message.starts_with("2 targets of squad"), "{message}");
}

#[test]
fn what_has_no_target_can_be_judged_and_not_learned() {
    let tokenizer = tokenizer();
    let dataset = read("sst2", MADE, "test");
    let lengths = MaxLengths::default();
    let error = TokenizedTask::training("sst2", &dataset, &tokenizer, lengths).unwrap_err();
    assert!(error.to_string().contains("`0` of sst2 has no target"), "{error}");
    let judged = TokenizedTask::judged("sst2", &dataset, &tokenizer, lengths).unwrap();
    assert!(judged.examples.iter().all(|of| of.targets.is_empty() && of.inputs.len() > 1));
    // ReCoRD is learned with every answer and judged once a question.
    let dataset = read("record", MADE, "validation");
    let learned = TokenizedTask::training("record", &dataset, &tokenizer, lengths).unwrap();
    let judged = TokenizedTask::judged("record", &dataset, &tokenizer, lengths).unwrap();
    assert_eq!((learned.examples.len(), judged.examples.len()), (3, 2));
    assert_eq!(learned.examples[0].inputs, learned.examples[1].inputs);
    assert_ne!(learned.examples[0].targets, learned.examples[1].targets);
    assert_eq!(judged.examples[1], learned.examples[2]);
}

/// The share of padding among the tokens of an epoch.
fn padding(tasks: &[TokenizedTask], batch_size: usize) -> f64 {
    let sizes: Vec<u64> = tasks.iter().map(|task| task.examples.len() as u64).collect();
    let weights = weights_by_size(&sizes, None, 1.0);
    let weighted = tasks.iter().cloned().zip(weights).collect();
    let batches = TaskBatches::new(weighted, batch_size, 0);
    let epoch = sizes.iter().sum::<u64>().div_ceil(batch_size as u64);
    let (mut tokens, mut positions) = (0, 0);
    for number in 0..epoch {
        let batch = batches.batch(number);
        tokens += batch.num_inputs() + batch.num_targets();
        positions += batch.num_positions();
    }
    1.0 - tokens as f64 / positions as f64
}

#[test]
#[allow(clippy::print_stdout)] // The shares are to be read, not only to pass.
fn padding_is_below_a_tenth_of_the_tokens_of_real_tasks() {
    if !Path::new(REAL).exists() {
        // Not `eprintln!`, which the test runner keeps to itself.
        writeln!(std::io::stderr(), "SKIPPED padding of real tasks: no {REAL}").unwrap();
        return;
    }
    let tokenizer = Path::new(REAL).join("tokenizer/t5/tokenizer.json");
    let tokenizer = TextTokenizer::load(&tokenizer).unwrap();
    let tokenize = |(task, split): (&str, &str)| {
        let dataset = read(task, REAL, split);
        TokenizedTask::training(task, &dataset, &tokenizer, MaxLengths::default()).unwrap()
    };
    let tasks = [
        ("sst2", "train"),
        ("cola", "train"),
        ("mrpc", "train"),
        ("rte", "train"),
        ("stsb", "train"),
        ("boolq", "validation"),
        ("wsc", "validation"),
        ("squad", "validation"),
        ("triviaqa", "validation"),
        ("nq_open", "validation"),
    ];
    let tasks = tasks.map(tokenize);
    for batch_size in [8, 32] {
        for task in &tasks {
            let share = padding(std::slice::from_ref(task), batch_size);
            println!("{}, {batch_size} examples a batch: {:.1} %", task.name, 100.0 * share);
            // The few batches of a short epoch can't be as alike in length, as none holds an example twice.
            let most = match task.examples.len() / batch_size {
                0..10 => 0.35,
                10..100 => 0.12,
                _ => 0.1,
            };
            assert!(share < most, "{}, {batch_size}: {share}", task.name);
        }
        let share = padding(&tasks, batch_size);
        println!("all together, {batch_size} examples a batch: {:.1} %", 100.0 * share);
        assert!(share < 0.1, "all together, {batch_size}: {share}");
    }
}
