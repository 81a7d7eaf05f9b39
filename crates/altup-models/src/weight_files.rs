//! The safetensors files of a model directory, mapped into memory. They are untrusted: nothing is read
//! or allocated by a number in them that was not checked first.

use burn::tensor::{bf16, f16};
use memmap2::Mmap;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::directory::{DirectoryError, read_json};
use crate::tensors::FloatType;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Weights that are not read, whole and in shards.
pub(crate) const PYTORCH_WEIGHTS: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// The index of the largest model has some hundred KB.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// So has a header.
const MAX_HEADER_BYTES: usize = 16 << 20;

/// The tensors of a directory, by name.
pub(crate) struct WeightFiles {
    files: Vec<WeightFile>,
    /// The number of the file that holds each tensor.
    places: BTreeMap<String, usize>,
}

/// A mapped file: 8 bytes with the length of the header, the header, then the tensors.
struct WeightFile {
    path: PathBuf,
    bytes: Mmap,
    tensors: BTreeMap<String, StoredTensor>,
}

/// Where a tensor lies in its file.
struct StoredTensor {
    dtype: FloatType,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The part of an index that says where each tensor is.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index and checks that it names files beside it.
    fn read(path: &Path) -> Result<Self, DirectoryError> {
        let index: Self = read_json(path, MAX_INDEX_BYTES)?;
        if index.weight_map.is_empty() {
            let problem = "its weight_map names no tensor".to_owned();
            return Err(DirectoryError::Weights { path: path.to_owned(), problem });
        }
        // A path out of the directory has other parts than a file name.
        let is_beside = |shard: &&String| {
            Path::new(shard).file_name().is_some_and(|name| name == shard.as_str())
                && !shard.contains(char::is_control)
        };
        match index.weight_map.values().find(|shard| !is_beside(shard)) {
            None => Ok(index),
            Some(shard) => {
                Err(DirectoryError::Shard { path: path.to_owned(), shard: shard.clone() })
            }
        }
    }
}

/// The files that an index names, all of them beside it.
#[cfg(feature = "hub")]
pub(crate) fn shards_of_index(path: &Path) -> Result<BTreeSet<String>, DirectoryError> {
    Ok(Index::read(path)?.weight_map.into_values().collect())
}

impl WeightFiles {
    /// Maps `model.safetensors`, or the files that `model.safetensors.index.json` names, and checks
    /// their headers.
    pub(crate) fn open(directory: &Path) -> Result<Self, DirectoryError> {
        let whole = directory.join(WEIGHTS);
        let index = directory.join(INDEX);
        if !whole.exists() && !index.exists() {
            let is_there = |name: &&str| directory.join(name).exists();
            if let Some(name) = PYTORCH_WEIGHTS.into_iter().find(is_there) {
                return Err(DirectoryError::PyTorchOnly { path: directory.join(name) });
            }
        }
        if whole.exists() || !index.exists() {
            return Self::from_files(vec![WeightFile::open(whole)?]);
        }
        let Index { weight_map } = Index::read(&index)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let open = |shard: &String| WeightFile::open(directory.join(shard));
        let files = Self::from_files(shards.into_iter().map(open).collect::<Result<_, _>>()?)?;
        for (name, shard) in &weight_map {
            if !files.file(name).is_some_and(|file| file.path.ends_with(shard)) {
                let (path, name) = (directory.join(shard), name.clone());
                return Err(DirectoryError::Missing { path, name });
            }
        }
        if let Some(name) = files.names().find(|name| !weight_map.contains_key(*name)) {
            let problem = format!("its weight_map lacks tensor {name:?}, which is in a shard");
            return Err(DirectoryError::Weights { path: index, problem });
        }
        Ok(files)
    }

    fn from_files(files: Vec<WeightFile>) -> Result<Self, DirectoryError> {
        let mut places = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.tensors.keys() {
                if places.insert(name.clone(), number).is_some() {
                    let (path, name) = (file.path.clone(), name.clone());
                    return Err(DirectoryError::Duplicate { path, name });
                }
            }
        }
        Ok(Self { files, places })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.places.keys()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The file that a tensor is in.
    pub(crate) fn path(&self, name: &str) -> Option<&Path> {
        self.file(name).map(|file| file.path.as_path())
    }

    fn file(&self, name: &str) -> Option<&WeightFile> {
        self.places.get(name).map(|&number| &self.files[number])
    }

    /// Checks that there is a tensor of this name and shape.
    pub(crate) fn check(&self, name: &str, expected: &[usize]) -> Result<(), DirectoryError> {
        self.find(name, expected).map(|_| ())
    }

    /// The values of a tensor, as f32.
    pub(crate) fn read(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, DirectoryError> {
        let (file, tensor) = self.find(name, expected)?;
        let bytes = &file.bytes[tensor.bytes.clone()];
        Ok(match tensor.dtype {
            FloatType::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
            FloatType::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
                .collect(),
            FloatType::BF16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&bytes| bf16::from_le_bytes(bytes).to_f32())
                .collect(),
        })
    }

    /// A hash of the names, shapes and values of all tensors.
    pub(crate) fn fingerprint(&self) -> Result<blake3::Hash, DirectoryError> {
        let mut hasher = blake3::Hasher::new();
        for (name, number) in &self.places {
            let shape = &self.files[*number].tensors[name].shape;
            hasher.update(format!("{name:?} {shape:?}").as_bytes());
            for values in self.read(name, shape)?.chunks(16 << 10) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                hasher.update(&bytes);
            }
        }
        Ok(hasher.finalize())
    }

    fn find(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<(&WeightFile, &StoredTensor), DirectoryError> {
        let Some(file) = self.file(name) else {
            let (path, name) = (self.files[0].path.clone(), name.to_owned());
            return Err(DirectoryError::Missing { path, name });
        };
        let tensor = &file.tensors[name];
        if tensor.shape != expected {
            let (path, name) = (file.path.clone(), name.to_owned());
            let (found, expected) = (tensor.shape.clone(), expected.to_vec());
            return Err(DirectoryError::Shape { path, name, found, expected });
        }
        Ok((file, tensor))
    }
}

impl WeightFile {
    fn open(path: PathBuf) -> Result<Self, DirectoryError> {
        let mapped = regular_file(&path).and_then(|file| {
            // SAFETY: the map is only read. Another process that shortens the file meanwhile could
            // end this one, as it could with any program that maps model files.
            unsafe { Mmap::map(&file) }
        });
        match mapped {
            Err(source) => Err(DirectoryError::File { path, source }),
            Ok(bytes) => match tensors(&bytes) {
                Ok(tensors) => Ok(Self { path, bytes, tensors }),
                Err(problem) => Err(DirectoryError::Weights { path, problem }),
            },
        }
    }
}

/// Opens a file; a pipe or a device could block for ever.
pub(crate) fn regular_file(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() {
        File::open(path)
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

/// Reads the header of a file and checks that its tensors fill the rest of the file, without gap or
/// overlap, as the format demands.
fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, StoredTensor>, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are no safetensors file", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|&length| length <= MAX_HEADER_BYTES);
    let Some((header, data)) = header.and_then(|length| rest.split_at_checked(length)) else {
        return Err(format!(
            "the header is said to have {length} bytes, more than the file or than {MAX_HEADER_BYTES}"
        ));
    };
    let header: Header = serde_json::from_slice(header)
        .map_err(|error| format!("the header can't be read: {error}"))?;

    let mut tensors = BTreeMap::new();
    let mut places = Vec::new();
    for (name, entry) in header.0 {
        let tensor = entry
            .check(bytes.len() - data.len(), data.len())
            .map_err(|problem| format!("tensor {name:?} {problem}"))?;
        places.push((tensor.bytes.start, tensor.bytes.end, name.clone()));
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("the header names tensor {name:?} twice"));
        }
    }
    places.sort();
    let mut end = bytes.len() - data.len();
    for (start, next_end, name) in places {
        if start != end {
            return Err(format!(
                "tensor {name:?} starts at byte {start} of the file, and those before it end at {end}"
            ));
        }
        end = next_end;
    }
    match bytes.len() - end {
        0 => Ok(tensors),
        rest => Err(format!("the last {rest} bytes belong to no tensor")),
    }
}

/// The tensors of a header, in its order.
struct Header(Vec<(String, Entry)>);

/// What a header says of a tensor.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    /// The tensor, if it lies within the `data_length` bytes of data that start at `data_start`.
    fn check(self, data_start: usize, data_length: usize) -> Result<StoredTensor, String> {
        let dtype = match self.dtype.as_str() {
            "F32" => FloatType::F32,
            "F16" => FloatType::F16,
            "BF16" => FloatType::BF16,
            other => return Err(format!("is of type {other:?}; F32, F16 and BF16 are read")),
        };
        let [start, end] = self.data_offsets;
        if start > end || end > data_length as u64 {
            return Err(format!("is said to be at {start}..{end} of {data_length} bytes"));
        }
        let bytes = self
            .shape
            .iter()
            .try_fold(dtype.size() as u64, |bytes, &length| bytes.checked_mul(length));
        if bytes != Some(end - start) {
            return Err(format!("of shape {:?} is said to have {} bytes", self.shape, end - start));
        }
        let (start, end) = (data_start + start as usize, data_start + end as usize);
        let shape = self.shape.iter().map(|&length| length as usize).collect();
        Ok(StoredTensor { dtype, shape, bytes: start..end })
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("tensor {name:?}: {error}")))?;
                    entries.push((name, entry));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
