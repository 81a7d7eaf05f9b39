use burn::tensor::{Bool, Int, Tensor, TensorData};

use crate::T5;

/// Generates a target for each input by always taking the likeliest token.
///
/// Keys and values are cached: each step runs the decoder on one new position. A target ends at
/// `eos_token` (which it includes) or at `max_new_tokens`.
///
/// # Panics
///
/// Panics if a token is not in the vocabulary.
pub fn generate_greedy(
    model: &T5,
    inputs: &[Vec<u32>],
    eos_token: u32,
    max_new_tokens: usize,
) -> Vec<Vec<u32>> {
    let mut targets = vec![Vec::new(); inputs.len()];
    if inputs.is_empty() || max_new_tokens == 0 {
        return targets;
    }
    let device = model.device();
    let (input_ids, padding) = pad(model, inputs);
    let memory = model.encode(input_ids, padding.as_ref());
    let mut cache = model.decoder.start(memory, padding.as_ref());
    let mut next = model.start_tokens(inputs.len());
    let mut ended = vec![false; inputs.len()];
    for _ in 0..max_new_tokens {
        let logits = model.decode(next, &mut cache);
        let tokens: Vec<u32> = logits.argmax(2).into_data().iter::<u32>().collect();
        for ((target, ended), &token) in targets.iter_mut().zip(&mut ended).zip(&tokens) {
            if !*ended {
                target.push(token);
                *ended = token == eos_token;
            }
        }
        if ended.iter().all(|&ended| ended) {
            break;
        }
        let tokens: Vec<i32> = tokens.into_iter().map(|token| token as i32).collect();
        next = Tensor::from_data(TensorData::new(tokens, [inputs.len(), 1]), &device);
    }
    targets
}

/// The inputs as one tensor `[batch_size, longest]`, and where it is padding, if anywhere.
fn pad(model: &T5, inputs: &[Vec<u32>]) -> (Tensor<2, Int>, Option<Tensor<2, Bool>>) {
    let longest = inputs.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let ids: Vec<i32> = inputs
        .iter()
        .flat_map(|input| {
            let padding = std::iter::repeat_n(0, longest - input.len());
            input.iter().map(|&token| token as i32).chain(padding)
        })
        .collect();
    let ids = Tensor::from_data(TensorData::new(ids, [inputs.len(), longest]), &model.device());
    let padded = inputs.iter().any(|input| input.len() < longest || input.contains(&0));
    let padding = padded.then(|| ids.clone().equal_elem(0));
    (ids, padding)
}
