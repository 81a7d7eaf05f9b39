//! Rows of tokens that a file gives: inputs, and the labels that belong to them. 0 pads both.

/// What is wrong with rows of inputs and labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRowsError {
    /// There are not as many of one as of the other.
    #[error("input_ids has {inputs} rows and labels has {labels}")]
    Count {
        /// Rows of inputs.
        inputs: usize,
        /// Rows of labels.
        labels: usize,
    },
    /// All rows of one are empty.
    #[error("{name} holds no token")]
    Empty {
        /// `input_ids` or `labels`.
        name: &'static str,
    },
    /// A token is none of the vocabulary.
    #[error("{name}[{row}] holds the id {id}, beyond the model's vocabulary of {vocab_size}")]
    Unknown {
        /// `input_ids` or `labels`.
        name: &'static str,
        /// The row, counted from 0.
        row: usize,
        /// The token.
        id: u32,
        /// Tokens that the model knows.
        vocab_size: usize,
    },
    /// There is no label to score.
    #[error("labels hold only padding")]
    Padding,
}

/// Checks that rows of inputs and labels are a batch for a model of `vocab_size` tokens.
///
/// # Errors
///
/// Names what is wrong first.
pub fn check(
    input_ids: &[Vec<u32>],
    labels: &[Vec<u32>],
    vocab_size: usize,
) -> Result<(), TokenRowsError> {
    if input_ids.len() != labels.len() {
        return Err(TokenRowsError::Count { inputs: input_ids.len(), labels: labels.len() });
    }
    for (name, rows) in [("input_ids", input_ids), ("labels", labels)] {
        if rows.iter().all(Vec::is_empty) {
            return Err(TokenRowsError::Empty { name });
        }
        for (row, ids) in rows.iter().enumerate() {
            if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(TokenRowsError::Unknown { name, row, id, vocab_size });
            }
        }
    }
    match num_labels(labels) {
        0 => Err(TokenRowsError::Padding),
        _ => Ok(()),
    }
}

/// The labels that are not padding.
pub fn num_labels(labels: &[Vec<u32>]) -> usize {
    labels.iter().flatten().filter(|&&label| label != 0).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let rows = |rows: &[&[u32]]| rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>();
        let check = |inputs: &[&[u32]], labels: &[&[u32]]| {
            check(&rows(inputs), &rows(labels), 8).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[&[5, 7], &[]], &[&[1], &[0, 3]]), Ok(()));
        let cases: [(&[&[u32]], &[&[u32]], &str); 5] = [
            (&[&[5]], &[], "input_ids has 1 rows and labels has 0"),
            (&[], &[], "input_ids holds no token"),
            (&[&[5]], &[&[]], "labels holds no token"),
            (&[&[5]], &[&[1, 8]], "labels[0] holds the id 8, beyond the model's vocabulary of 8"),
            (&[&[5]], &[&[0, 0]], "labels hold only padding"),
        ];
        for (inputs, labels, message) in cases {
            assert_eq!(check(inputs, labels), Err(message.to_owned()));
        }
        assert_eq!(num_labels(&rows(&[&[0, 3], &[4]])), 2);
    }
}
