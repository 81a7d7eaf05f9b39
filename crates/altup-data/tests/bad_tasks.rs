//! Bad files of tasks and bad predictions: one clear error that names the file, and the line or the id.

use altup_data::tasks::{Reference, Registry, evaluate, read_predictions};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MADE: &str = "tests/fixtures/benchmarks";

/// A folder of a task's files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// Reads the validation split of a task from one file of the folder, and expects an error with each of `words`.
    #[track_caller]
    fn refuses(&self, task: &str, file: &str, contents: impl AsRef<[u8]>, words: &[&str]) {
        self.write(file, contents);
        self.refuses_split(task, "validation", words);
        fs::remove_file(self.0.path().join(file)).unwrap();
    }

    #[track_caller]
    fn refuses_split(&self, task: &str, split: &str, words: &[&str]) {
        let task = Registry::standard().find(task).unwrap();
        says(task.read(self.0.path(), split).unwrap_err(), words);
    }
}

/// Expects each of `words` in an error and its causes.
#[track_caller]
fn says(error: impl std::error::Error, words: &[&str]) {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message += &format!(": {cause}");
        source = cause.source();
    }
    for word in words {
        assert!(message.contains(word), "{message:?} doesn't say {word:?}");
    }
    assert!(!message.contains('\n'), "{message:?} is one line");
}

#[test]
fn tables_are_checked_row_by_row() {
    let folder = Folder::new();
    let header = "sentence\tlabel\n";
    let sst2 = |rows: &str, words: &[&str]| {
        folder.refuses("sst2", "dev.tsv", format!("{header}{rows}"), words);
    };
    sst2("fine\t1\none\ttoo\tmany\n", &["dev.tsv: line 3", "3 columns", "should be 2"]);
    sst2("fine\t1\ntoo few\nfine\t0\n", &["dev.tsv: line 3", "1 columns", "should be 2"]);
    sst2("fine\t1\nodd\t2\n", &["dev.tsv: line 3", "`2`", "sst2", "`0`, `1`"]);
    sst2("no label\t\n", &["dev.tsv: line 2", "no label of sst2"]);
    sst2("", &["dev.tsv", "no example"]);
    folder.refuses("sst2", "dev.tsv", "", &["dev.tsv: line 1", "`sentence`"]);
    folder.refuses(
        "sst2",
        "dev.tsv",
        b"sentence\tlabel\nfine\t1\nb\xe9\t1\n",
        &["line 3", "UTF-8"],
    );
    let stsb = fs::read_to_string(Path::new(MADE).join("glue/STS-B/dev.tsv")).unwrap();
    let stsb = |score: &str| stsb.replace("1.66", score);
    folder.refuses("stsb", "dev.tsv", stsb("high"), &["line 3", "`score`", "a number", "high"]);
    folder.refuses("stsb", "dev.tsv", stsb("nan"), &["line 3", "`score`", "a number"]);
    folder.refuses(
        "cola",
        "dev.tsv",
        "gj04\t1\t\tFine.\ngj04\t1\tOne short.\n",
        &["line 2", "3 columns"],
    );
    // Rows that are too short are GLUE's own in QQP; rows that are too long are not.
    let qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t1\tc\n";
    folder.refuses("qqp", "dev.tsv", qqp, &["line 2", "7 columns", "should be 6"]);
}

#[test]
fn a_file_of_another_benchmark_is_told() {
    let folder = Folder::new();
    let made = |path: &str| fs::read(Path::new(MADE).join(path)).unwrap();
    let rte = made("glue/RTE/dev.tsv");
    folder.refuses(
        "sst2",
        "dev.tsv",
        &rte,
        &["dev.tsv: line 1", "`sentence`", "sst2", "`sentence1`"],
    );
    folder.refuses(
        "cola",
        "dev.tsv",
        &rte,
        &["dev.tsv: line 1", "`sentence1`", "no label of cola"],
    );
    folder.refuses("wnli", "dev.tsv", &rte, &["dev.tsv: line 2", "`entailment`", "`0`, `1`"]);
    folder.refuses(
        "sst2",
        "dev.tsv",
        made("glue/CoLA/dev.tsv"),
        &["line 1", "`sentence`", "`mk02`"],
    );
    folder.refuses(
        "boolq",
        "val.jsonl",
        made("superglue/CB/val.jsonl"),
        &["val.jsonl: line 1", "`passage`", "`premise`"],
    );
    folder.refuses(
        "sg_rte",
        "val.jsonl",
        made("superglue/CB/val.jsonl"),
        &["val.jsonl: line 2", "`neutral`", "sg_rte"],
    );
    for task in ["wsc", "multirc", "record"] {
        let words = ["val.jsonl: line 1", "not JSON as", task];
        folder.refuses(task, "val.jsonl", made("superglue/CB/val.jsonl"), &words);
    }
    // A SQuAD file is read, and a TriviaQA file is not one.
    let triviaqa = made("triviaqa-unfiltered/unfiltered-web-dev.json");
    folder.refuses("squad", "dev-v1.1.json", &triviaqa, &["dev-v1.1.json", "squad", "`data`"]);
    let squad = made("squad/dev-v1.1.json");
    folder.refuses("triviaqa", "unfiltered-web-dev.json", squad, &["triviaqa", "`Data`"]);
    // SuperGLUE's folder has the name of GLUE's.
    folder.write("val.jsonl", made("superglue/RTE/val.jsonl"));
    folder.refuses_split("rte", "validation", &["dev.tsv", "glue/RTE/dev.tsv", "holds val.jsonl"]);
}

#[test]
fn json_lines_are_checked_row_by_row() {
    let folder = Folder::new();
    let first = r#"{"question": "q", "passage": "p", "label": true, "idx": 0}"#;
    let row = &*first.replace("\"idx\": 0", "\"idx\": 1");
    let boolq = |second: &str, words: &[&str]| {
        folder.refuses("boolq", "val.jsonl", format!("{first}\n{second}\n"), words);
    };
    boolq(first, &["val.jsonl: line 2", "`0` occurs twice"]);
    boolq(
        &row.replace("true", "\"maybe\""),
        &["line 2", "`maybe`", "no label of boolq", "`false`, `true`"],
    );
    boolq(&row.replace("\"p\"", "[\"p\"]"), &["line 2", "`passage`", "a text", "[\"p\"]"]);
    boolq(&row.replace("\"label\": true, ", ""), &["line 2", "`label`"]);
    boolq(&row[..20], &["line 2", "JSON"]);
    let nq = |answer: &str, words: &[&str]| {
        let row = format!("{{\"question\": \"q\", \"answer\": {answer}}}\n");
        folder.refuses("nq_open", "NQ-open.dev.jsonl", row, words);
    };
    nq("[]", &["NQ-open.dev.jsonl: line 1", "no answer"]);
    nq("[\"a\", \" \"]", &["line 1", "answer to the question is empty"]);
    nq("[\"a\", 3]", &["line 1", "`answer`", "list of texts"]);
    // TriviaQA's rows.
    nq("\"a\", \"aliases\": [\"b\"]", &["line 1", "`answer`", "should be a list of texts"]);
    let trivia = |row: &str, words: &[&str]| {
        folder.refuses("triviaqa", "triviaqa-sm-sub.jsonl", row, words);
    };
    trivia(r#"{"question": "q", "answer": "a", "aliases": ["a", ""]}"#, &["line 1", "is empty"]);
    trivia(r#"{"question": "q"}"#, &["line 1", "no answer"]);
    // In TriviaQA's own files normalising leaves nothing of some aliases.
    let answer = r#"{"Value": "(a", "Aliases": ["(a", "ar"], "NormalizedAliases": ["", "ar"]}"#;
    let question = r#""Question": "q", "QuestionId": "x""#;
    let file = format!(r#"{{"Data": [{{{question}, "Answer": {answer}}}]}}"#);
    folder.write("unfiltered-web-dev.json", file);
    let task = Registry::standard().find("triviaqa").unwrap();
    let dataset = task.read(folder.0.path(), "validation").unwrap();
    let answers = Some(Reference::Answers(vec!["ar".to_owned()]));
    assert_eq!(dataset.examples[0].reference, answers);
    let record = fs::read_to_string(Path::new(MADE).join("superglue/ReCoRD/val.jsonl")).unwrap();
    let beyond = record.replacen("\"end\": ", "\"end\": 9", 1);
    folder.refuses("record", "val.jsonl", beyond, &["line 1", "passage.entities", "beyond"]);
    folder.refuses(
        "record",
        "val.jsonl",
        format!("{record}{record}"),
        &["line 2", "`2` occurs twice"],
    );
    let wsc = fs::read_to_string(Path::new(MADE).join("superglue/WSC/val.jsonl")).unwrap();
    let pronoun = wsc.replace("\"span2_text\": \"it\"", "\"span2_text\": \"she\"");
    folder.refuses("wsc", "val.jsonl", pronoun, &["val.jsonl: line 3", "span2_text", "`she`"]);
    folder.refuses(
        "wsc",
        "val.jsonl",
        wsc.replace(", \"label\": true", ""),
        &["line 1", "no label of wsc"],
    );
    let multirc = fs::read_to_string(Path::new(MADE).join("superglue/MultiRC/val.jsonl")).unwrap();
    folder.refuses(
        "multirc",
        "val.jsonl",
        multirc.replace("\"label\": 0", "\"label\": 2"),
        &["val.jsonl: line 1", "`2`", "no label of multirc"],
    );
}

#[test]
fn squad_is_checked_question_by_question() {
    let folder = Folder::new();
    let made = fs::read_to_string(Path::new(MADE).join("squad/dev-v1.1.json")).unwrap();
    let refuses = |from: &str, to: &str, words: &[&str]| {
        assert!(made.contains(from), "{from}");
        let words = [&["dev-v1.1.json"], words].concat();
        folder.refuses("squad", "dev-v1.1.json", made.replace(from, to), &words);
    };
    refuses("\"id\": \"q2\"", "\"id\": \"q1\"", &["`q1` occurs twice"]);
    // In bytes the offset would be three higher.
    refuses("\"answer_start\": 80", "\"answer_start\": 83", &["question q2", "`3,500`", "83"]);
    refuses("{\"answer_start\": 80, \"text\": \"3,500\"}", "", &["question q2", "no answer"]);
    refuses(
        "\"answer_start\": 80, \"text\": \"3,500\"",
        "\"answer_start\": 80, \"text\": \"\"",
        &["question q2", "is empty"],
    );
    refuses("\"qas\"", "\"questions\"", &["squad", "paragraphs[0]", "`qas`"]);
}

#[test]
fn names_of_tasks_splits_and_files_are_explained() {
    let folder = Folder::new();
    let error = Registry::standard().find("sst3").err().unwrap();
    says(error, &["`sst3`", "sst2, ", "nq_open", ".toml"]);
    says(Registry::standard().find("none.toml").err().unwrap(), &["none.toml"]);
    folder.refuses_split("mnli", "dev", &["mnli", "`dev`", "validation_mismatched"]);
    folder.refuses_split("sst2", "train", &["train", "sst2", "glue/SST-2/train.tsv", "nothing"]);
    let nowhere = Registry::standard().find("sst2").unwrap();
    says(nowhere.read(Path::new("nowhere"), "train").unwrap_err(), &["nowhere"]);
    folder.write("dev.eng.txt", "one\ntwo\n");
    folder.write("dev.deu.txt", "eins\n");
    let task = Registry::standard().find("../../configs/tasks/translate_en_de.toml").unwrap();
    let error = task.read(folder.0.path(), "validation").unwrap_err();
    says(error, &["dev.deu.txt has 1 lines", "dev.eng.txt has 2"]);
}

#[test]
fn predictions_must_be_about_the_split() {
    let folder = Folder::new();
    let read = |task: &str, file: &str, contents: &str| {
        let task = Registry::standard().find(task).unwrap();
        let dataset = task.read(Path::new(MADE), "validation").unwrap();
        let file = folder.write(file, contents);
        read_predictions(&file, &*task, &dataset, "validation")
    };
    let refuses = |task: &str, file: &str, contents: &str, words: &[&str]| {
        let words = [&[file], words].concat();
        says(read(task, file, contents).unwrap_err(), &words);
    };
    let counts = ["validation split of sst2 has 4 examples"];
    refuses("sst2", "few.txt", "a\nb\nc\n", &[&["3 lines"], &counts[..]].concat());
    refuses("sst2", "many.txt", "a\nb\nc\nd\n\n", &[&["5 lines"], &counts[..]].concat());
    refuses("sst2", "none.txt", "", &[&["0 lines"], &counts[..]].concat());
    refuses(
        "squad",
        "p.json",
        r#"{"q1": "a", "q2": "b", "q3": "c"}"#,
        &["1 ids are not in", "squad", "`q3`"],
    );
    refuses(
        "squad",
        "p.json",
        r#"{"q2": "b"}"#,
        &["1 ids of the validation split of squad are missing", "`q1`"],
    );
    refuses("squad", "p.json", r#"{"q1": "a", "q2": "b", "q1": "c"}"#, &["`q1` occurs twice"]);
    refuses("squad", "p.json", r#"{"q1": "a", "q2": ["b"]}"#, &["one text for each id", "line 1"]);
    refuses("squad", "p.json", r#"["a", "b"]"#, &["one text for each id"]);
    refuses("squad", "p.json", "{\"q1\": ", &["one text for each id"]);

    // What is fine: no line end at the last line, empty answers, ids in any order, and for ReCoRD a line for each
    // question or for each of its answers.
    assert_eq!(read("sst2", "p.txt", "a\r\n\n c \nd").unwrap(), ["a", "", "c", "d"]);
    assert_eq!(read("squad", "p.json", r#"{"q2": "", "q1": "Zoë"}"#).unwrap(), ["Zoë", ""]);
    assert_eq!(read("squad", "p", " {\"q2\": \"x\", \"q1\": \"{\"}").unwrap(), ["{", "x"]);
    assert_eq!(read("squad", "p.txt", "{\nSt . John ' s\n").unwrap(), ["{", "St. John's"]);
    assert_eq!(read("record", "p.txt", "Ann\nRome\n").unwrap(), ["Ann", "Rome"]);
    assert_eq!(read("record", "p.txt", "Ann\nZoë\nRome\n").unwrap(), ["Ann", "Rome"]);
    assert_eq!(read("triviaqa", "p.json", r#"{"1": "b", "0": "a"}"#).unwrap(), ["a", "b"]);

    let task = Registry::standard().find("sst2").unwrap();
    let dataset = task.read(Path::new(MADE), "test").unwrap();
    let error = evaluate(&*task, &dataset, "test", &["a".to_owned(), "b".to_owned()]).unwrap_err();
    says(error, &["test split of sst2", "no labels", "test.tsv"]);
}
