use crate::{Activation, MoeConfig, MoeMode, SequenceMethod, T5Config};

/// What one part of a model costs in a forward pass over one example, by arithmetic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartCost {
    /// The part, in the field's words.
    pub part: &'static str,
    /// Floating-point operations: 2 for each multiply-add of a matrix product or of the AltUp
    /// update. Norms, softmax and activations, which cost bytes rather than operations, count none.
    pub flops: u64,
}

/// The cost of a forward pass over one example of `input_length` and `target_length` tokens, by
/// part. A train step costs three times the operations (one forward, two backward products each).
pub fn forward_cost(config: &T5Config, input_length: u64, target_length: u64) -> Vec<PartCost> {
    let d = config.d_model as u64;
    let heads = config.num_heads as u64;
    let inner = heads * config.d_kv as u64;
    let d_ff = config.d_ff as u64;
    let memory_width = config.output_width() as u64;
    let vocabulary = config.vocab_size as u64;
    let blocks = config.num_blocks() as u64;
    let (inputs, targets) = (input_length, target_length);

    let projections = |tokens: u64| 2 * tokens * 4 * d * inner;
    let scores = |queries: u64, keys: u64| 4 * queries * keys * inner;
    let self_attention = |tokens: u64| projections(tokens) + scores(tokens, tokens);
    let matrices = match config.feed_forward_proj {
        Activation::Relu => 2,
        Activation::GatedGelu => 3,
    };
    let feed_forward = |tokens: u64| 2 * tokens * matrices * d * d_ff;
    let cross_attention = |memory: u64| {
        2 * targets * 2 * d * inner
            + 2 * memory * 2 * memory_width * inner
            + scores(targets, memory)
    };
    // The router, and of the experts those that compute on a token.
    let experts = |moe: &MoeConfig, tokens: u64| {
        let (count, hidden) = (moe.num_experts as u64, moe.expert_d_ff as u64);
        2 * tokens * d * count + 2 * tokens * moe.top_k as u64 * 2 * d * hidden
    };
    let altup = |tokens: u64| 2 * tokens * blocks * (blocks + 1) * d;
    let sequence_altup = |tokens: u64| 2 * tokens * 3 * d;

    let mut parts: Vec<PartCost> = Vec::new();
    let mut add =
        |part: &'static str, flops: u64| match parts.iter_mut().find(|known| known.part == part) {
            Some(known) => known.flops += flops,
            None => parts.push(PartCost { part, flops }),
        };
    let mut length = inputs;
    for layer in 0..config.num_layers {
        let sequence = config.encoder_sequence(layer);
        let computed = sequence.map_or(length, |s| inputs.div_ceil(s.stride as u64));
        match sequence.map(|sequence| sequence.method) {
            Some(SequenceMethod::AveragePool) => length = computed,
            Some(SequenceMethod::Altup) => add("Sequence-AltUp update", sequence_altup(length)),
            Some(SequenceMethod::StrideAndSkip) | None => {}
        }
        let moe = config.encoder_moe(layer);
        add("encoder self-attention", self_attention(computed));
        if moe.is_none_or(|moe| moe.mode == MoeMode::Partial) {
            add("encoder feed-forward", feed_forward(computed));
        }
        if let Some(moe) = moe {
            add("encoder experts", experts(moe, computed));
        }
        if config.updates_blocks() {
            add("AltUp update", altup(length));
        }
    }
    for layer in 0..config.decoder_layers() {
        let moe = config.decoder_moe(layer);
        add("decoder self-attention", self_attention(targets));
        add("decoder cross-attention", cross_attention(length));
        if moe.is_none_or(|moe| moe.mode == MoeMode::Partial) {
            add("decoder feed-forward", feed_forward(targets));
        }
        if let Some(moe) = moe {
            add("decoder experts", experts(moe, targets));
        }
        if config.updates_blocks() {
            add("AltUp update", altup(targets));
        }
    }
    add("output layer", 2 * targets * memory_width * vocabulary);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AltUpModelConfig, size};
    use altup_core::{BlockSelection, Widening};

    fn with_altup(name: &str, widening: Widening) -> T5Config {
        T5Config {
            altup: Some(AltUpModelConfig {
                num_blocks: 2,
                selection: BlockSelection::Alternating,
                widening,
                encoder_sequence: None,
            }),
            ..size(name).unwrap()
        }
    }

    fn flops(config: &T5Config) -> u64 {
        forward_cost(config, 512, 114).iter().map(|part| part.flops).sum()
    }

    /// One layer each, d = 2, one head of 3, d_ff = 5, 7 inputs, 4 targets, vocabulary 11.
    #[test]
    fn operations_by_hand() {
        let config = T5Config {
            d_model: 2,
            num_heads: 1,
            d_kv: 3,
            d_ff: 5,
            num_layers: 1,
            vocab_size: 11,
            ..size("tiny").unwrap()
        };
        let config = T5Config { num_decoder_layers: None, ..config };
        let parts: Vec<u64> = forward_cost(&config, 7, 4).iter().map(|part| part.flops).collect();
        assert_eq!(
            parts,
            [
                7 * 4 * 2 * 2 * 3 + 2 * 2 * 7 * 7 * 3, // q, k, v, o; scores and weighted sum
                7 * 3 * 2 * 2 * 5,
                4 * 4 * 2 * 2 * 3 + 2 * 2 * 4 * 4 * 3,
                4 * 2 * 2 * 2 * 3 + 7 * 2 * 2 * 2 * 3 + 2 * 2 * 4 * 7 * 3,
                4 * 3 * 2 * 2 * 5,
                4 * 2 * 2 * 11,
            ]
        );
    }

    /// Four layers of which two take every fourth token: half of the layers at a quarter of the tokens,
    /// and of the two experts that replace each network one computes.
    #[test]
    fn fewer_tokens_and_sparse_experts_cost_less() {
        let config = size("tiny").unwrap();
        let part = |config: &T5Config, name: &str| {
            let parts = forward_cost(config, 128, 32);
            parts.iter().find(|part| part.part == name).map_or(0, |part| part.flops)
        };
        let whole = part(&config, "encoder feed-forward");
        let sequence = T5Config {
            altup: Some(AltUpModelConfig {
                num_blocks: 1,
                selection: BlockSelection::Alternating,
                widening: Widening::Sum,
                encoder_sequence: Some(crate::EncoderSequence {
                    method: SequenceMethod::Altup,
                    stride: 4,
                    first_layer: 1,
                    last_layer: None,
                }),
            }),
            ..config.clone()
        };
        assert_eq!(part(&sequence, "encoder feed-forward"), whole / 4 * 2 + whole / 16 * 2);
        let moe = MoeConfig::new(2, 64, MoeMode::Switch);
        let switch = T5Config { moe: Some(moe), ..config };
        assert_eq!(part(&switch, "encoder feed-forward"), 0);
        assert_eq!(part(&switch, "encoder experts"), 4 * 128 * (2 * 128 * 2 + 2 * 2 * 128 * 64));
    }

    /// AltUp's extra arithmetic is the wider output layer and cross-attention, and almost nothing
    /// for the update itself.
    #[test]
    fn altup_costs_its_wider_readers() {
        for (name, floor) in [("altup-s", 1.1964), ("altup-b", 1.1422), ("altup-l", 1.1210)] {
            let ratio = flops(&with_altup(name, Widening::Embedding)) as f64
                / flops(&size(name).unwrap()) as f64;
            assert!((ratio - floor).abs() < 5e-5, "{name}: {ratio} is not {floor}");
        }
        let recycled = flops(&with_altup("altup-s", Widening::Recycled)) as f64;
        assert!(recycled / (flops(&size("altup-s").unwrap()) as f64) < 1.001);
    }
}
