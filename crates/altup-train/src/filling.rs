//! Blanks in text: prompts with sentinels, and targets that say what belongs there.

use std::collections::HashMap;

/// Puts what a target says of each sentinel in the place of that sentinel.
///
/// A target is sentinels, each followed by the tokens of its blank; tokens before the first are
/// dropped, and of a sentinel that occurs twice the first counts. A blank that the target doesn't
/// fill stays as its sentinel.
pub fn fill_blanks(prompt: &[u32], target: &[u32], sentinels: &[u32]) -> Vec<u32> {
    let mut fillings: HashMap<u32, &[u32]> = HashMap::new();
    let mut rest = target;
    while let Some(start) = rest.iter().position(|token| sentinels.contains(token)) {
        let (sentinel, behind) = (rest[start], &rest[start + 1..]);
        let end = behind.iter().position(|token| sentinels.contains(token)).unwrap_or(behind.len());
        fillings.entry(sentinel).or_insert(&behind[..end]);
        rest = &behind[end..];
    }
    let mut filled = Vec::with_capacity(prompt.len() + target.len());
    for token in prompt {
        match fillings.get(token) {
            Some(filling) => filled.extend_from_slice(filling),
            None => filled.push(*token),
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENTINELS: [u32; 3] = [99, 98, 97];

    #[test]
    fn blanks_take_their_fillings() {
        let filled = fill_blanks(&[10, 99, 11, 98, 12], &[99, 20, 21, 98, 22, 97], &SENTINELS);
        assert_eq!(filled, [10, 20, 21, 11, 22, 12]);
    }

    #[test]
    fn what_is_not_filled_stays_a_blank() {
        assert_eq!(fill_blanks(&[99, 5, 98], &[1, 2, 99, 7], &SENTINELS), [7, 5, 98]);
        assert_eq!(fill_blanks(&[99, 5], &[99, 7, 99, 8], &SENTINELS), [7, 5]);
        assert_eq!(fill_blanks(&[99], &[], &SENTINELS), [99]);
    }
}
