//! Every task's reader, template, metrics and submission on a few made rows in the benchmark's original layout.

use altup_data::tasks::{Dataset, DescribedTask, Reference, Registry, Task, evaluate};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DATA: &str = "tests/fixtures/benchmarks";

fn task(name: &str) -> Arc<dyn Task> {
    Registry::standard().find(name).unwrap()
}

fn read(name: &str, split: &str) -> Dataset {
    task(name).read(Path::new(DATA), split).unwrap()
}

/// Inputs and targets of a split.
fn texts(name: &str, split: &str) -> Vec<(String, String)> {
    let examples = read(name, split).examples;
    examples.into_iter().map(|of| (of.input, of.target.unwrap_or_default())).collect()
}

#[track_caller]
fn assert_texts(name: &str, split: &str, expected: &[(&str, &str)]) {
    let found = texts(name, split);
    let found: Vec<(&str, &str)> =
        found.iter().map(|(input, target)| (&**input, &**target)).collect();
    assert_eq!(found, expected, "{name}, {split}");
}

/// Metrics of one answer for each judged example.
fn score(name: &str, answers: &[&str]) -> Vec<(&'static str, f64)> {
    let (task, dataset) = (task(name), read(name, "validation"));
    let examples: Vec<_> = dataset.judged().collect();
    let answers = examples.iter().zip(answers).map(|(example, text)| task.answer(example, text));
    let answers: Vec<String> = answers.collect();
    let scores = evaluate(&*task, &dataset, "validation", &answers).unwrap();
    assert_eq!(scores.metrics.iter().map(|(name, _)| name).collect::<Vec<_>>(), task.metrics());
    scores.metrics.iter().collect()
}

/// Name and contents of the file to hand in.
fn submission(name: &str, split: &str, answers: &[&str]) -> (String, String, usize) {
    let dataset = read(name, split);
    let answers: Vec<String> = answers.iter().map(|text| String::from(*text)).collect();
    let judged: Vec<_> = dataset.judged().collect();
    let file = task(name).submission(split, &judged, &answers);
    (file.file_name, file.contents, file.invalid)
}

#[test]
fn glue_has_t5s_texts() {
    assert_texts(
        "cola",
        "train",
        &[
            ("cola sentence: The river froze over.", "acceptable"),
            ("cola sentence: The river froze it over the.", "unacceptable"),
        ],
    );
    assert_texts(
        "cola",
        "validation",
        &[
            ("cola sentence: \"Wait,\" she said.", "acceptable"),
            ("cola sentence: Wait \"she said.", "unacceptable"),
            ("cola sentence: They left.", "acceptable"),
        ],
    );
    // A space that ends a sentence of SST-2 stays.
    assert_texts(
        "sst2",
        "train",
        &[
            ("sst2 sentence: a warm and \"quiet film ", "positive"),
            ("sst2 sentence: hopelessly dull ", "negative"),
        ],
    );
    // Behind the byte order mark, a quote that nothing closes.
    assert_texts(
        "mrpc",
        "validation",
        &[
            (
                "mrpc sentence1: The shop opened on Monday. sentence2: \"The shop opened Monday.",
                "equivalent",
            ),
            (
                "mrpc sentence1: Rain is \"likely\" today. sentence2: Rain was likely then.",
                "not_equivalent",
            ),
        ],
    );
    // Halves of a step of 0.2 go to the even step: 0.5 is 2.5 steps, 2.5 is 12.5.
    assert_texts(
        "stsb",
        "validation",
        &[
            ("stsb sentence1: A man sings. sentence2: A man is singing.", "4.8"),
            ("stsb sentence1: Big news. sentence2: No idea.", "1.6"),
            ("stsb sentence1: A dog runs. sentence2: A cat sleeps.", "0.4"),
            ("stsb sentence1: It rains. sentence2: It is raining.", "5.0"),
            ("stsb sentence1: Two birds sit. sentence2: Birds sit on a wire.", "2.4"),
        ],
    );
    assert_eq!(read("stsb", "validation").examples[1].reference, Some(Reference::Score(1.66)));
    // A row that is cut short, as in GLUE's own file.
    assert_texts(
        "qqp",
        "validation",
        &[
            (
                "qqp question1: Why do I get bored? question2: Why do I get bored so quickly?",
                "duplicate",
            ),
            ("qqp question1: Is it far? question2: Is it near?", "not_duplicate"),
        ],
    );
    // The others keep the numbers of their rows, by which answers are handed in.
    let qqp = read("qqp", "validation");
    assert_eq!(qqp.skipped_rows, 1);
    assert_eq!([&*qqp.examples[0].id, &*qqp.examples[1].id], ["0", "2"]);
    let matched = [
        ("mnli hypothesis: The tea is cold. premise: The tea is hot.", "contradiction"),
        ("mnli hypothesis: She reads at home. premise: She reads.", "neutral"),
    ];
    assert_texts("mnli", "validation", &matched);
    assert_texts("mnli", "validation_matched", &matched);
    assert_texts(
        "mnli",
        "validation_mismatched",
        &[("mnli hypothesis: A door is open. premise: All doors are open.", "entailment")],
    );
    assert_texts(
        "mnli",
        "train",
        &[("mnli hypothesis: He slept. premise: He slept well.", "entailment")],
    );
    assert_texts(
        "qnli",
        "validation",
        &[
            (
                "qnli question: Where is the well? sentence: The well is behind the barn.",
                "entailment",
            ),
            ("qnli question: Who dug it? sentence: The well is behind the barn.", "not_entailment"),
        ],
    );
    assert_texts(
        "rte",
        "validation",
        &[
            (
                "rte sentence1: The bridge, built in 1901, fell. sentence2: The bridge fell.",
                "entailment",
            ),
            ("rte sentence1: The bridge stands. sentence2: The bridge \"fell\".", "not_entailment"),
        ],
    );
    let wnli = |second: &str| {
        let first = "The cup broke on the tile because it was thin.";
        format!("wnli sentence1: {first} sentence2: {second}")
    };
    assert_texts(
        "wnli",
        "validation",
        &[
            (&wnli("The cup was thin."), "entailment"),
            (&wnli("The tile was thin."), "not_entailment"),
        ],
    );
}

#[test]
fn super_glue_has_t5s_texts() {
    assert_texts(
        "boolq",
        "validation",
        &[
            ("boolq passage: Tea -- Tea is a drink. question: is tea a drink", "True"),
            ("boolq passage: Coffee -- Coffee is a \"drink\". question: is coffee a tree", "False"),
        ],
    );
    assert_texts(
        "cb",
        "validation",
        &[
            ("cb hypothesis: it is late premise: They think it is late. It is.", "entailment"),
            ("cb hypothesis: it is late premise: Is it late?", "neutral"),
            ("cb hypothesis: it is late premise: It isn't late.", "contradiction"),
        ],
    );
    assert_texts(
        "copa",
        "validation",
        &[
            (
                "copa choice1: The bulb burned through. choice2: The chair broke. premise: The lamp \
             went out. question: cause",
                "choice1",
            ),
            (
                "copa choice1: The wall fell. choice2: The door opened. premise: He turned the key. \
             question: effect",
                "choice2",
            ),
        ],
    );
    assert_texts(
        "sg_rte",
        "validation",
        &[
            ("rte hypothesis: A bridge fell. premise: The bridge fell in 1901.", "entailment"),
            ("rte hypothesis: A bridge fell. premise: The bridge stands.", "not_entailment"),
        ],
    );
    assert_texts(
        "wic",
        "validation",
        &[
            (
                "wic sentence1: The bank was steep. sentence2: The bank was closed. word: bank",
                "False",
            ),
            ("wic sentence1: They run fast. sentence2: We ran home. word: run", "True"),
        ],
    );
    let multirc = |question: &str, answer: &str| {
        format!(
            "multirc question: {question} answer: {answer} paragraph: Sent 1: Once there was a \
             squirrel named Joey. Sent 2: Joey liked pie. "
        )
    };
    assert_texts(
        "multirc",
        "validation",
        &[
            (&multirc("What did Joey like?", "Pie"), "True"),
            (&multirc("What did Joey like?", "Soup"), "False"),
            (&multirc("Who liked pie?", "The squirrel"), "True"),
            (&multirc("Who liked pie?", "Joey"), "True"),
        ],
    );
    // Entities once and in order, by offsets in characters; an example for each answer.
    let record = |query: &str| {
        let passage = "Zoë met Ann in Rome. Ann lives in Rome. Zoë travels";
        format!("record query: {query} entities: Ann, Rome, Zoë passage: {passage}")
    };
    let expected = [
        (&*record("It was @placeholder who came."), "Ann"),
        (&*record("It was @placeholder who came."), "Zoë"),
        (&*record("They were in @placeholder."), "Rome"),
    ];
    assert_texts("record", "train", &expected);
    assert_texts("record", "validation", &expected);
    assert_eq!(read("record", "validation").judged().count(), 2);
    let who = "wsc: Ann asked Tom if *he* could lend some money.";
    let hen = "wsc: The fox saw the hen . It ran, and \"Good for *it* ,\" said he.";
    assert_texts("wsc", "validation", &[(who, "Tom"), (who, "Ann"), (hen, "the hen")]);
    // Nothing is learned from a noun that is not meant.
    assert_texts("wsc", "train", &[(who, "Tom"), (hen, "the hen")]);
}

#[test]
fn questions_have_t5s_texts() {
    let context = "Café Zoë ( opened 1901 ) is in St . John ' s ; the café near St . John ' s harbour \
                   seats 3 , 500 . ";
    assert_texts(
        "squad",
        "validation",
        &[
            (&format!("question: Where is Café Zoë ? context: {context}"), "St . John ' s"),
            (&format!("question: How many \" seats \" are there ? context: {context}"), "3 , 500"),
        ],
    );
    let answers = ["St. John's", "St. John's", "in St. John's"].map(str::to_owned).to_vec();
    let examples = read("squad", "validation").examples;
    assert_eq!(examples[0].reference, Some(Reference::Answers(answers)));
    assert_texts(
        "nq_open",
        "validation",
        &[
            ("nq question: when did the bridge fall", "14 May 1901"),
            ("nq question: who built it", "Ann Lee"),
        ],
    );
    assert_texts("nq_open", "efficientqa", &[("nq question: who saw it", "Tom")]);
    let triviaqa = |folder: &str| {
        let dataset = task("triviaqa").read(&Path::new(DATA).join(folder), "validation").unwrap();
        dataset.examples
    };
    let lines = triviaqa("qa/triviaqa");
    assert_eq!(lines[0].input, "trivia_qa question: Which vegetable makes you cry?");
    assert_eq!(lines[0].target.as_deref(), Some("Onion"));
    let aliases = ["Onions", "Onion", "Bulb onion"].map(str::to_owned).to_vec();
    assert_eq!(lines[0].reference, Some(Reference::Answers(aliases)));
    assert_eq!([&*lines[0].id, &*lines[1].id], ["0", "1"]);
    let own = triviaqa("triviaqa-unfiltered");
    assert_eq!(own[0].input, lines[0].input);
    assert_eq!(own[1].target.as_deref(), Some("Ann"));
    let answers = ["ann", "Annie Lee"].map(str::to_owned).to_vec();
    assert_eq!(own[1].reference, Some(Reference::Answers(answers)));
    assert_eq!([&*own[0].id, &*own[1].id], ["tc_1", "tc_2"]);
}

#[test]
fn test_files_have_no_labels() {
    for task in Registry::standard().iter() {
        for split in task.files().splits.iter().filter(|split| split.name.starts_with("test")) {
            // Their JSON lines come first in the folder of both.
            let folder = if task.name() == "triviaqa" { "triviaqa-unfiltered" } else { "" };
            let data = Path::new(DATA).join(folder);
            let dataset = task.read(&data, &split.name).unwrap();
            let is_open = |target: &Option<String>| target.is_none() || task.name() == "wsc";
            for example in &dataset.examples {
                assert!(is_open(&example.target) && example.reference.is_none(), "{example:?}");
                assert!(!example.input.contains("{"), "{example:?}");
            }
            let answers = vec![String::new(); dataset.judged().count()];
            let error = evaluate(&**task, &dataset, &split.name, &answers).unwrap_err();
            assert!(error.to_string().contains("has no labels"), "{error}");
        }
    }
    assert_eq!(read("cola", "test").examples[1].input, "cola sentence: Night all fell snow.");
}

#[test]
fn a_task_is_found_in_its_own_folder_and_in_those_above() {
    for folder in ["glue/SST-2", "glue", ""] {
        let dataset = task("sst2").read(&Path::new(DATA).join(folder), "validation").unwrap();
        assert_eq!(dataset.examples.len(), 4);
        assert_eq!(
            dataset.files,
            [Path::new(DATA).join(folder).join(match folder {
                "" => "glue/SST-2/dev.tsv",
                "glue" => "SST-2/dev.tsv",
                _ => "dev.tsv",
            })]
        );
    }
}

#[test]
fn perfect_answers_score_one() {
    for task in Registry::standard().iter() {
        let dataset = read(task.name(), "validation");
        let answer = |example: &altup_data::tasks::Example| match (&example.reference, task.name())
        {
            (Some(Reference::Score(score)), _) => score.to_string(),
            (Some(Reference::Class(class)), "wsc") => ["False", "True"][*class].to_owned(),
            _ => task.answer(example, example.target.as_ref().unwrap()),
        };
        let answers: Vec<String> = dataset.judged().map(answer).collect();
        let scores = evaluate(&**task, &dataset, "validation", &answers).unwrap();
        assert_eq!(scores.examples, dataset.judged().count());
        for (metric, value) in scores.metrics.iter() {
            assert!((value - 1.0).abs() < 1e-12, "{} {metric} {value}", task.name());
        }
    }
}

#[test]
fn scores_by_hand() {
    let third = 1.0 / 3.0;
    assert_eq!(
        score("sst2", &["positive", "negative", " negative", "neutral"]),
        [("accuracy", 0.5)]
    );
    // Of the two that are equivalent by the answers one is; the text that is no label counts as the wrong one.
    assert_eq!(score("mrpc", &["equivalent", "same"]), [("f1", 2.0 * third), ("accuracy", 0.5)]);
    // Entailment 1, neutral 0, contradiction 2/3.
    let cb = score("cb", &["entailment", "contradiction", "contradiction"]);
    assert_eq!(cb, [("f1", (1.0 + 2.0 * third) / 3.0), ("accuracy", 2.0 * third)]);
    // One wrong answer of the second question: 2 of 3 true ones found, none too many.
    let multirc = score("multirc", &["True", "False", "True", "False"]);
    assert_eq!(multirc, [("f1", 0.8), ("em", 0.5)]);
    assert_eq!(score("record", &["ann", "the Rome"]), [("em", 1.0), ("f1", 1.0)]);
    assert_eq!(score("wsc", &["tom", "Tom", "his fox"]), [("accuracy", 2.0 * third)]);
    // In T5's spelling, and in one's own with a word too many: 2 of 3 and 2 of 2.
    let squad = score("squad", &["St . John ' s", "3,500"]);
    assert_eq!(squad, [("em", 1.0), ("f1", 1.0)]);
    assert_eq!(score("squad", &["St. John's harbour", ""]), [("em", 0.0), ("f1", 0.4)]);
    assert_eq!(score("triviaqa", &["an ONION!", "rolling stones"]), [("em", 1.0), ("f1", 1.0)]);
    assert_eq!(
        score("nq_open", &["may 1901.", "Ann"]),
        [("em", 0.5), ("f1", (1.0 + 2.0 * third) / 2.0)]
    );
    // A text that is no number is -1.
    let [(_, pearson), (_, spearman)] = score("stsb", &["4", "3", "none", "5", "2"])[..] else {
        panic!("two metrics")
    };
    assert!(pearson > 0.8 && pearson < 1.0, "{pearson}");
    // Ranks 4 2 1 5 3 and 4 3 1 5 2: 1 − 6·(1 + 1)/(5·24)
    assert!((spearman - 0.9).abs() < 1e-12, "{spearman}");
}

#[test]
fn submissions_are_what_the_benchmarks_take() {
    let file = |name: &str, split, answers: &[&str]| {
        let (file, contents, invalid) = submission(name, split, answers);
        assert_eq!(invalid, 0, "{name}");
        (file, contents)
    };
    let glue = |name: &str, rows: &str| (name.to_owned(), format!("index\tprediction\n{rows}"));
    assert_eq!(file("sst2", "test", &["positive", "negative"]), glue("SST-2.tsv", "0\t1\n1\t0\n"));
    assert_eq!(file("stsb", "test", &["3.4"]), glue("STS-B.tsv", "0\t3.4\n"));
    assert_eq!(file("rte", "test", &["entailment"]), glue("RTE.tsv", "0\tentailment\n"));
    assert_eq!(file("mnli", "test", &["neutral"]), glue("MNLI-m.tsv", "0\tneutral\n"));
    assert_eq!(file("mnli", "test_mismatched", &["neutral"]), glue("MNLI-mm.tsv", "0\tneutral\n"));
    let lines = |name: &str, lines: &str| (name.to_owned(), format!("{lines}\n"));
    let boolq = lines("BoolQ.jsonl", r#"{"idx":0,"label":"true"}"#);
    assert_eq!(file("boolq", "test", &["True"]), boolq);
    assert_eq!(file("copa", "test", &["choice2"]), lines("COPA.jsonl", r#"{"idx":0,"label":1}"#));
    let cb = lines("CB.jsonl", r#"{"idx":0,"label":"neutral"}"#);
    assert_eq!(file("cb", "test", &["neutral"]), cb);
    let wsc = lines("WSC.jsonl", r#"{"idx":0,"label":"True"}"#);
    assert_eq!(file("wsc", "test", &["Tom"]), wsc);
    let record =
        lines("ReCoRD.jsonl", "{\"idx\":2,\"label\":\"Ann\"}\n{\"idx\":3,\"label\":\"Rome\"}");
    assert_eq!(file("record", "test", &["Ann", "Rome"]), record);
    let multirc = r#"{"idx":5,"passage":{"questions":[{"idx":11,"answers":[{"idx":50,"label":1},{"idx":51,"label":0}]},{"idx":12,"answers":[{"idx":52,"label":0},{"idx":53,"label":1}]}]}}"#;
    assert_eq!(
        file("multirc", "test", &["True", "False", "False", "True"]),
        lines("MultiRC.jsonl", multirc)
    );
    let squad = lines("squad.json", r#"{"q1":"St. John's","q2":"3,500"}"#);
    assert_eq!(file("squad", "validation", &["St. John's", "3,500"]), squad);
    let nq = lines("nq_open.jsonl", r#"{"question":"who saw it","prediction":"Ann"}"#);
    assert_eq!(file("nq_open", "efficientqa", &["Ann"]), nq);
    // What is no label is counted.
    assert_eq!(submission("sst2", "test", &["great", "positive"]).2, 1);

    let folder = tempfile::tempdir().unwrap();
    let judged = read("sst2", "test");
    let judged: Vec<_> = judged.judged().collect();
    let answers = ["positive".to_owned(), "negative".to_owned()];
    let written = task("sst2").submission("test", &judged, &answers);
    let written = written.write(&folder.path().join("new")).unwrap();
    assert_eq!(std::fs::read_to_string(written).unwrap(), "index\tprediction\n0\t1\n1\t0\n");
}

#[test]
fn ones_own_tasks_are_described_in_toml() {
    let described = |file: &str| -> Arc<dyn Task> {
        let path = Path::new("../../configs/tasks").join(file);
        Registry::standard().find(path.to_str().unwrap()).unwrap()
    };
    let own = PathBuf::from(DATA).join("own");
    let translation = described("translate_en_de.toml").read(&own, "validation").unwrap();
    assert_eq!(translation.examples[1].input, "translate English to German: Thank you.");
    assert_eq!(translation.examples[1].target.as_deref(), Some("Danke."));
    let summaries = described("summarize.toml");
    let dataset = summaries.read(&own, "validation").unwrap();
    assert_eq!(dataset.examples[0].input, "summarize: It rained {all} day. The river rose.");
    let answers = ["The river rose after rain.".to_owned(), "A loss.".to_owned()];
    let scores = evaluate(&*summaries, &dataset, "validation", &answers).unwrap();
    // The second: "a" of "a win" and "a loss", no pair of words.
    let expected = [("rouge_1", 0.75), ("rouge_2", 0.5), ("rouge_l", 0.75), ("rouge_lsum", 0.75)];
    assert_eq!(scores.metrics.iter().collect::<Vec<_>>(), expected);

    let mut registry = Registry::standard();
    registry.add(summaries).unwrap();
    let again = registry.add(described("summarize.toml")).unwrap_err();
    assert!(again.to_string().contains("`summarize`"), "{again}");
    assert_eq!(registry.find("summarize").unwrap().name(), "summarize");
}

#[test]
fn a_description_that_says_too_little_is_refused() {
    let base = "name = \"mine\"\nformat = \"tsv\"\ntemplate = \"say {a}\"\n\
                splits = { train = \"t.tsv\" }\n";
    let refused = |toml: &str, words: &[&str]| {
        let error = DescribedTask::parse(toml, "mine.toml").unwrap_err().to_string();
        for word in ["mine.toml"].iter().chain(words) {
            assert!(error.contains(word), "{error:?} doesn't say {word:?}");
        }
    };
    let label = |words: &str, metric: &str| {
        format!("{base}[label]\ncolumn = \"l\"\nwords = [{words}]\nmetrics = [\"{metric}\"]\n")
    };
    let two = "{ value = 0, word = \"no\" }, { value = 1, word = \"yes\" }";
    DescribedTask::parse(&label(two, "f1"), "mine.toml").unwrap();
    // Sources whose translations nobody has.
    let lines = |split: &str| {
        let splits = format!("splits = {{ {split} = {{ a = \"a.txt\" }} }}\n");
        let head = "name = \"mine\"\nformat = \"lines\"\ntemplate = \"say {a}\"\n";
        format!("{head}{splits}[text]\ntemplate = \"{{b}}\"\nmetrics = [\"bleu\"]\n")
    };
    DescribedTask::parse(&lines("test"), "mine.toml").unwrap();
    refused(&lines("train"), &["splits.train", "`b`"]);
    refused(base, &["exactly one of", "[label]"]);
    let both = format!("{}[text]\ntemplate = \"{{b}}\"\nmetrics = []\n", label(two, "f1"));
    refused(&both, &["exactly one of"]);
    refused(&label(two, "f1\", \"macro_f1"), &["two of the name f1"]);
    refused(&label(two, "f1").replace("\"f1\"", ""), &["metrics names none"]);
    refused(&label(two, "rouge_l"), &["line 8", "rouge_l", "macro_f1"]);
    refused(&label("{ value = 0, word = \"no\" }", "accuracy"), &["label.words", "two"]);
    refused(
        &label("{ value = 0, word = \"no\" }, { value = \"0\", word = \"yes\" }", "f1"),
        &["twice"],
    );
    let three = format!("{two}, {{ value = 2, word = \"maybe\" }}");
    refused(&label(&three, "f1"), &["macro_f1"]);
    refused(&label(two, "f1").replace("{a}", "{a"), &["say {a", "brace"]);
    refused(&label(two, "f1").replace("name = \"mine\"", "name = \"a/b\""), &["a/b"]);
    refused(&label(two, "f1").replace("format", "kind"), &["line 2", "kind"]);
    let lines = label(two, "f1").replace("\"tsv\"", "\"lines\"");
    refused(&lines, &["splits.train", "each column"]);
}
