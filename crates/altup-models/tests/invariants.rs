//! What must hold for every model, whatever its parameters.

use altup_core::{BlockSelection, Widening};
use altup_models::{
    AltUpModelConfig, BeamSearch, DecoderCache, Generated, GenerationConfig, Sampling, Strategy,
    T5, T5Config, generate, parameter_tensors, relative_position_bucket, size,
};
use burn::module::Param;
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use serde::Deserialize;

fn tiny() -> T5Config {
    T5Config {
        vocab_size: 50,
        d_model: 16,
        d_kv: 6,
        num_heads: 2,
        d_ff: 24,
        num_layers: 3,
        num_decoder_layers: Some(2),
        dropout_rate: 0.0,
        ..size("tiny").unwrap()
    }
}

fn altup(num_blocks: usize, selection: BlockSelection, widening: Widening) -> T5Config {
    let altup = AltUpModelConfig { num_blocks, selection, widening, encoder_sequence: None };
    T5Config { altup: Some(altup), ..tiny() }
}

fn variants() -> Vec<T5Config> {
    use BlockSelection::{Alternating, Same};
    use Widening::{Embedding, Recycled, Sum};
    vec![
        tiny(),
        altup(1, Alternating, Embedding),
        altup(2, Alternating, Embedding),
        altup(3, Same, Embedding),
        altup(2, Alternating, Recycled),
        altup(2, Alternating, Sum),
    ]
}

/// A model whose coefficients are off their start, so that every path matters.
fn model(config: &T5Config, device: &Device) -> T5 {
    let mut model = config.init(11, device);
    device.seed(5);
    let spread = Distribution::Normal(0.0, 0.2);
    let encoder = model.encoder.blocks.iter_mut().map(|block| &mut block.altup);
    let decoder = model.decoder.blocks.iter_mut().map(|block| &mut block.altup);
    for altup in encoder.chain(decoder).flatten() {
        let (p, g) = (altup.prediction_coefs.val(), altup.correction_coefs.val());
        altup.prediction_coefs = Param::from_tensor(p.clone() + p.random_like(spread));
        altup.correction_coefs = Param::from_tensor(g.clone() + g.random_like(spread));
    }
    model
}

fn random_ids(shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::random(shape, Distribution::Uniform(3.0, 50.0), device)
}

fn difference(a: Tensor<3>, b: Tensor<3>) -> f64 {
    (a - b).abs().max().into_scalar::<f64>()
}

#[test]
fn padding_never_changes_what_is_not_padded() {
    let device = Device::flex();
    for config in variants() {
        let model = model(&config, &device);
        let input_ids = random_ids([2, 7], &device);
        let labels = random_ids([2, 5], &device);
        let plain = model.forward(input_ids.clone(), None, labels.clone());
        // Whatever stands in the hidden positions.
        let padded = Tensor::cat(vec![input_ids, random_ids([2, 4], &device)], 1);
        let padding = Tensor::<2, Bool>::from_data(
            TensorData::new([vec![false; 7], vec![true; 4]].concat().repeat(2), [2, 11]),
            &device,
        );
        let hidden = model.forward(padded, Some(padding), labels);
        let off = difference(plain, hidden);
        assert!(off < 1e-4, "{:?}: {off}", config.altup);
    }
}

#[test]
fn a_token_never_sees_those_behind_it() {
    let device = Device::flex();
    for config in variants() {
        let model = model(&config, &device);
        let input_ids = random_ids([1, 6], &device);
        let labels = random_ids([1, 8], &device);
        let changed = Tensor::cat(
            vec![labels.clone().narrow(1, 0, 4), (labels.clone().narrow(1, 4, 4) + 1) % 50],
            1,
        );
        let before = model.forward(input_ids.clone(), None, labels).narrow(1, 0, 5);
        let after = model.forward(input_ids, None, changed);
        // Label 4 is first read at position 5.
        assert_eq!(difference(before, after.clone().narrow(1, 0, 5)), 0.0, "{:?}", config.altup);
    }
}

#[test]
fn cached_decoding_equals_decoding_at_once() {
    let device = Device::flex();
    for config in variants() {
        let model = model(&config, &device);
        let input_ids = random_ids([2, 6], &device);
        let memory = model.encode(input_ids, None);
        let tokens = random_ids([2, 9], &device);
        let mut whole: DecoderCache = model.decoder.start(&memory);
        let at_once = model.decode(tokens.clone(), &mut whole);
        let mut cache = model.decoder.start(&memory);
        let steps = (0..9)
            .map(|position| model.decode(tokens.clone().narrow(1, position, 1), &mut cache))
            .collect();
        let off = difference(at_once, Tensor::cat(steps, 1));
        assert!(off < 1e-5, "{:?}: {off}", config.altup);
        assert_eq!((whole.len(), cache.len()), (9, 9));
    }
}

#[test]
fn a_batch_generates_what_its_rows_generate_alone() {
    let device = Device::flex();
    for config in variants() {
        let model = model(&config, &device);
        let inputs = [vec![5, 6, 7, 8, 9, 10], vec![11, 12]];
        let strategies = [
            Strategy::Greedy,
            Strategy::Sampling(Sampling { temperature: 1.5, ..Sampling::default() }),
            Strategy::BeamSearch(BeamSearch { num_beams: 3, ..BeamSearch::default() }),
        ];
        for strategy in strategies {
            let generation = GenerationConfig { strategy, ..GenerationConfig::greedy(12) };
            let together = generate(&model, &inputs, &generation);
            for (input, together) in inputs.iter().zip(together) {
                let alone = generate(&model, std::slice::from_ref(input), &generation).remove(0);
                let tokens = |targets: &[Generated]| -> Vec<Vec<u32>> {
                    targets.iter().map(|target| target.tokens.clone()).collect()
                };
                assert_eq!(tokens(&alone), tokens(&together), "{:?} {generation:?}", config.altup);
            }
        }
    }
}

/// With p = I and g = 1, Recycled-AltUp's blocks stay equal, and the final norm divides their sum's
/// factor K away.
#[test]
fn recycled_at_the_start_is_the_dense_model() {
    let device = Device::flex();
    let dense = tiny().init(3, &device);
    let input_ids = random_ids([2, 7], &device);
    let labels = random_ids([2, 5], &device);
    let expected = dense.forward(input_ids.clone(), None, labels.clone());
    for num_blocks in [1, 2, 4] {
        let recycled =
            altup(num_blocks, BlockSelection::Alternating, Widening::Recycled).init(3, &device);
        let found = recycled.forward(input_ids.clone(), None, labels.clone());
        let off = difference(expected.clone(), found);
        assert!(off < 1e-4, "K={num_blocks}: {off}");
    }
}

#[test]
fn one_embedding_block_at_the_start_is_the_dense_model() {
    let device = Device::flex();
    let dense = tiny().init(3, &device);
    let one = altup(1, BlockSelection::Alternating, Widening::Embedding).init(3, &device);
    let input_ids = random_ids([2, 7], &device);
    let labels = random_ids([2, 5], &device);
    let expected = dense.forward(input_ids.clone(), None, labels.clone());
    let off = difference(expected, one.forward(input_ids, None, labels));
    assert!(off < 1e-5, "{off}");
    let shared = |model: &T5| -> Vec<_> {
        parameter_tensors(model).into_iter().filter(|t| !t.name.contains(".altup.")).collect()
    };
    assert_eq!(shared(&dense), shared(&one));
}

#[derive(Deserialize)]
struct Buckets {
    first_position: i64,
    cases: Vec<BucketCase>,
}

#[derive(Deserialize)]
struct BucketCase {
    bidirectional: bool,
    num_buckets: usize,
    max_distance: usize,
    buckets: Vec<usize>,
}

/// Buckets of Hugging Face's T5 for positions −300..300 (`scripts/reference/generate_fixtures.py`).
#[test]
fn relative_position_buckets_equal_the_reference() {
    let json = include_str!("fixtures/relative_position_buckets.json");
    let reference: Buckets = serde_json::from_str(json).unwrap();
    for case in reference.cases {
        for (position, expected) in (reference.first_position..).zip(case.buckets) {
            let found = relative_position_bucket(
                position,
                case.bidirectional,
                case.num_buckets,
                case.max_distance,
            );
            assert_eq!(found, expected, "position {position}, {} buckets", case.num_buckets);
        }
    }
}
