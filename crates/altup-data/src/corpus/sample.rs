//! A little text out of every file.

use std::sync::Arc;

use super::files::{Format, SourceFile};
use super::{Corpus, Documents, OnError};
use crate::DataError;

/// How much more may be read of a file than is taken of it, so that what is taken comes from all of
/// a small file, and a large one need not be read to its end.
const READ_FACTOR: u64 = 16;

/// The least that is worth opening a larger file for, in bytes.
const MIN_TAKE: u64 = 1 << 10;

impl Corpus {
    /// Calls `visit` with up to `max_bytes` of text from files all over the corpus, each with its
    /// share by size, spread evenly over the start of the file; for files up to sixteen times their
    /// share, over all of it. A corpus that isn't larger is visited whole.
    ///
    /// Documents that are held out take part, as the sample is drawn from the files.
    pub(crate) fn sample(
        &self,
        max_bytes: u64,
        on_error: OnError,
        visit: &mut dyn FnMut(&str),
    ) -> Result<(), DataError> {
        let total: u64 = self.source_files().map(text_bytes).sum();
        let (mut before, mut taken) = (0, 0);
        for file in self.source_files() {
            let text_bytes = text_bytes(file);
            before += text_bytes;
            // What should have been taken behind this file. Of a corpus that isn't larger that is all of it, and some
            // more: the sizes of texts that are compressed are a guess, and no file may take what others need.
            let quota = share(max_bytes, before, total).saturating_sub(taken);
            if quota >= MIN_TAKE.min(max_bytes).min(text_bytes) {
                taken += sample_file(file, text_bytes, quota, on_error, visit)?;
            }
        }
        Ok(())
    }
}

/// The size of a file's text, as far as it can be told without reading it.
fn text_bytes(file: &SourceFile) -> u64 {
    let name = file.path.extension().unwrap_or_default();
    let is_compressed = file.format == Format::Parquet || name == "gz" || name == "zst";
    // Web text shrinks to about a third.
    if is_compressed { file.size.saturating_mul(3) } else { file.size }
}

fn share(of: u64, part: u64, whole: u64) -> u64 {
    (u128::from(of) * u128::from(part) / u128::from(whole.max(1))) as u64
}

/// Takes up to `quota` bytes, and returns how many.
fn sample_file(
    file: &SourceFile,
    text_bytes: u64,
    quota: u64,
    on_error: OnError,
    visit: &mut dyn FnMut(&str),
) -> Result<u64, DataError> {
    let window = text_bytes.min(quota.saturating_mul(READ_FACTOR));
    let (mut read, mut taken) = (0, 0);
    for document in Documents::new(vec![file.clone()], Arc::default()) {
        let text = match document {
            Ok(document) => document.text,
            Err(DataError::Defect(_)) if on_error == OnError::Skip => continue,
            Err(error) => return Err(error),
        };
        if quota >= window || taken <= share(quota, read, window) {
            let part = whole_words(&text, quota - taken);
            visit(part);
            taken += part.len() as u64;
        }
        read += text.len() as u64;
        if taken >= quota || (read >= window && quota < window) {
            break;
        }
    }
    Ok(taken)
}

/// The start of a text, of at most `max_bytes` where a word ends.
fn whole_words(text: &str, max_bytes: u64) -> &str {
    match usize::try_from(max_bytes) {
        Ok(max_bytes) if max_bytes < text.len() => {
            let start = &text[..text.floor_char_boundary(max_bytes)];
            start.rfind(char::is_whitespace).map_or("", |end| &start[..end])
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn corpus(files: &[(&str, String)]) -> (tempfile::TempDir, Corpus) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let corpus = Corpus::open(&[folder.path().to_string_lossy().into_owned()]).unwrap();
        (folder, corpus)
    }

    fn sampled(corpus: &Corpus, max_bytes: u64) -> Vec<String> {
        let mut texts = Vec::new();
        corpus.sample(max_bytes, OnError::Stop, &mut |text| texts.push(text.to_owned())).unwrap();
        texts
    }

    #[test]
    fn a_small_corpus_is_sampled_whole() {
        let (_folder, corpus) =
            corpus(&[("a.txt", "one\n\ntwo".into()), ("b.txt", "three".into())]);
        assert_eq!(sampled(&corpus, 1 << 20), ["one\n", "two\n", "three\n"]);

        let (_folder, corpus) = corpus_of_short_files(500);
        assert_eq!(sampled(&corpus, corpus.bytes() + 1000).len(), 500);
    }

    fn corpus_of_short_files(count: usize) -> (tempfile::TempDir, Corpus) {
        let name = |number| format!("{number:03}.txt");
        let files: Vec<String> = (0..count).map(name).collect();
        let files: Vec<(&str, String)> =
            files.iter().map(|name| (name.as_str(), format!("{}\n", "word ".repeat(80)))).collect();
        corpus(&files)
    }

    #[test]
    fn a_file_that_unpacks_to_more_than_it_seems_leaves_the_others_their_shares() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            let text: String = (0..30_000).map(|n| format!("{name}{} \n\n", n % 10)).collect();
            let file = fs::File::create(folder.path().join(format!("{name}.txt.gz"))).unwrap();
            let mut file = flate2::write::GzEncoder::new(file, flate2::Compression::best());
            file.write_all(text.as_bytes()).unwrap();
            file.finish().unwrap();
        }
        let corpus = Corpus::open(&[folder.path().to_string_lossy().into_owned()]).unwrap();
        let guess: u64 = corpus.source_files().map(text_bytes).sum();
        let max_bytes = 60_000;
        assert!(guess < max_bytes, "{guess}");
        let texts = sampled(&corpus, max_bytes);
        for name in ["a", "b", "c"] {
            let bytes: usize =
                texts.iter().filter(|text| text.starts_with(name)).map(String::len).sum();
            assert!((15_000..=20_000).contains(&bytes), "{name}: {bytes}");
        }
    }

    #[test]
    fn every_file_and_every_part_of_a_small_file_is_sampled() {
        let documents = |name: char| -> String {
            (0..1000).map(|n| format!("{name}{n} {}\n\n", "word ".repeat(20))).collect()
        };
        let (_folder, corpus) = corpus(&['a', 'b', 'c'].map(|name| match name {
            'a' => ("a.txt", documents('a')),
            'b' => ("b.txt", documents('b')),
            _ => ("c.txt", documents('c')),
        }));
        let texts = sampled(&corpus, 60_000);
        let total: usize = texts.iter().map(String::len).sum();
        assert!((50_000..=60_000).contains(&total), "{total}");
        for name in ['a', 'b', 'c'] {
            let numbers: Vec<usize> = texts
                .iter()
                .filter_map(|text| text.split(' ').next()?.strip_prefix(name)?.parse().ok())
                .collect();
            assert!(numbers.len() > 100, "{name}: {numbers:?}");
            let thirds = [0..333, 333..666, 666..1000];
            for third in thirds {
                assert!(numbers.iter().any(|number| third.contains(number)), "{name}: {third:?}");
            }
        }
    }

    #[test]
    fn no_more_is_read_of_a_large_file_than_sixteen_times_what_is_taken() {
        let text: String = (0..100_000).map(|n| format!("document {n}\n\n")).collect();
        let (_folder, corpus) = corpus(&[("a.txt", text)]);
        let number = |text: &String| text.strip_prefix("document ")?.trim().parse::<u64>().ok();
        let number = sampled(&corpus, 10_000).iter().rev().find_map(number).unwrap();
        assert!((9_000..=11_500).contains(&number), "{number}");
    }

    #[test]
    fn a_long_document_gives_its_share_in_whole_words() {
        let text = "word ".repeat(10_000);
        let (_folder, corpus) = corpus(&[("a.txt", text.clone()), ("b.txt", text)]);
        let texts = sampled(&corpus, 4001);
        assert_eq!(texts.len(), 2);
        for text in texts {
            assert!((1995..=2001).contains(&text.len()), "{}", text.len());
            assert!(text.split_whitespace().all(|word| word == "word"), "{text}");
        }
    }
}
