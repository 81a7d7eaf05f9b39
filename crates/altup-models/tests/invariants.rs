//! What must hold for every model, whatever its parameters.

mod support;

use altup_core::{BlockSelection, Widening};
use altup_models::{
    Activation, AltUpModelConfig, AttentionKind, BeamSearch, DecoderCache, EncoderSequence,
    Experts, FeedForward, FeedForwardLayer, Generated, GenerationConfig, LayerRouting, MoeConfig,
    MoeMode, NamedTensor, Noise, Reduction, Role, Sampling, SequenceMethod, Strategy, T5, T5Config,
    cross_entropy_sum, freeze, generate, gradient_tensors, parameter_tensors, parameters,
    relative_position_bucket, size,
};
use burn::module::Param;
use burn::tensor::{Bool, Device, Distribution, Int, Tensor, TensorData};
use serde::Deserialize;
use std::collections::BTreeSet;

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

fn moe(mode: MoeMode, top_k: usize) -> MoeConfig {
    MoeConfig { top_k, ..MoeConfig::new(5, 7, mode) }
}

/// The sequence reduced in the last two of three encoder layers.
fn sequence(num_blocks: usize, widening: Widening, method: SequenceMethod) -> T5Config {
    let sequence = EncoderSequence { method, stride: 3, first_layer: 1, last_layer: Some(2) };
    let mut config = altup(num_blocks, BlockSelection::Alternating, widening);
    config.altup.as_mut().unwrap().encoder_sequence = Some(sequence);
    config
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
        T5Config { moe: Some(moe(MoeMode::Partial, 1)), ..tiny() },
        T5Config { moe: Some(moe(MoeMode::Switch, 2)), ..altup(2, Alternating, Recycled) },
        sequence(1, Sum, SequenceMethod::Altup),
        sequence(2, Embedding, SequenceMethod::Altup),
        sequence(2, Recycled, SequenceMethod::StrideAndSkip),
        sequence(2, Embedding, SequenceMethod::AveragePool),
        T5Config {
            moe: Some(moe(MoeMode::Partial, 1)),
            ..sequence(2, Embedding, SequenceMethod::Altup)
        },
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
        altup.prediction_coefs = Param::from_tensor((p.clone() + p.random_like(spread)).detach());
        altup.correction_coefs = Param::from_tensor((g.clone() + g.random_like(spread)).detach());
    }
    let reductions = model.encoder.blocks.iter_mut().filter_map(|block| block.reduction.as_mut());
    for reduction in reductions {
        let Reduction::SequenceAltUp(sequence) = reduction else { continue };
        let (a, b) = (sequence.prediction_coefs.val(), sequence.correction_coef.val());
        sequence.prediction_coefs =
            Param::from_tensor((a.clone() + a.random_like(spread)).detach());
        sequence.correction_coef = Param::from_tensor((b.clone() + b.random_like(spread)).detach());
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
            let together = generate(&model, &inputs, &generation).unwrap();
            for (input, together) in inputs.iter().zip(together) {
                let alone =
                    generate(&model, std::slice::from_ref(input), &generation).unwrap().remove(0);
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

/// One expert takes every token with probability 1: it is a dense ReLU network.
#[test]
fn a_single_expert_is_a_dense_network() {
    let device = Device::flex();
    let relu = T5Config { feed_forward_proj: Activation::Relu, ..tiny() };
    let moe = MoeConfig::new(1, relu.d_ff, MoeMode::Switch);
    let switch = T5Config { moe: Some(moe), ..relu.clone() };
    let dense = relu.init(3, &device);
    let mut sparse = switch.init(3, &device);
    let experts = |layer: &FeedForwardLayer| {
        let Some(FeedForward::Relu(network)) = &layer.feed_forward else { panic!("not ReLU") };
        let one = |weight: &Param<Tensor<2>>| Param::from_tensor(weight.val().unsqueeze_dim(0));
        Experts { wi: one(&network.wi.weight), wo: one(&network.wo.weight) }
    };
    for (from, to) in dense.encoder.blocks.iter().zip(&mut sparse.encoder.blocks) {
        to.feed_forward.moe.as_mut().unwrap().experts = experts(&from.feed_forward);
    }
    for (from, to) in dense.decoder.blocks.iter().zip(&mut sparse.decoder.blocks) {
        to.feed_forward.moe.as_mut().unwrap().experts = experts(&from.feed_forward);
    }
    let (input_ids, labels) = (random_ids([2, 7], &device), random_ids([2, 5], &device));
    let expected = dense.forward(input_ids.clone(), None, labels.clone());
    let found = sparse.forward(input_ids.clone(), None, labels.clone());
    assert!(difference(expected, found) < 1e-5);
    let (_, routing) = sparse.forward_with_routing(input_ids, None, labels, Noise::none());
    assert_eq!(routing.len(), 5);
    for layer in routing {
        assert_eq!(layer.load_balancing_loss.into_scalar::<f64>(), 1.0);
        let [load, dropped] = [layer.loads, layer.dropped].map(Tensor::into_scalar::<f64>);
        assert_eq!([load, dropped], [1.0, 0.0]);
    }
}

#[test]
fn the_order_of_experts_changes_nothing() {
    let device = Device::flex();
    let config = T5Config { moe: Some(moe(MoeMode::Partial, 2)), ..tiny() };
    let model = config.init(4, &device);
    let (input_ids, labels) = (random_ids([2, 7], &device), random_ids([2, 5], &device));
    let expected = model.forward(input_ids.clone(), None, labels.clone());
    let mut permuted = model.clone();
    let order = Tensor::<1, Int>::from_data([3, 0, 4, 2, 1], &device);
    let encoder = permuted.encoder.blocks.iter_mut().map(|block| &mut block.feed_forward);
    let decoder = permuted.decoder.blocks.iter_mut().map(|block| &mut block.feed_forward);
    for layer in encoder.chain(decoder) {
        let moe = layer.moe.as_mut().unwrap();
        let router = moe.router.weight.val().select(1, order.clone());
        moe.router.weight = Param::from_tensor(router);
        moe.experts.wi = Param::from_tensor(moe.experts.wi.val().select(0, order.clone()));
        moe.experts.wo = Param::from_tensor(moe.experts.wo.val().select(0, order.clone()));
    }
    let found = permuted.forward(input_ids, None, labels);
    assert!(difference(expected, found) < 1e-5);
}

/// With room for a sliver of a token, each expert takes one: the others pass through the residual.
#[test]
fn dropped_tokens_pass_through_the_residual() {
    let device = Device::flex();
    let with_capacity = |factor| {
        let moe = MoeConfig {
            eval_capacity_factor: Some(factor),
            encoder_layers: Some(vec![]),
            decoder_layers: Some(vec![0]),
            ..MoeConfig::new(1, 6, MoeMode::Switch)
        };
        T5Config { moe: Some(moe), num_layers: 1, num_decoder_layers: Some(1), ..tiny() }
    };
    let full = with_capacity(1e-6).init(5, &device);
    let roomy = with_capacity(1.0).init(5, &device);
    let (input_ids, labels) = (random_ids([1, 6], &device), random_ids([1, 4], &device));
    let (found, routing) =
        full.forward_with_routing(input_ids.clone(), None, labels.clone(), Noise::none());
    assert_eq!(routing[0].dropped.clone().into_scalar::<f64>(), 0.75);
    let kept = roomy.forward(input_ids.clone(), None, labels.clone());
    let first = |logits: &Tensor<3>| logits.clone().narrow(1, 0, 1);
    let rest = |logits: &Tensor<3>| logits.clone().narrow(1, 1, 3);
    assert!(difference(first(&found), first(&kept)) < 1e-6);
    assert!(difference(rest(&found), rest(&kept)) > 1e-3);

    // An expert that gives nothing leaves the residual alone too.
    let mut silent = roomy;
    let experts = &mut silent.decoder.blocks[0].feed_forward.moe.as_mut().unwrap().experts;
    experts.wo = Param::from_tensor(experts.wo.val() * 0.0);
    let passed = silent.forward(input_ids, None, labels);
    assert!(difference(rest(&found), rest(&passed)) < 1e-6);
}

/// Stride 1 computes on every token, and the coefficients start where the layer's output is kept.
#[test]
fn a_sequence_of_stride_one_at_the_start_is_the_plain_encoder() {
    let device = Device::flex();
    let plain = tiny().init(6, &device);
    let (input_ids, labels) = (random_ids([2, 7], &device), random_ids([2, 5], &device));
    let expected = plain.forward(input_ids.clone(), None, labels.clone());
    let methods =
        [SequenceMethod::Altup, SequenceMethod::StrideAndSkip, SequenceMethod::AveragePool];
    for method in methods {
        let mut config = sequence(1, Widening::Sum, method);
        config.altup.as_mut().unwrap().encoder_sequence.as_mut().unwrap().stride = 1;
        let model = config.init(6, &device);
        let off =
            difference(expected.clone(), model.forward(input_ids.clone(), None, labels.clone()));
        assert!(off < 1e-5, "{method:?}: {off}");
    }
}

/// A pass in training is its seed, step and micro-batch, on every backend and as often as it runs.
#[test]
fn the_same_pass_drops_the_same_everywhere() {
    let moe = MoeConfig { router_jitter: 0.1, ..moe(MoeMode::Partial, 1) };
    let config = T5Config {
        moe: Some(moe),
        dropout_rate: 0.2,
        ..altup(2, BlockSelection::Alternating, Widening::Embedding)
    };
    let device = Device::flex();
    let (input_ids, labels) = (random_ids([2, 7], &device), random_ids([2, 5], &device));
    let logits = |noise, device: &Device| {
        let ids = |ids: &Tensor<2, Int>| Tensor::from_data(ids.clone().into_data(), device);
        let model = config.init(7, device);
        let (logits, _) = model.forward_with_routing(ids(&input_ids), None, ids(&labels), noise);
        Tensor::<3>::from_data(logits.into_data(), &Device::flex())
    };
    let pass = Noise::training(1, 2, 0);
    let first = logits(pass, &device);
    assert_eq!(difference(first.clone(), logits(pass, &device)), 0.0);
    assert!(difference(first.clone(), logits(pass, &device.clone().autodiff())) < 1e-5);
    assert!(difference(first.clone(), logits(pass, &support::altup_ndarray())) < 1e-5);
    for other in [Noise::training(1, 3, 0), Noise::training(1, 2, 1), Noise::none()] {
        assert!(difference(first.clone(), logits(other, &device)) > 1e-2, "{other:?}");
    }
}

/// The loss of a training step with all that may draw, how experts were routed, and every gradient.
fn step(model: &T5, device: &Device) -> (f32, Vec<LayerRouting>, Vec<NamedTensor>) {
    device.seed(9);
    let (input_ids, labels) = (random_ids([3, 7], device), random_ids([3, 5], device));
    let padding = Tensor::<1, Int>::arange(0..7, device).greater_elem(4).unsqueeze_dim::<2>(0);
    let padding = Tensor::cat(vec![padding; 3], 0);
    let labels = labels.mask_fill(padding.clone().narrow(1, 2, 5), 0);
    let noise = Noise::training(1, 2, 0);
    let (logits, routing) =
        model.forward_with_routing(input_ids, Some(padding), labels.clone(), noise);
    let mut loss = cross_entropy_sum(logits, labels) / 8.0;
    if let Some(auxiliary) = model.auxiliary_loss(&routing) {
        loss = loss + auxiliary;
    }
    let gradients = loss.backward();
    (loss.into_scalar(), routing, gradient_tensors(model, &gradients))
}

#[test]
fn recomputing_layers_changes_no_bit() {
    let bits = |tensors: Vec<NamedTensor>| -> Vec<(String, Vec<u32>)> {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
        tensors.iter().map(|tensor| (tensor.name.clone(), bits(&tensor.values))).collect()
    };
    let device = |device: Device| device.autodiff();
    for (number, config) in variants().into_iter().enumerate() {
        let config = T5Config {
            dropout_rate: 0.2,
            num_decoder_layers: Some(3),
            moe: config.moe.map(|moe| MoeConfig { router_jitter: 0.1, ..moe }),
            ..config
        };
        for device in [
            device(Device::flex()),
            device(support::altup_ndarray()),
            device(Device::flex()).gradient_checkpointing(),
        ] {
            let model = model(&config, &device);
            let (loss, routing, gradients) = step(&model, &device);
            let (again, routing_again, gradients_again) =
                step(&model.clone().recompute_layers(true), &device);
            assert_eq!(loss.to_bits(), again.to_bits(), "variant {number} on {device:?}");
            assert_eq!(gradients.len(), parameters(&model).len());
            for (plain, recomputed) in bits(gradients).into_iter().zip(bits(gradients_again)) {
                assert_eq!(plain, recomputed, "variant {number} on {device:?}");
            }
            let values = |routing: Vec<LayerRouting>| -> Vec<(&str, usize, Vec<f64>)> {
                let of_layer = |layer: LayerRouting| {
                    let LayerRouting { load_balancing_loss, z_loss, .. } = layer;
                    let told = [layer.loads, layer.entropy, layer.dropped];
                    let numbers = [&[load_balancing_loss, z_loss][..], &told].concat();
                    let numbers = Tensor::cat(numbers, 0).into_data().iter::<f64>().collect();
                    (layer.stack, layer.layer, numbers)
                };
                routing.into_iter().map(of_layer).collect()
            };
            assert_eq!(values(routing), values(routing_again));
        }
    }
}

/// Where the embeddings ask for no gradients, neither does the input of the first layer.
#[test]
fn recomputed_layers_learn_whatever_is_frozen() {
    let device = Device::flex().autodiff();
    let model = freeze(tiny().init(8, &device), |parameter| {
        matches!(parameter.role, Role::EmbeddingTable | Role::PositionBias | Role::Query(_))
    });
    let (_, _, expected) = step(&model, &device);
    let (_, _, found) = step(&model.clone().recompute_layers(true), &device);
    assert_eq!(expected.len(), found.len());
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!((&expected.name, &expected.values), (&found.name, &found.values));
    }
}

/// Outside of training the rate is without effect.
#[test]
fn nothing_is_dropped_outside_of_training() {
    let device = Device::flex().autodiff();
    let (input_ids, labels) = (random_ids([2, 7], &device), random_ids([2, 5], &device));
    let logits = |dropout_rate| {
        let model = T5Config { dropout_rate, ..tiny() }.init(7, &device);
        model.forward(input_ids.clone(), None, labels.clone())
    };
    assert_eq!(difference(logits(0.0), logits(0.5)), 0.0);
}

/// A parameter without a role panics; the names are those that its values go by.
#[test]
fn every_parameter_has_a_role_and_a_name_of_its_own() {
    use AttentionKind::{CrossAttention, SelfAttention};
    let mut found = BTreeSet::new();
    for config in variants() {
        let model = config.init(2, &Device::flex());
        let parameters = parameters(&model);
        let tensors = parameter_tensors(&model);
        assert_eq!(parameters.len(), tensors.len());
        for (parameter, tensor) in parameters.iter().zip(&tensors) {
            assert_eq!((&parameter.name, &parameter.shape), (&tensor.name, &tensor.shape));
            assert_eq!(parameter.size(), tensor.values.len());
        }
        let names: BTreeSet<&String> = parameters.iter().map(|info| &info.name).collect();
        assert_eq!(names.len(), parameters.len(), "{names:?}");
        found.extend(parameters.iter().map(|info| info.role));
    }
    let of_attention =
        |kind| [Role::Query(kind), Role::Key(kind), Role::Value(kind), Role::AttentionOutput(kind)];
    let mut expected = BTreeSet::from([
        Role::EmbeddingTable,
        Role::OutputTable,
        Role::SubLayerNorm,
        Role::FinalNorm,
        Role::PositionBias,
        Role::FeedForwardInput,
        Role::FeedForwardOutput,
        Role::Router,
        Role::ExpertsInput,
        Role::ExpertsOutput,
        Role::PredictionCoefs,
        Role::CorrectionCoefs,
        Role::SequencePredictionCoefs,
        Role::SequenceCorrectionCoef,
    ]);
    expected.extend([of_attention(SelfAttention), of_attention(CrossAttention)].concat());
    assert_eq!(found, expected);
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

/// As when only an input is to be embedded.
#[test]
fn targets_may_be_empty() {
    let device = Device::default();
    for config in variants() {
        let model = model(&config, &device);
        let inputs = random_ids([2, 5], &device);
        let empty = || Tensor::<2, Int>::empty([2, 0], &device);
        assert_eq!(model.shift_right(empty()).dims(), [2, 0]);
        let [of_inputs, of_targets] = model.embed_both(inputs.clone(), empty());
        assert_eq!(of_targets.dims(), [2, 0, of_inputs.dims()[2]]);
        let [beside_others, _] = model.embed_both(inputs.clone(), inputs);
        of_inputs.into_data().assert_eq(&beside_others.into_data(), true);
    }
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
