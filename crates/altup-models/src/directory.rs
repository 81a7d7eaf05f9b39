use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData, bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::parameters::ParameterPath;
use crate::tensors::{parameter_tensors, write_tensors};
use crate::{ConfigError, T5, T5Config, parameters};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A Hugging Face model directory: `config.json`, `model.safetensors` (or shards of it with an
/// index), and beside them a `tokenizer.json`.
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
    /// A weight file is damaged.
    #[error("{}: not a whole safetensors file", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: SafeTensorError,
    },
    /// The index of a sharded model names something other than a file beside it.
    #[error("{}: {shard:?} is not the name of a file in the model's directory", path.display())]
    Shard {
        /// The index.
        path: PathBuf,
        /// What it names.
        shard: String,
    },
    /// A tensor that the model has is in no file.
    #[error("{}: tensor {name:?} is missing", path.display())]
    Missing {
        /// The directory.
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
    /// A tensor's type is none of F32, F16 and BF16.
    #[error("{}: tensor {name:?} is of type {dtype}; F32, F16 and BF16 are read", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type in the file.
        dtype: Dtype,
    },
}

impl ModelDirectory {
    /// The directory at `path`. Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the tokenizer lies.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// Reads the model's description and checks that it can be built.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or names the field that is wrong.
    pub fn config(&self) -> Result<T5Config, DirectoryError> {
        let path = self.path.join(CONFIG);
        let config: T5Config = read_json(&path)?;
        config.validate().map_err(|source| DirectoryError::Config { path, source })?;
        Ok(config)
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
        let mut config = self.config()?;
        let files = WeightFiles::open(&self.path)?;
        let tensors = files.tensors()?;
        if config.scale_decoder_outputs.is_some() {
            config.tie_word_embeddings = !tensors.contains_key("lm_head.weight");
        }
        let model = config.build(device);
        check_names(&self.path, &model, &config, &tensors)?;
        let mut load =
            Load { tensors: &tensors, device, path: ParameterPath::default(), error: None };
        let model = model.map(&mut load);
        match load.error {
            Some(error) => Err(error),
            None => Ok((config, model)),
        }
    }

    /// Writes the model, creating the directory where needed. Each file appears whole or not at
    /// all.
    ///
    /// # Errors
    ///
    /// Names the file that can't be written.
    pub fn save(&self, config: &T5Config, model: &T5) -> Result<(), DirectoryError> {
        let error = |path: &Path, source| DirectoryError::File { path: path.to_owned(), source };
        fs::create_dir_all(&self.path).map_err(|source| error(&self.path, source))?;
        let path = self.path.join(WEIGHTS);
        write_tensors(&path, &parameter_tensors(model)).map_err(|source| error(&path, source))?;
        let path = self.path.join(CONFIG);
        write_config(&path, config).map_err(|source| error(&path, source))
    }
}

fn write_config(path: &Path, config: &T5Config) -> io::Result<()> {
    let mut json = serde_json::to_value(config)?;
    json["architectures"] = serde_json::json!(["T5ForConditionalGeneration"]);
    json["is_encoder_decoder"] = true.into();
    let partial = path.with_extension("json.partial");
    let mut file = File::create(&partial)?;
    file.write_all((serde_json::to_string_pretty(&json)? + "\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(partial, path)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, DirectoryError> {
    let text =
        fs::read(path).map_err(|source| DirectoryError::File { path: path.to_owned(), source })?;
    serde_json::from_slice(&text)
        .map_err(|source| DirectoryError::Json { path: path.to_owned(), source })
}

/// A tensor in a mapped file.
struct Stored<'a> {
    path: &'a Path,
    view: TensorView<'a>,
}

/// The mapped weight files of a directory.
struct WeightFiles(Vec<(PathBuf, Mmap)>);

/// The part of an index that says where each tensor is.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    fn open(directory: &Path) -> Result<Self, DirectoryError> {
        let whole = directory.join(WEIGHTS);
        let index_path = directory.join(INDEX);
        let paths = if whole.exists() || !index_path.exists() {
            vec![whole]
        } else {
            let index: Index = read_json(&index_path)?;
            let shards: BTreeSet<String> = index.weight_map.into_values().collect();
            shards
                .into_iter()
                .map(|shard| match Path::new(&shard).file_name() {
                    // A path out of the directory has other parts than a file name.
                    Some(name) if name == shard.as_str() => Ok(directory.join(name)),
                    _ => Err(DirectoryError::Shard { path: index_path.clone(), shard }),
                })
                .collect::<Result<_, _>>()?
        };
        let map = |path: PathBuf| {
            let mapped = File::open(&path).and_then(|file| {
                // SAFETY: the map is only read. Another process that shortens the file meanwhile
                // could end this one, as it could with any program that maps model files.
                unsafe { Mmap::map(&file) }
            });
            match mapped {
                Ok(mapped) => Ok((path, mapped)),
                Err(source) => Err(DirectoryError::File { path, source }),
            }
        };
        Ok(Self(paths.into_iter().map(map).collect::<Result<_, _>>()?))
    }

    fn tensors(&self) -> Result<BTreeMap<String, Stored<'_>>, DirectoryError> {
        let mut tensors = BTreeMap::new();
        for (path, bytes) in &self.0 {
            let file = SafeTensors::deserialize(bytes)
                .map_err(|source| DirectoryError::Weights { path: path.clone(), source })?;
            tensors.extend(
                file.tensors().into_iter().map(|(name, view)| (name, Stored { path, view })),
            );
        }
        Ok(tensors)
    }
}

/// Checks that the files hold the model's tensors and no others.
fn check_names(
    directory: &Path,
    model: &T5,
    config: &T5Config,
    tensors: &BTreeMap<String, Stored<'_>>,
) -> Result<(), DirectoryError> {
    let parameters: BTreeSet<String> = parameters(model).into_iter().map(|p| p.name).collect();
    if let Some(name) = parameters.iter().find(|name| !tensors.contains_key(*name)) {
        return Err(DirectoryError::Missing { path: directory.to_owned(), name: name.clone() });
    }
    for (name, stored) in tensors {
        if !parameters.contains(name) && !is_redundant(name, config) {
            let (path, name) = (stored.path.to_owned(), name.clone());
            return Err(DirectoryError::Unexpected { path, name });
        }
    }
    Ok(())
}

/// Tensors that published T5 files hold beside those of the model: copies of the shared table, and a
/// bias that the original T5 never used.
fn is_redundant(name: &str, config: &T5Config) -> bool {
    match name {
        "encoder.embed_tokens.weight"
        | "decoder.embed_tokens.weight"
        | "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight" => true,
        "lm_head.weight" => config.tie_word_embeddings,
        _ => false,
    }
}

/// Fills a model's parameters from mapped tensors; stops at the first that doesn't fit.
struct Load<'a> {
    tensors: &'a BTreeMap<String, Stored<'a>>,
    device: &'a Device,
    path: ParameterPath,
    error: Option<DirectoryError>,
}

impl Load<'_> {
    fn read(&self, expected: Vec<usize>) -> Result<TensorData, DirectoryError> {
        let name = self.path.tensor_name();
        let Stored { path, view } = &self.tensors[&name];
        let mut stored = expected.clone();
        if self.path.is_transposed() {
            stored.reverse();
        }
        if view.shape() != stored {
            return Err(DirectoryError::Shape {
                path: path.to_path_buf(),
                name,
                found: view.shape().to_vec(),
                expected: stored,
            });
        }
        let Some(values) = to_f32(view) else {
            return Err(DirectoryError::Dtype {
                path: path.to_path_buf(),
                name,
                dtype: view.dtype(),
            });
        };
        let values = match (self.path.is_transposed(), stored.as_slice()) {
            (true, &[rows, columns]) => transpose(&values, rows, columns),
            _ => values,
        };
        Ok(TensorData::new(values, expected))
    }
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        match self.read(param.lazy_shape().to_vec()) {
            Ok(data) => {
                let mut loaded = Param::from_tensor(Tensor::from_data(data, self.device));
                loaded.id = param.id;
                loaded
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}

fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => {
            bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
        }
        Dtype::F16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&bytes| bf16::from_le_bytes(bytes).to_f32())
            .collect(),
        _ => return None,
    })
}

/// Row-major `[rows, columns]` to `[columns, rows]`, in tiles that stay in the cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut transposed = vec![0.0; values.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    transposed[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    transposed
}
