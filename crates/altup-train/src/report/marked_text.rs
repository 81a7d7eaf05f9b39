//! Texts with blanks, in pieces that a page shows in different ways.

use std::ops::Range;

use serde::Serialize;

/// A stretch of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Piece {
    /// What it is.
    pub(super) kind: PieceKind,
    /// The letters.
    pub(super) text: String,
}

/// What a stretch of a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PieceKind {
    /// Text that was there.
    Plain,
    /// A sentinel.
    Blank,
    /// What a model wrote in the place of sentinels.
    Written,
}

impl Piece {
    fn new(kind: PieceKind, text: &str) -> Self {
        Self { kind, text: text.to_owned() }
    }
}

/// A prompt, with its blanks as pieces of their own.
pub(super) fn with_blanks(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(Range { start, end }) = first_sentinel(rest) {
        if start > 0 {
            pieces.push(Piece::new(PieceKind::Plain, &rest[..start]));
        }
        pieces.push(Piece::new(PieceKind::Blank, &rest[start..end]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::new(PieceKind::Plain, rest));
    }
    pieces
}

/// The filled text, with what stands in the place of the prompt's sentinels as pieces of their own, or what follows
/// on a prompt without any. Where the text does not follow the prompt, it is shown as it is.
pub(super) fn with_written(prompt: &str, filled: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = filled;
    let prompt = with_blanks(prompt);
    let has_blanks = prompt.iter().any(|piece| piece.kind == PieceKind::Blank);
    let mut in_blank = false;
    let mut add = |text: &str, in_blank: bool| {
        let kind =
            if in_blank && !text.trim().is_empty() { PieceKind::Written } else { PieceKind::Plain };
        if !text.is_empty() {
            pieces.push(Piece::new(kind, text));
        }
    };
    for piece in prompt {
        // Tokenizers change the spaces at the edges of a blank.
        let kept = piece.text.trim();
        if piece.kind == PieceKind::Blank {
            in_blank = true;
        } else if !kept.is_empty() {
            let Some(at) = rest.find(kept) else { return with_blanks(filled) };
            add(&rest[..at], in_blank);
            add(kept, false);
            rest = &rest[at + kept.len()..];
            in_blank = false;
        }
    }
    add(rest, in_blank || !has_blanks);
    pieces
}

/// Where the first `<extra_id_…>` lies.
fn first_sentinel(text: &str) -> Option<Range<usize>> {
    const OPENING: &str = "<extra_id_";
    text.match_indices(OPENING).find_map(|(start, _)| {
        let number = start + OPENING.len();
        let digits = text[number..].bytes().take_while(u8::is_ascii_digit).count();
        let end = number + digits;
        (digits > 0 && text[end..].starts_with('>')).then_some(start..end + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::PieceKind::{Blank, Plain, Written};
    use super::*;

    fn read(pieces: Vec<Piece>) -> Vec<(PieceKind, String)> {
        pieces.into_iter().map(|piece| (piece.kind, piece.text)).collect()
    }

    fn expected(pieces: &[(PieceKind, &str)]) -> Vec<(PieceKind, String)> {
        pieces.iter().map(|&(kind, text)| (kind, text.to_owned())).collect()
    }

    #[test]
    fn what_the_model_wrote_is_marked() {
        let prompt = "Thank you <extra_id_0> me to your party <extra_id_1> week.";
        let filled = "Thank you for <b>inviting</b> me to your party last week.";
        assert_eq!(
            read(with_blanks(prompt)),
            expected(&[
                (Plain, "Thank you "),
                (Blank, "<extra_id_0>"),
                (Plain, " me to your party "),
                (Blank, "<extra_id_1>"),
                (Plain, " week."),
            ])
        );
        assert_eq!(
            read(with_written(prompt, filled)),
            expected(&[
                (Plain, "Thank you"),
                (Written, " for <b>inviting</b> "),
                (Plain, "me to your party"),
                (Written, " last "),
                (Plain, "week."),
            ])
        );
        assert_eq!(
            read(with_written("Once upon", "Once upon a time")),
            expected(&[(Plain, "Once upon"), (Written, " a time")])
        );
        let bare = "<extra_id_0> <i>";
        assert_eq!(read(with_written(prompt, bare)), read(with_blanks(bare)));
    }

    #[test]
    fn only_numbered_sentinels_are_blanks() {
        assert_eq!(
            read(with_blanks("<extra_id_> <extra_id_12><extra_id_3")),
            expected(&[(Plain, "<extra_id_> "), (Blank, "<extra_id_12>"), (Plain, "<extra_id_3")])
        );
    }
}
