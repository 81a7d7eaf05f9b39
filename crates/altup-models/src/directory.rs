use burn::tensor::Device;
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::initialization::initialize_some;
use crate::parameters::{OUTPUT_TABLE, ParameterInfo, fill, parameters};
use crate::tensors::{FloatType, NamedTensor, parameter_tensors, write_tensors};
use crate::weight_files::{INDEX, WEIGHTS, WeightFiles, regular_file};
use crate::{ConfigError, T5, T5Config};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const SENTENCEPIECE: &str = "spiece.model";
/// A larger file is no description of a model.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A Hugging Face model directory: `config.json`, `model.safetensors` (or shards of it with an
/// index), and beside them a `tokenizer.json` or a `spiece.model`.
///
/// A dense directory opens in Hugging Face's `T5ForConditionalGeneration.from_pretrained`, and one
/// saved there opens here. AltUp's tensors are named after the layer they belong to:
/// `{encoder,decoder}.block.{i}.altup.{prediction,correction}_coefs`.
#[derive(Clone, Debug)]
pub struct ModelDirectory {
    path: PathBuf,
}

/// Why a model directory can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file can't be opened, read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A JSON file is larger than any of its kind, or is no object.
    #[error("{}: must be a JSON object of at most {limit} bytes", path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// The largest size.
        limit: u64,
    },
    /// A JSON file isn't what it should be.
    #[error("cannot use {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// `config.json` describes a model that can't be built.
    #[error("cannot use {}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ConfigError,
    },
    /// A weight file, or the index of several, is damaged.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which tensor.
        problem: String,
    },
    /// The index of a sharded model names something other than a file beside it.
    #[error("{}: {shard:?} is not the name of a file in the model's directory", path.display())]
    Shard {
        /// The index.
        path: PathBuf,
        /// What it names.
        shard: String,
    },
    /// The weights are there in PyTorch's own format alone.
    #[error(
        "{} is in PyTorch's own format, which is not read here (opening it can run code), and there is no \
         model.safetensors beside it. Write one in Python: \
         T5ForConditionalGeneration.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER)",
        path.display()
    )]
    PyTorchOnly {
        /// The file.
        path: PathBuf,
    },
    /// A tensor that the model has, or that the index names, is not there.
    #[error("{}: tensor {name:?} is missing", path.display())]
    Missing {
        /// The file that it should be in.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A file holds a tensor that the model doesn't have.
    #[error("{}: tensor {name:?} belongs to no parameter of the model", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Two files hold the same tensor.
    #[error("{}: tensor {name:?} is in another file too", path.display())]
    Duplicate {
        /// One of the files.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than `config.json` gives it.
    #[error("{}: tensor {name:?} has shape {found:?}, not {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape in the model.
        expected: Vec<usize>,
    },
    /// A value is too large for the type that it is to be written in.
    #[error("{}: tensor {name:?} holds {value}, too large for {dtype}", path.display())]
    Overflow {
        /// The directory.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The value.
        value: f32,
        /// The type.
        dtype: FloatType,
    },
}

/// How a model is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// The type of all tensors. Default: F32
    pub dtype: FloatType,
    /// Bytes of tensors that one file holds at most, unless a single tensor is larger. Default: no
    /// limit, one `model.safetensors`
    pub max_shard_bytes: Option<u64>,
}

/// A model of which a directory holds a part.
#[derive(Clone, Debug)]
pub struct PartialModel {
    /// The model.
    pub model: T5,
    /// The parameters that were read.
    pub read: Vec<ParameterInfo>,
    /// The parameters that start from the seed.
    pub initialized: Vec<ParameterInfo>,
    /// The names of the directory's other tensors.
    pub unread: Vec<String>,
}

impl ModelDirectory {
    /// The directory at `path`. Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the tokenizer lies: `tokenizer.json`, or where only that is there, SentencePiece's `spiece.model`.
    pub fn tokenizer(&self) -> PathBuf {
        let (json, sentencepiece) = (self.path.join(TOKENIZER), self.path.join(SENTENCEPIECE));
        match !json.exists() && sentencepiece.exists() {
            true => sentencepiece,
            false => json,
        }
    }

    /// Where a `tokenizer.json` is written, whatever tokenizer is there. It then is the directory's
    /// [`tokenizer`](Self::tokenizer).
    pub fn tokenizer_json(&self) -> PathBuf {
        self.path.join(TOKENIZER)
    }

    /// Reads the model's description and checks that it can be built.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or names the field that is wrong.
    pub fn config(&self) -> Result<T5Config, DirectoryError> {
        let path = self.path.join(CONFIG);
        let read = T5Config::from_json(read_json(&path, MAX_CONFIG_BYTES)?)
            .and_then(|config| config.validate().map(|()| config));
        read.map_err(|source| DirectoryError::Config { path, source })
    }

    /// A hash of the model's tensors: their names, shapes and values in f32. It is the same wherever the directory lies
    /// and however the tensors are spread over files, and changes with any value.
    ///
    /// # Errors
    ///
    /// Names the file that can't be read.
    pub fn fingerprint(&self) -> Result<blake3::Hash, DirectoryError> {
        WeightFiles::open(&self.path)?.fingerprint()
    }

    /// Reads the model onto `device`, in f32.
    ///
    /// The returned configuration says how the output layer really is: transformers 5 writes
    /// `tie_word_embeddings: true` for every T5, and only the presence of `lm_head.weight` tells.
    ///
    /// # Errors
    ///
    /// Names the file and, where it is one, the tensor.
    pub fn load(&self, device: &Device) -> Result<(T5Config, T5), DirectoryError> {
        self.load_as(self.config()?, device)
    }

    /// Reads the model as `config` describes it in place of `config.json`: for changes that leave the
    /// tensors as they are, such as another dropout rate.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    ///
    /// # Panics
    ///
    /// Panics if the configuration is not [valid](T5Config::validate).
    pub fn load_as(
        &self,
        mut config: T5Config,
        device: &Device,
    ) -> Result<(T5Config, T5), DirectoryError> {
        let files = WeightFiles::open(&self.path)?;
        if config.scale_decoder_outputs.is_some() {
            config.tie_word_embeddings = !files.contains(OUTPUT_TABLE);
            if config.validate().is_err() {
                let (path, name) = (self.path.join(WEIGHTS), OUTPUT_TABLE.into());
                return Err(DirectoryError::Missing { path, name });
            }
        }
        check_depth(&config, &files)?;
        let model = config.build(device);
        check_names(&model, &config, &files)?;
        let model = fill(model, device, |info| files.read(&info.name, &info.shape).map(Some))?;
        Ok((config, model))
    }

    /// Makes a model of `config`, of which the selected parameters are read and all others start from
    /// `seed`, as those of [`T5Config::init`] do: for a model that shares layers with the one in the
    /// directory. The directory's `config.json` is not read.
    ///
    /// # Errors
    ///
    /// If a selected parameter's tensor is missing or has another shape. Names the file and, where it is
    /// one, the tensor.
    ///
    /// # Panics
    ///
    /// Panics if the configuration is not [valid](T5Config::validate).
    pub fn load_partial(
        &self,
        config: &T5Config,
        seed: u64,
        device: &Device,
        select: impl FnMut(&ParameterInfo) -> bool,
    ) -> Result<PartialModel, DirectoryError> {
        let files = WeightFiles::open(&self.path)?;
        let model = config.build(device);
        let (read, initialized): (Vec<_>, Vec<_>) =
            parameters(&model).into_iter().partition(select);
        for parameter in &read {
            files.check(&parameter.name, &parameter.shape)?;
        }
        let names: BTreeSet<&String> = read.iter().map(|parameter| &parameter.name).collect();
        let model = fill(model, device, |info| {
            let is_read = names.contains(&info.name);
            is_read.then(|| files.read(&info.name, &info.shape)).transpose()
        })?;
        let is_initialized = |info: &ParameterInfo| !names.contains(&info.name);
        let model = initialize_some(model, config, seed, device, is_initialized);
        let unread = files.names().filter(|name| !names.contains(name)).cloned().collect();
        Ok(PartialModel { model, read, initialized, unread })
    }

    /// Writes the model in f32 as one file, creating the directory where needed. Each file appears
    /// whole or not at all, `config.json` last.
    ///
    /// # Errors
    ///
    /// Names the file that can't be written.
    pub fn save(&self, config: &T5Config, model: &T5) -> Result<(), DirectoryError> {
        self.save_as(config, model, &SaveOptions::default())
    }

    /// Writes the model as `options` say; else as [`save`](Self::save).
    ///
    /// # Errors
    ///
    /// Names the file that can't be written, or the tensor that holds too large a value.
    pub fn save_as(
        &self,
        config: &T5Config,
        model: &T5,
        options: &SaveOptions,
    ) -> Result<(), DirectoryError> {
        let error = |path: &Path, source| DirectoryError::File { path: path.to_owned(), source };
        let tensors = parameter_tensors(model);
        for tensor in &tensors {
            if let Some(value) = options.dtype.overflow(&tensor.values) {
                let (path, name) = (self.path.clone(), tensor.name.clone());
                return Err(DirectoryError::Overflow { path, name, value, dtype: options.dtype });
            }
        }
        fs::create_dir_all(&self.path).map_err(|source| error(&self.path, source))?;
        let shards = shards(tensors, options);
        for (name, tensors) in &shards {
            let path = self.path.join(name);
            write_tensors(&path, tensors, options.dtype).map_err(|source| error(&path, source))?;
        }
        let path = self.path.join(INDEX);
        let index = match shards.len() {
            1 => remove_if_there(&path),
            _ => write_json(&path, &index(&shards, options.dtype))
                .and_then(|()| remove_if_there(&self.path.join(WEIGHTS))),
        };
        index.map_err(|source| error(&path, source))?;

        let path = self.path.join(CONFIG);
        let described = describe(config, options.dtype);
        described
            .and_then(|json| write_json(&path, &json))
            .map_err(|source| error(&path, source))?;
        self.remove_shards_but(&shards).map_err(|source| error(&self.path, source))
    }

    /// Removes the shards of an earlier save, which other programs would read.
    fn remove_shards_but(&self, shards: &[(String, Vec<NamedTensor>)]) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_shard(name)) else { continue };
            if !shards.iter().any(|(shard, _)| shard == name) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether a file's name is that of a shard: `model-00001-of-00003.safetensors`.
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".safetensors"));
    let number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .and_then(|numbers| numbers.split_once("-of-"))
        .is_some_and(|(shard, count)| number(shard) && number(count))
}

/// The tensors of each file, by the files' names.
fn shards(tensors: Vec<NamedTensor>, options: &SaveOptions) -> Vec<(String, Vec<NamedTensor>)> {
    let mut shards: Vec<Vec<NamedTensor>> = vec![Vec::new()];
    let mut shard_bytes = 0;
    for tensor in tensors {
        let bytes = (tensor.values.len() * options.dtype.size()) as u64;
        let full = options.max_shard_bytes.is_some_and(|limit| shard_bytes + bytes > limit);
        if full && shard_bytes > 0 {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        shards.last_mut().expect("there is one from the start").push(tensor);
    }
    let count = shards.len();
    let name = |number: usize| match count {
        1 => WEIGHTS.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    shards.into_iter().enumerate().map(|(number, shard)| (name(number), shard)).collect()
}

fn index(shards: &[(String, Vec<NamedTensor>)], dtype: FloatType) -> serde_json::Value {
    let files = shards
        .iter()
        .flat_map(|(file, tensors)| tensors.iter().map(move |tensor| (&tensor.name, file)));
    let weight_map: BTreeMap<_, _> = files.collect();
    let scalars: usize =
        shards.iter().flat_map(|(_, tensors)| tensors).map(|tensor| tensor.values.len()).sum();
    json!({ "metadata": { "total_size": scalars * dtype.size() }, "weight_map": weight_map })
}

fn describe(config: &T5Config, dtype: FloatType) -> io::Result<serde_json::Value> {
    let mut json = serde_json::to_value(config)?;
    json["architectures"] = json!([match config.model_type.as_str() {
        "mt5" => "MT5ForConditionalGeneration",
        _ => "T5ForConditionalGeneration",
    }]);
    json["is_encoder_decoder"] = true.into();
    json["torch_dtype"] = dtype.torch_name().into();
    Ok(json)
}

pub(crate) fn write_json(path: &Path, json: &serde_json::Value) -> io::Result<()> {
    let partial = path.with_extension("json.partial");
    let mut file = File::create(&partial)?;
    file.write_all((serde_json::to_string_pretty(&json)? + "\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(partial, path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads an object of at most `limit` bytes.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(
    path: &Path,
    limit: u64,
) -> Result<T, DirectoryError> {
    let error = |source| DirectoryError::File { path: path.to_owned(), source };
    let file = regular_file(path).map_err(error)?;
    let is_small = file.metadata().map_err(error)?.len() <= limit;
    let mut text = Vec::new();
    if is_small {
        file.take(limit).read_to_end(&mut text).map_err(error)?;
    }
    // Serde would read the fields of an object from a list too.
    if !is_small || text.trim_ascii_start().first() == Some(&b'[') {
        return Err(DirectoryError::NotAnObject { path: path.to_owned(), limit });
    }
    serde_json::from_slice(&text)
        .map_err(|source| DirectoryError::Json { path: path.to_owned(), source })
}

/// Checks, before anything of that size is made, what `config.json` could make a model large by: its
/// layers, and the coefficients of its blocks.
fn check_depth(config: &T5Config, files: &WeightFiles) -> Result<(), DirectoryError> {
    let num_blocks = config.num_blocks();
    for (stack, layers) in [("encoder", config.num_layers), ("decoder", config.decoder_layers())] {
        for layer in 0..layers {
            let layer = layer.to_string();
            let check = |fields: &[&str], shape: &[usize]| {
                let path = [&[stack, "blocks", &layer], fields].concat();
                let parameter = ParameterInfo::at(&path, shape);
                files.check(&parameter.name, &parameter.shape)
            };
            check(&["self_attention", "norm", "gamma"], &[config.d_model])?;
            if config.updates_blocks() {
                check(&["altup", "prediction_coefs"], &[num_blocks, num_blocks])?;
                check(&["altup", "correction_coefs"], &[num_blocks])?;
            }
        }
    }
    Ok(())
}

/// Checks that the files hold the model's tensors and no others.
fn check_names(model: &T5, config: &T5Config, files: &WeightFiles) -> Result<(), DirectoryError> {
    let parameters = parameters(model);
    for parameter in &parameters {
        files.check(&parameter.name, &parameter.shape)?;
    }
    let names: BTreeSet<&String> = parameters.iter().map(|parameter| &parameter.name).collect();
    let unexpected = |name: &&String| !names.contains(name) && !is_redundant(name, config);
    match files.names().find(unexpected) {
        None => Ok(()),
        Some(name) => {
            let path = files.path(name).map(Path::to_owned).unwrap_or_default();
            Err(DirectoryError::Unexpected { path, name: name.clone() })
        }
    }
}

/// Tensors that published T5 files hold beside those of the model: copies of the shared table, and a
/// bias that the original T5 never used.
fn is_redundant(name: &str, config: &T5Config) -> bool {
    match name {
        "encoder.embed_tokens.weight"
        | "decoder.embed_tokens.weight"
        | "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight" => true,
        OUTPUT_TABLE => config.tie_word_embeddings,
        _ => false,
    }
}
